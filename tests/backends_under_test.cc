#include "tests/backends_under_test.h"

#include "backends/cpu/cpu_backend.h"

namespace calandra {

std::vector<BackendUnderTest> backends_under_test() {
  std::vector<BackendUnderTest> all = {{"reference", [] { return std::make_unique<ReferenceBackend>(); }}};
  for (const Isa isa : machine_isas())
    for (const int threads : {1, 3})
      all.push_back({"cpu_" + std::string(name_of(isa)) + "_" + std::to_string(threads),
                     [=] { return make_cpu_backend({.threads = threads, .isa = isa}); }});
  return all;
}

}  // namespace calandra

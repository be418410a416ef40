// Any bytes as a safetensors file, and any bytes as its header in front of as much data as the first two say. What is
// accepted must keep every rule by the judgement of a second checker, and all of it must be readable.
#include <cstdint>
#include <cstdlib>
#include <string>
#include <string_view>

#include "base/error.h"
#include "weights/safetensors.h"
#include "weights/safetensors_for_test.h"

namespace calandra {
namespace {

void open_and_read(std::string_view bytes) {
  static const MemoryFileForTest memory;
  try {
    const SafetensorsFile file(memory.write(bytes));
    if (const std::string rule = broken_rule(bytes, file.entries()); !rule.empty()) {
      std::fprintf(stderr, "accepted although it breaks %s\n", rule.c_str());
      std::abort();
    }
    std::string data;
    for (const SafetensorsFile::Entry& entry : file.entries()) {
      data.resize(entry.bytes);
      file.read(entry, 0, entry.bytes, data.data());
      if (bytes.substr(entry.begin, entry.bytes) != data || file.find(entry.name) != &entry) std::abort();
    }
    file.check_unchanged();
  } catch (const LoadError&) {
  }
}

}  // namespace
}  // namespace calandra

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* bytes, size_t size) {
  const std::string_view input(reinterpret_cast<const char*>(bytes), size);
  calandra::open_and_read(input);
  if (size >= 2) {
    const size_t data_bytes = bytes[0] + size_t{256} * bytes[1];
    calandra::open_and_read(calandra::file_of(input.substr(2), data_bytes));
  }
  return 0;
}

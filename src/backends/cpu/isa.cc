#include "backends/cpu/isa.h"

#include <cpuid.h>

#include <array>

namespace calandra {

namespace {
constexpr std::array kIsas = {Isa::kAvx2, Isa::kAvx512};

// Not every compiler knows this one's name in __builtin_cpu_supports.
bool has_f16c() {
  unsigned a, b, c, d;
  return __get_cpuid(1, &a, &b, &c, &d) != 0 && (c & bit_F16C) != 0;
}
}  // namespace

std::string_view name_of(Isa isa) {
  switch (isa) {
    case Isa::kAvx2:
      return "avx2";
    case Isa::kAvx512:
      return "avx512";
  }
  return "?";
}

std::optional<Isa> isa_by_name(std::string_view name) {
  for (const Isa isa : kIsas)
    if (name_of(isa) == name) return isa;
  return std::nullopt;
}

bool machine_has(Isa isa) {
  __builtin_cpu_init();  // includes whether the system saves the wide registers
  const bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && has_f16c();
  switch (isa) {
    case Isa::kAvx2:
      return avx2;
    case Isa::kAvx512:
      return avx2 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
             __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
  }
  return false;
}

std::vector<Isa> machine_isas() {
  std::vector<Isa> found;
  for (const Isa isa : kIsas)
    if (machine_has(isa)) found.push_back(isa);
  return found;
}

}  // namespace calandra

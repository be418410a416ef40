// The instruction sets that the cpu backend has kernels for, found at run time.
#pragma once

#include <optional>
#include <string_view>
#include <vector>

namespace calandra {

enum class Isa {
  kAvx2,    // AVX2, FMA, F16C
  kAvx512,  // AVX-512 F, BW, DQ, VL
};

std::string_view name_of(Isa isa);  // "avx2", "avx512", as in --isa
std::optional<Isa> isa_by_name(std::string_view name);

bool machine_has(Isa isa);
std::vector<Isa> machine_isas();  // from the least to the best; empty on a CPU without AVX2

}  // namespace calandra

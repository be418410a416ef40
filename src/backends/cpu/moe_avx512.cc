#include "backends/cpu/moe_kernels.inl"

namespace calandra {
const MoeKernels& moe_kernels_avx512() { return kMoeKernels; }
}  // namespace calandra

#include "backends/cpu/moe_kernels.inl"

namespace calandra {
const MoeKernels& moe_kernels_avx2() { return kMoeKernels; }
}  // namespace calandra

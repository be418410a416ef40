#include "backends/cpu/lightning_kernels.inl"

namespace calandra {

const LightningKernels& lightning_kernels_avx2() { return kLightningKernels; }

}  // namespace calandra

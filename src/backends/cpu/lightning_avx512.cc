#include "backends/cpu/lightning_kernels.inl"

namespace calandra {

const LightningKernels& lightning_kernels_avx512() { return kLightningKernels; }

}  // namespace calandra

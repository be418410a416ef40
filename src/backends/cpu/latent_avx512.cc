#include "backends/cpu/latent_kernels.inl"

namespace calandra {

const LatentKernels& latent_kernels_avx512() { return kLatentKernels; }

}  // namespace calandra

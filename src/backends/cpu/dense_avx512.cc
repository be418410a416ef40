#include "backends/cpu/dense_kernels.inl"

namespace calandra {
const DenseKernels& dense_kernels_avx512() { return kDenseKernels; }
}  // namespace calandra

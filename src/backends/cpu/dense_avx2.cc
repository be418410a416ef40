#include "backends/cpu/dense_kernels.inl"

namespace calandra {
const DenseKernels& dense_kernels_avx2() { return kDenseKernels; }
}  // namespace calandra

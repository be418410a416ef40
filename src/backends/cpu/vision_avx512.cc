#include "backends/cpu/vision_kernels.inl"

namespace calandra {
const VisionKernels& vision_kernels_avx512() { return kVisionKernels; }
}  // namespace calandra

#include "backends/cpu/attention_kernels.inl"

namespace calandra {

const AttentionKernels& attention_kernels_avx2() { return kAttentionKernels; }

}  // namespace calandra

#include "backends/cpu/attention_kernels.inl"

namespace calandra {

const AttentionKernels& attention_kernels_avx512() { return kAttentionKernels; }

}  // namespace calandra

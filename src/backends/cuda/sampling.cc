// The sampler (ops/sampling.h): rows of logits come to the host and are sampled there, by the code that defines it.
#include "backends/cuda/cuda_backend.h"
#include "backends/reference/sampling_row.h"

namespace calandra {

void CudaBackend::sample(ExecContext& ctx, const Tensor& logits, const ops::SamplingBatch& batch,
                         ops::SamplingResult& out) {
  if (out.scratch.empty()) out.scratch.resize(1);
  const int64_t V = logits.size(1);
  std::vector<float> row(static_cast<size_t>(V));
  int32_t held = -1;
  CUDA_CHECK(cudaStreamSynchronize(cuda::stream_of(ctx)));
  for (size_t r = 0; r < batch.rows.size(); ++r) {
    if (batch.rows[r].logit_row != held) {
      held = batch.rows[r].logit_row;
      copy_bytes(row.data(), logits.bytes_at(held * logits.stride(0)), row.size() * sizeof(float));
    }
    reference::sample_row(row.data(), V, batch, batch.rows[r], out.scratch[0], out.rows[r]);
  }
}

}  // namespace calandra

// Sampled tokens into the batch of a launch behind (ops/look_ahead.h). One thread for each token: a launch's latency.
#include "backends/cuda/cuda_backend.h"
#include "backends/cuda/device/rows.cuh"

namespace calandra {
namespace cuda {
namespace {

constexpr int kThreads = 128;

__global__ void __launch_bounds__(kThreads)
    put(const int32_t* sampled, const int32_t* from, const int32_t* to, int32_t* token_ids, int count) {
  const int i = static_cast<int>(blockIdx.x) * kThreads + static_cast<int>(threadIdx.x);
  if (i < count) token_ids[to[i]] = max(0, sampled[from[i]]);
}

__global__ void __launch_bounds__(kThreads)
    go_on(const int32_t* sampled, const int32_t* row, const int32_t* stop_begin, const int32_t* stop_ids,
          int32_t* token_ids, int32_t* active, int sequences) {
  const int b = static_cast<int>(blockIdx.x) * kThreads + static_cast<int>(threadIdx.x);
  if (b >= sequences) return;
  const int32_t token = row[b] < 0 ? -1 : sampled[row[b]];
  bool goes_on = token >= 0;
  for (int32_t i = stop_begin[b]; i < stop_begin[b + 1]; ++i) goes_on = goes_on && stop_ids[i] != token;
  token_ids[b] = goes_on ? token : 0;
  active[b] = goes_on ? 1 : 0;
}

}  // namespace
}  // namespace cuda

using namespace cuda;

void CudaBackend::put_tokens(ExecContext& ctx, const Tensor& sampled, const Tensor& from, const Tensor& to,
                             const Batch& batch) {
  const int64_t count = from.size(0);
  put<<<blocks_for(count, kThreads), kThreads, 0, stream_of(ctx)>>>(sampled.as<int32_t>(), from.as<int32_t>(),
                                                                    to.as<int32_t>(), batch.token_ids.as<int32_t>(),
                                                                    static_cast<int>(count));
  launched(ctx, "put_tokens");
}

void CudaBackend::next_tokens(ExecContext& ctx, const Tensor& sampled, const ops::SampledSource& source,
                              const Batch& batch) {
  const int64_t sequences = batch.sequences();
  go_on<<<blocks_for(sequences, kThreads), kThreads, 0, stream_of(ctx)>>>(
      sampled.as<int32_t>(), source.row.as<int32_t>(), source.stop_begin.as<int32_t>(), source.stop_ids.as<int32_t>(),
      batch.token_ids.as<int32_t>(), batch.active.as<int32_t>(), static_cast<int>(sequences));
  launched(ctx, "next_tokens");
}

}  // namespace calandra

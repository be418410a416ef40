// Lightning attention (ops/lightning.h): device/recur.cuh without its read before the write; prompts by
// device/lightning_chunks.cuh where activations are bf16.
#include "backends/cuda/device/launch.cuh"
#include "backends/cuda/device/lightning_chunks.cuh"
#include "backends/cuda/device/types.cuh"

namespace calandra {
namespace cuda {
namespace {

bool chunks_serve(const Tensor& q, const Tensor& k, const Tensor& v, const RecurShape& shape, const Batch& batch) {
  const auto aligned = [](const Tensor& x) { return rows_aligned(x, 16); };
  return batch.max_query_len > kFewRows && shape.M <= kChunk && shape.Dk == kHeadSize && shape.Dv % kColumns == 0 &&
         aligned(q) && aligned(k) && aligned(v);
}

}  // namespace
}  // namespace cuda

using namespace cuda;

void CudaBackend::lightning_attention(ExecContext& ctx, const Tensor& q, const Tensor& k, const Tensor& v,
                                      const Tensor& slope, LightningState& state, const Tensor& accepted,
                                      const Batch& batch, DType activations, Tensor& out) {
  const int H = static_cast<int>(q.size(1));
  const RecurShape shape{H,
                         H,
                         static_cast<int>(q.size(2)),
                         static_cast<int>(v.size(2)),
                         static_cast<int>(state.pending_k.size(1)),
                         static_cast<float>(1 / std::sqrt(static_cast<double>(q.size(2))))};
  CHECK_LE(shape.Dk, 128);
  const SegmentedBatch segments(batch, accepted);
  const bool chunked = !options_.deterministic && activations == DType::kBF16 && chunks_serve(q, k, v, shape, batch);
  const int B = static_cast<int>(batch.sequences());
  const RecurInputs<float> in{rows_of<float>(q),           rows_of<float>(k), rows_of<float>(v),
                              slope.as<float>(),           nullptr,           state.pending_k.as<float>(),
                              state.pending_v.as<float>(), nullptr,           nullptr};
  run_recurrence<float, false>(stream_of(ctx), segments, B, in, shape, chunked, state.S.as<float>(), out.as<float>());
  launched(ctx, "lightning_attention");
  if (chunked) {
    allow_shared<lightning_walk>(sizeof(LightningShared));
    const dim3 grid(B, shape.Hv, blocks_for(shape.Dv, kColumns));
    lightning_walk<<<grid, kWalkThreads, sizeof(LightningShared), stream_of(ctx)>>>(
        segments, in, shape, state.S.as<float>(), out.as<float>());
    launched(ctx, "lightning_attention walk");
  }
  if (run_keep_pending<float, false>(stream_of(ctx), segments, batch, in, shape, state.pending_k.as<float>(),
                                     state.pending_v.as<float>(), nullptr, nullptr))
    launched(ctx, "lightning_attention pending");
}

}  // namespace calandra

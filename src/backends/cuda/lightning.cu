// Lightning attention (ops/lightning.h): device/recur.cuh without its read before the write.
#include "backends/cuda/device/recur.cuh"
#include "backends/cuda/device/types.cuh"

namespace calandra {

using namespace cuda;

void CudaBackend::lightning_attention(ExecContext& ctx, const Tensor& q, const Tensor& k, const Tensor& v,
                                      const Tensor& slope, LightningState& state, const Tensor& accepted,
                                      const Batch& batch, Tensor& out) {
  const int H = static_cast<int>(q.size(1));
  const RecurShape shape{H,
                         H,
                         static_cast<int>(q.size(2)),
                         static_cast<int>(v.size(2)),
                         static_cast<int>(state.pending_k.size(1)),
                         static_cast<float>(1 / std::sqrt(static_cast<double>(q.size(2))))};
  CHECK_LE(shape.Dk, 128);
  const SegmentedBatch segments(batch, accepted);
  const int B = static_cast<int>(batch.sequences());
  const RecurInputs<float> in{rows_of<float>(q),           rows_of<float>(k), rows_of<float>(v),
                              slope.as<float>(),           nullptr,           state.pending_k.as<float>(),
                              state.pending_v.as<float>(), nullptr,           nullptr};
  run_recurrence<float, false>(stream_of(ctx), segments, B, in, shape, state.S.as<float>(), out.as<float>());
  launched(ctx, "lightning_attention");
  if (shape.M == 0) return;
  keep_pending<float, false><<<dim3(B, shape.M), kRecurThreads, 0, stream_of(ctx)>>>(
      segments, in, shape, state.pending_k.as<float>(), state.pending_v.as<float>(), nullptr, nullptr);
  launched(ctx, "lightning_attention pending");
}

}  // namespace calandra

// Prompts through the gated delta rule (device/delta_chunks.cuh).
#include "backends/cuda/delta_chunks.h"

#include "backends/cuda/device/delta_chunks.cuh"
#include "backends/cuda/device/launch.cuh"
#include "backends/cuda/device/types.cuh"

namespace calandra::cuda {
namespace {

int numbers_of(const Batch& batch) { return DeltaChunks::numbers(batch.rows(), batch.segments()); }

}  // namespace

bool chunks_serve(const Tensor& q, const Tensor& k, const Tensor& v, const RecurShape& shape, const Batch& batch) {
  const auto aligned = [](const Tensor& x) { return rows_aligned(x, 16) && x.stride(1) % 8 == 0; };
  return batch.max_query_len > kFewRows && shape.M <= kChunk && is_bf16(q) && shape.Dk == kHeadSize &&
         shape.Dv % kColumns == 0 && aligned(q) && aligned(k) && aligned(v);
}

Tensor chunk_memory(ExecContext& ctx, const RecurShape& shape, const Batch& batch) {
  return ctx.workspace.alloc(DType::kU8,
                             {int64_t{numbers_of(batch)} * shape.Hv * static_cast<int64_t>(sizeof(PreparedChunk))});
}

void prepare_chunks(cudaStream_t stream, const SegmentedBatch& segments, const Batch& batch,
                    const RecurInputs<bf16_t>& in, const RecurShape& shape, const Tensor& memory) {
  allow_shared<delta_prepare>(kPrepareBytes);
  const dim3 grid(static_cast<unsigned>(numbers_of(batch)), static_cast<unsigned>(shape.Hv));
  delta_prepare<<<grid, kPrepareThreads, kPrepareBytes, stream>>>(
      {segments, static_cast<PreparedChunk*>(memory.data())}, in, shape);
}

void walk_chunks(cudaStream_t stream, const SegmentedBatch& segments, const Batch& batch, const RecurInputs<bf16_t>& in,
                 const RecurShape& shape, const Tensor& memory, float* S, bf16_t* out) {
  allow_shared<delta_walk>(sizeof(DeltaShared));
  const dim3 grid(static_cast<unsigned>(batch.sequences()), static_cast<unsigned>(shape.Hv),
                  blocks_for(shape.Dv, kColumns));
  delta_walk<<<grid, kWalkThreads, sizeof(DeltaShared), stream>>>(
      {segments, static_cast<PreparedChunk*>(memory.data())}, in, shape, S, out);
}

}  // namespace calandra::cuda

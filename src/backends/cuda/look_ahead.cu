// A launch behind a step whose tokens the host does not know yet (ops/look_ahead.h). One block, so that rows see what
// sequences found; one thread for each sequence, then for each row; no shared memory: a launch's latency.
#include "backends/cuda/cuda_backend.h"
#include "backends/cuda/device/rows.cuh"

namespace calandra {
namespace cuda {
namespace {

constexpr int kThreads = 256;

struct CompleteArgs {
  const int32_t *sampled, *counts, *lists, *sampled_at, *row_sequence;
  int32_t *slot_accepted, *accepted, *active, *last, *last_row;
  int32_t *token_ids, *token_index, *positions, *mtp_positions, *seq_len, *batch_active;  // mtp_positions may be null
  int rows;
};

// How the drafts of one sequence fared.
__device__ void accept(const CompleteArgs& a, int b) {
  const ops::VerifiedRow row = reinterpret_cast<const ops::VerifiedRow*>(a.lists)[b];
  const int32_t *tokens = a.sampled + row.row, *drafts = a.lists + row.drafts_begin;
  const int32_t count = row.drafts_end - row.drafts_begin;
  int32_t accepted = 0, token;
  bool ends;
  for (;; ++accepted) {
    token = tokens[accepted];
    ends = token < 0;
    for (int32_t i = row.stop_ids_begin; i < row.stop_ids_end; ++i) ends = ends || a.lists[i] == token;
    if (ends || accepted == count || token != drafts[accepted]) break;
  }
  const bool active = !ends && accepted < row.most;
  if (token < 0) accepted = max(0, accepted - 1);
  a.accepted[b] = a.slot_accepted[row.slot] = accepted;
  a.active[b] = active ? 1 : 0;
  a.last[b] = active ? token : -1;
  a.last_row[b] = row.entry_row + accepted;
}

__global__ void __launch_bounds__(kThreads) complete(const __grid_constant__ CompleteArgs a) {
  const int first = static_cast<int>(threadIdx.x), listed = a.counts[0], moved = a.counts[1];
  for (int b = first; b < listed; b += kThreads) accept(a, b);
  __syncthreads();
  for (int t = first; t < a.rows; t += kThreads) {
    if (const int at = a.sampled_at[t]; at >= 0) a.token_ids[t] = max(0, a.sampled[at]);
    const int b = a.row_sequence[t];
    if (b >= moved) continue;
    const int32_t by = a.accepted[b];
    a.token_index[t] += by;
    for (int axis = 0; axis < 3; ++axis) {
      a.positions[axis * a.rows + t] += by;
      if (a.mtp_positions != nullptr) a.mtp_positions[axis * a.rows + t] += by;
    }
  }
  for (int b = first; b < moved; b += kThreads) {
    a.seq_len[b] += a.accepted[b];
    a.batch_active[b] = a.active[b];
  }
}

}  // namespace
}  // namespace cuda

using namespace cuda;

void CudaBackend::complete_batch(ExecContext& ctx, const Tensor& sampled, const Batch& batch, SlotCounts& slots,
                                 ops::VerifiedTokens& verified) {
  const auto ints = [](const Tensor& tensor) { return tensor.as<int32_t>(); };
  const CompleteArgs args{.sampled = ints(sampled),
                          .counts = ints(batch.ahead.counts),
                          .lists = ints(batch.ahead.lists),
                          .sampled_at = ints(batch.ahead.sampled_at),
                          .row_sequence = ints(batch.row_sequence),
                          .slot_accepted = ints(slots.accepted),
                          .accepted = ints(verified.accepted),
                          .active = ints(verified.active),
                          .last = ints(verified.last),
                          .last_row = ints(verified.entry_row),
                          .token_ids = ints(batch.token_ids),
                          .token_index = ints(batch.token_index),
                          .positions = ints(batch.positions),
                          .mtp_positions = batch.mtp.positions ? ints(batch.mtp.positions) : nullptr,
                          .seq_len = ints(batch.seq_len),
                          .batch_active = ints(batch.active),
                          .rows = static_cast<int>(batch.rows())};
  complete<<<1, kThreads, 0, stream_of(ctx)>>>(args);
  launched(ctx, "complete_batch");
}

}  // namespace calandra

// Launches behind a step whose tokens the host does not know yet (ops/look_ahead.h). One thread for each row or
// sequence, no shared memory: a launch's latency.
#include "backends/cuda/cuda_backend.h"
#include "backends/cuda/device/rows.cuh"

namespace calandra {
namespace cuda {
namespace {

constexpr int kThreads = 128;

// How the drafts of one sequence fared.
struct AcceptArgs {
  const int32_t *sampled, *row, *draft_begin, *drafts, *stop_begin, *stop_ids, *most, *slot, *entry_row;
  int32_t *slot_accepted, *accepted, *active, *last, *last_row;
  int sequences;
};

__global__ void __launch_bounds__(kThreads) accept(const __grid_constant__ AcceptArgs a) {
  const int b = static_cast<int>(blockIdx.x) * kThreads + static_cast<int>(threadIdx.x);
  if (b >= a.sequences) return;
  const int32_t* tokens = a.sampled + a.row[b];
  const int32_t* drafts = a.drafts + a.draft_begin[b];
  const int32_t count = a.draft_begin[b + 1] - a.draft_begin[b];
  int32_t accepted = 0, token;
  bool ends;
  for (;; ++accepted) {
    token = tokens[accepted];
    ends = token < 0;
    for (int32_t i = a.stop_begin[b]; i < a.stop_begin[b + 1]; ++i) ends = ends || a.stop_ids[i] == token;
    if (ends || accepted == count || token != drafts[accepted]) break;
  }
  const bool active = !ends && accepted < a.most[b];
  if (token < 0) accepted = max(0, accepted - 1);
  a.accepted[b] = a.slot_accepted[a.slot[b]] = accepted;
  a.active[b] = active ? 1 : 0;
  a.last[b] = active ? token : -1;
  a.last_row[b] = a.entry_row[b] + accepted;
}

struct CompleteArgs {
  const int32_t *sampled, *sampled_at, *accepted, *active, *row_sequence;
  int32_t *token_ids, *token_index, *positions, *mtp_positions, *seq_len, *batch_active;  // mtp_positions may be null
  int rows, sequences;
};

// One thread for each row and sequence.
__global__ void __launch_bounds__(kThreads) complete(const __grid_constant__ CompleteArgs a) {
  const int t = static_cast<int>(blockIdx.x) * kThreads + static_cast<int>(threadIdx.x);
  if (const int at = t < a.rows ? a.sampled_at[t] : -1; at >= 0) a.token_ids[t] = max(0, a.sampled[at]);
  if (const int b = t < a.rows ? a.row_sequence[t] : a.sequences; b < a.sequences) {
    const int32_t by = a.accepted[b];
    a.token_index[t] += by;
    for (int axis = 0; axis < 3; ++axis) {
      a.positions[axis * a.rows + t] += by;
      if (a.mtp_positions != nullptr) a.mtp_positions[axis * a.rows + t] += by;
    }
  }
  if (t < a.sequences) {
    a.seq_len[t] += a.accepted[t];
    a.batch_active[t] = a.active[t];
  }
}

}  // namespace
}  // namespace cuda

using namespace cuda;

void CudaBackend::accept_drafts(ExecContext& ctx, const Tensor& sampled, const ops::VerifiedRows& rows,
                                SlotCounts& slots, ops::VerifiedTokens& out) {
  const auto in = [](const Tensor& tensor) { return tensor.as<int32_t>(); };
  const int64_t sequences = rows.row.size(0);
  const AcceptArgs args{.sampled = in(sampled),
                        .row = in(rows.row),
                        .draft_begin = in(rows.draft_begin),
                        .drafts = in(rows.drafts),
                        .stop_begin = in(rows.stop_begin),
                        .stop_ids = in(rows.stop_ids),
                        .most = in(rows.most),
                        .slot = in(rows.slot),
                        .entry_row = in(rows.entry_row),
                        .slot_accepted = in(slots.accepted),
                        .accepted = in(out.accepted),
                        .active = in(out.active),
                        .last = in(out.last),
                        .last_row = in(out.entry_row),
                        .sequences = static_cast<int>(sequences)};
  accept<<<blocks_for(sequences, kThreads), kThreads, 0, stream_of(ctx)>>>(args);
  launched(ctx, "accept_drafts");
}

void CudaBackend::complete_batch(ExecContext& ctx, const Tensor& sampled, const ops::VerifiedTokens& verified,
                                 const Batch& batch) {
  const auto ints = [](const Tensor& tensor) { return tensor.as<int32_t>(); };
  const CompleteArgs args{.sampled = ints(sampled),
                          .sampled_at = ints(batch.sampled_at),
                          .accepted = ints(verified.accepted),
                          .active = ints(verified.active),
                          .row_sequence = ints(batch.row_sequence),
                          .token_ids = ints(batch.token_ids),
                          .token_index = ints(batch.token_index),
                          .positions = ints(batch.positions),
                          .mtp_positions = batch.mtp.positions ? ints(batch.mtp.positions) : nullptr,
                          .seq_len = ints(batch.seq_len),
                          .batch_active = ints(batch.active),
                          .rows = static_cast<int>(batch.rows()),
                          .sequences = static_cast<int>(verified.accepted.size(0))};
  complete<<<blocks_for(batch.rows(), kThreads), kThreads, 0, stream_of(ctx)>>>(args);
  launched(ctx, "complete_batch");
}

}  // namespace calandra

// What launches need that begin before the host knows the tokens of those before them.
//   R sampled rows   B sequences
#pragma once

#include "ops/batch.h"
#include "ops/cache_views.h"
#include "ops/sampling.h"

namespace calandra::ops {

// sample() in two halves. The first starts it and gives the tokens in the order of the stream: [R] i32 on the device,
// -1 where there is none. False: this backend does not do it for these rows, and nothing was started. The second waits
// and fills in the result; the batch must still be the same. `flight` tells those apart that are on their way at once.
constexpr int kSamplesAtOnce = 9;
bool start_sample(ExecContext& ctx, const Tensor& logits, const SamplingBatch& batch, int flight, Tensor& tokens);
void finish_sample(ExecContext& ctx, const SamplingBatch& batch, int flight, SamplingResult& result);

// The rows of a sequence in a step, sampled, and what they verify. Places of ids count from the beginning of the lists.
struct VerifiedRow {
  int32_t row;  // sampled row of the sequence's last token; those of its drafts follow
  int32_t drafts_begin, drafts_end;
  int32_t stop_ids_begin, stop_ids_end;
  int32_t most;       // accepted drafts with which the sequence is as long as it may get
  int32_t slot;       // that its state stands in
  int32_t entry_row;  // row of a launch behind that is the first token behind the step's certain ones
};

// What launches behind the step read of it, for at least as many sequences as were verified. On the device.
struct VerifiedTokens {
  Tensor accepted;   // [B] i32  drafts that equal what was sampled, up to one of the stop ids or a row without a token
  Tensor active;     // [B] i32  0: the sequence ends, with a stop id, without a token, or by its length
  Tensor last;       // [B] i32  the token it goes on with; -1 when it ends
  Tensor entry_row;  // [B] i32  that of the last token: entry_row + accepted
};

// Completes a batch by what the host did not know. First come the sequences that its lists verify, if any: they write
// `verified`, and slots.accepted of their slots. Where a row has no token the one before it was the last, so its draft
// does not count. Then the rows of sampled_at get their tokens, 0 where there is none; verified.last may be a part of
// `sampled`. The sequences that move, the batch's first ones, were built for no accepted drafts and go behind those
// that were, as `verified` has it from this batch or an earlier one: token_index, positions and seq_len grow by their
// number, mtp.positions too if there are any, and those that ended become inactive.
void complete_batch(ExecContext& ctx, const Tensor& sampled, const Batch& batch, SlotCounts& slots,
                    VerifiedTokens& verified);

}  // namespace calandra::ops

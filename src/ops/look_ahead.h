// What launches need that begin before the host knows the tokens of those before them.
//   R sampled rows   B sequences   D drafts and S stop ids of all sequences
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

// The rows of a step, sampled, and what they verify. On the device.
struct VerifiedRows {
  Tensor row;          // [B] i32  sampled row of the sequence's last token; those of its drafts follow
  Tensor draft_begin;  // [B + 1] i32  its drafts are [draft_begin[b], draft_begin[b + 1]) of drafts
  Tensor drafts;       // [D] i32
  Tensor stop_begin;   // [B + 1] i32  its stop ids likewise, of stop_ids
  Tensor stop_ids;     // [S] i32
  Tensor most;         // [B] i32  accepted drafts with which the sequence is as long as it may get
  Tensor slot;         // [B] i32  that its state stands in
  Tensor entry_row;    // [B] i32  row of a launch behind that is the first token behind the step's certain ones
};

// What a launch behind the step reads of it. On the device.
struct VerifiedTokens {
  Tensor accepted;   // [B] i32  drafts that equal what was sampled, up to one of the stop ids or a row without a token
  Tensor active;     // [B] i32  0: the sequence ends, with a stop id, without a token, or by its length
  Tensor last;       // [B] i32  the token it goes on with; -1 when it ends
  Tensor entry_row;  // [B] i32  that of the last token: entry_row + accepted
};

// Also writes slots.accepted of every sequence's slot. Where a row has no token the one before it was the last, so its
// draft does not count.
void accept_drafts(ExecContext& ctx, const Tensor& sampled, const VerifiedRows& rows, SlotCounts& slots,
                   VerifiedTokens& out);

// Completes a batch by what the host did not know. Rows of sampled_at get their tokens, 0 where there is none. What was
// built for no accepted drafts moves behind those that were: token_index, positions and seq_len grow by their number,
// mtp.positions too if there are any. Sequences that ended become inactive. Sequences of the batch behind those that
// were verified, perhaps none, stay as they are.
void complete_batch(ExecContext& ctx, const Tensor& sampled, const VerifiedTokens& verified, const Batch& batch);

}  // namespace calandra::ops

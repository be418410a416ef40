// What a step needs that begins before the host knows the tokens of the step before it.
//   R sampling rows of the step before   B sequences   S stop ids of all sequences
#pragma once

#include "ops/batch.h"
#include "ops/sampling.h"

namespace calandra::ops {

// sample() in two halves. The first starts it and says where the tokens will be, in the order of the stream and until
// it is called again: [R] i32 on the device, -1 where there is none. Empty: this backend does not do it for these rows,
// and nothing was started. The second waits and fills in the result; the batch must still be the same.
Tensor start_sample(ExecContext& ctx, const Tensor& logits, const SamplingBatch& batch);
void finish_sample(ExecContext& ctx, const SamplingBatch& batch, SamplingResult& result);

// Which of the sampled tokens a sequence goes on with, and which of them end it. On the device.
struct SampledSource {
  Tensor row;         // [B] i32  of the step before
  Tensor stop_begin;  // [B + 1] i32  its stop ids are [stop_begin[b], stop_begin[b + 1]) of stop_ids
  Tensor stop_ids;    // [S] i32
};

// Puts tokens that were sampled into a batch of one row for each sequence: batch.token_ids. A sequence without a token,
// or with one that ends it, becomes inactive: batch.active 0, token id 0.
void next_tokens(ExecContext& ctx, const Tensor& sampled, const SampledSource& source, const Batch& batch);

}  // namespace calandra::ops

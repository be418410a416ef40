// What launches need that begin before the host knows the tokens of those before them.
//   R sampled rows   B sequences   S stop ids of all sequences   I tokens
#pragma once

#include "ops/batch.h"
#include "ops/sampling.h"

namespace calandra::ops {

// sample() in two halves. The first starts it and gives the tokens in the order of the stream: [R] i32 on the device,
// -1 where there is none. False: this backend does not do it for these rows, and nothing was started. The second waits
// and fills in the result; the batch must still be the same. `flight` tells those apart that are on their way at once.
constexpr int kSamplesAtOnce = 9;
bool start_sample(ExecContext& ctx, const Tensor& logits, const SamplingBatch& batch, int flight, Tensor& tokens);
void finish_sample(ExecContext& ctx, const SamplingBatch& batch, int flight, SamplingResult& result);

// Puts sampled tokens into a batch: batch.token_ids of row to[i] is that of sampled row from[i], 0 where there is none.
//   from, to [I] i32
void put_tokens(ExecContext& ctx, const Tensor& sampled, const Tensor& from, const Tensor& to, const Batch& batch);

// Which of the sampled tokens a sequence goes on with, and which of them end it. On the device.
struct SampledSource {
  Tensor row;         // [B] i32  of the step before; -1: none, the sequence has no token
  Tensor stop_begin;  // [B + 1] i32  its stop ids are [stop_begin[b], stop_begin[b + 1]) of stop_ids
  Tensor stop_ids;    // [S] i32
};

// Puts tokens that were sampled into a batch of one row for each sequence: batch.token_ids. A sequence without a token,
// or with one that ends it, becomes inactive: batch.active 0, token id 0.
void next_tokens(ExecContext& ctx, const Tensor& sampled, const SampledSource& source, const Batch& batch);

}  // namespace calandra::ops

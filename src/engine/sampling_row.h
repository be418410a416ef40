// From a sequence to its rows of a SamplingBatch.
#pragma once

#include <span>
#include <vector>

#include "engine/logits_processor.h"
#include "engine/sequence.h"
#include "ops/sampling.h"

namespace calandra {

// What the rows of all sequences have in common.
struct SamplingContext {
  std::span<const int32_t> eos_token_ids;
  ThinkingTokens thinking = {};
  int64_t vocab_size = 0;  // columns of the target's logits; grammars need it
};

// Appends the row that samples the token after sequence.tokens ++ drafts from logits row `logit_row`: the same row, bit
// for bit, as if the drafts had been appended to the sequence. While fewer than min_tokens outputs exist,
// eos_token_ids (unless ignored) and the request's stop ids are forbidden, but where the grammar allows nothing else.
// `want_logprobs`: as the request asks; else none.
// Returns false, and appends nothing, when the sequence's grammar refuses one of the drafts: the row is dead, and so
// are those with more drafts. Only `counts` and `thinking` of the sequence change, and only by its certain tokens.
[[nodiscard]] bool add_sampling_row(ops::SamplingBatch& batch, Sequence& sequence, std::span<const int32_t> drafts,
                                    int32_t logit_row, const SamplingContext& context, bool want_logprobs = true);

// Do those rows depend on which ids the drafts before them are? If not, their number alone matters.
bool reads_drafts(const Sequence& sequence, const SamplingContext& context);

}  // namespace calandra

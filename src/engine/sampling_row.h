// From a sequence to its row of a SamplingBatch.
#pragma once

#include <span>

#include "engine/sequence.h"
#include "ops/sampling.h"

namespace calandra {

// Appends the row that samples the token after sequence.tokens from logits row `logit_row`. While fewer than min_tokens
// outputs exist, `eos_token_ids` (unless ignored) and the request's stop ids are forbidden.
void add_sampling_row(ops::SamplingBatch& batch, Sequence& sequence, int32_t logit_row,
                      std::span<const int32_t> eos_token_ids);

}  // namespace calandra

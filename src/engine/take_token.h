// What a sampled token does to its choice.
#pragma once

#include <span>
#include <string>

#include "engine/choice.h"
#include "ops/sampling.h"

namespace calandra {

// Appends the token to sequence and answer, and its text, as far as it may be shown, to `text`; ends the choice where
// it must: an end-of-text id or one of the request's, a stop string, repetition, or as many tokens as it may have. A
// row without a token ends it with an error. Returns true when it has ended (sequence.finished).
bool take_token(Choice& choice, const ops::SampledRow& sampled, std::span<const int32_t> eos_token_ids,
                std::string& text);

}  // namespace calandra

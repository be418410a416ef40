// The rows of `calandra sample --jsonl` (goldens: tests/oracle/text/sampling).
#pragma once

#include "base/json.h"
#include "ops/exec_context.h"

namespace calandra {

// One row: {"logits", "params", "prompt_ids", "output_ids", "grammar_allowed_ids", "sampled_id", "num_logprobs",
// "position", "choice"}, all but the logits optional ->
//   {"distribution": {"ids", "probs"}, "greedy_id", "raw_logprobs", "processed_logprobs"}, and "token" when params.seed
//   and position (token index of the sampled token) are given.
// Logits are an array of numbers and "-inf", or a name of `named_logits`. The logprobs are those of sampled_id, or of
// the token when the row has none; without both they are left out. Rows of the goldens can be given whole. Throws
// UsageError naming the key that is wrong, or when no token is left.
json::object sample_row(ExecContext& ctx, const json::object& row, const json::object& named_logits = {});

}  // namespace calandra

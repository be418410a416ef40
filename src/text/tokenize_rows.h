// The rows of `calandra tokenize --jsonl` (goldens: tests/oracle/text/tokenizer).
#pragma once

#include "base/json.h"
#include "text/tokenizer.h"

namespace calandra {

// One row's answer:
//   {"text", "specials": true}          -> {"ids"}
//   {"bytes_hex", "specials": true}     -> {"text", "ids"}        text after repair of what is not UTF-8
//   {"ids"}                             -> {"text", "pieces", "flush", "text_skip_special"}
//   {"ids", "stop", "include_stop_str_in_output", "min_tokens"}
//                                       -> {"text", "stop_reason", "tokens_used", "released", "released_at_end"}
// Rows of the goldens can be given whole: what they say about the result is ignored. Throws UsageError naming the key
// that is wrong.
json::object tokenize_row(const Tokenizer& tokenizer, const json::object& row);

}  // namespace calandra

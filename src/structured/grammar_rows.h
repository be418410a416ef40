// Rows of `calandra grammar --jsonl` (goldens: tests/oracle/text/structured).
#pragma once

#include "base/json.h"
#include "structured/grammar_compiler.h"

namespace calandra {

// A row {"schema", "regex" or "grammar", "accept", "reject"} gives {"accepted", "rejected"}: for each string whether it
// was taken, or refused, as a whole; or {"error"} when the form itself is refused. Strings go through the grammar byte
// by byte, as tokens of a vocabulary of bytes. Throws UsageError naming the key that is wrong.
json::object grammar_row(const json::object& row);

}  // namespace calandra

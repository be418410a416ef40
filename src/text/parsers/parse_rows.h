// Rows of `calandra parse --jsonl` (goldens: tests/oracle/text/parsers).
#pragma once

#include "base/json.h"
#include "text/parsers/answer_parser.h"

namespace calandra {

// A row {"text" or "chunks", "tools", "thinking"} gives {"reasoning", "content", "tool_calls", "deltas"}, where deltas
// are those of the chat API, joined to one per chunk and kind; {"prompt"} gives {"in_reasoning"}. Throws UsageError
// naming the key that is wrong.
json::object parse_row(const json::object& row, ReasoningFormat reasoning, ToolFormat tools);

}  // namespace calandra

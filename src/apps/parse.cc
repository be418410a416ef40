// `calandra parse`: recorded text of models through the parsers of reasoning and tool calls.
#include <fmt/format.h>

#include "apps/jsonl.h"
#include "apps/verbs.h"
#include "base/error.h"
#include "text/parsers/parse_rows.h"

namespace calandra::apps {

int parse(const Options& options) {
  const auto reasoning = reasoning_format(options.reasoning_parser);
  if (!reasoning)
    throw UsageError(
        fmt::format("--reasoning-parser is one of {}, not '{}'", kReasoningParsers, options.reasoning_parser));
  const auto tools = tool_format(options.tool_call_parser);
  if (!tools)
    throw UsageError(
        fmt::format("--tool-call-parser is one of {}, not '{}'", kToolCallParsers, options.tool_call_parser));
  return answer_rows([&](const json::object& row) { return parse_row(row, *reasoning, *tools); });
}

}  // namespace calandra::apps

#include "text/parsers/parse_rows.h"

#include "base/error.h"

namespace calandra {
namespace {

std::string text_of(const json::value& value, const char* key) {
  if (!value.is_string()) throw UsageError(std::string("\"") + key + "\" of the row must be a string");
  return std::string(value.get_string());
}

std::vector<std::string> chunks_of(const json::object& row) {
  if (const json::value* chunks = row.if_contains("chunks")) {
    if (!chunks->is_array()) throw UsageError("\"chunks\" of the row must be a list of strings");
    std::vector<std::string> texts;
    for (const json::value& chunk : chunks->get_array()) texts.push_back(text_of(chunk, "chunks"));
    return texts;
  }
  const json::value* text = row.if_contains("text");
  if (text == nullptr) throw UsageError("a row needs \"text\", \"chunks\" or \"prompt\"");
  return {text_of(*text, "text")};
}

json::object call_header(int call, std::string_view name) {
  return {{"index", call},
          {"id", tool_call_id(0, call)},
          {"type", "function"},
          {"function", {{"name", name}, {"arguments", ""}}}};
}

json::object delta_of(const OutputEvent& event) {
  switch (event.kind) {
    case OutputEvent::Kind::kReasoning:
      return {{"reasoning", event.text}};
    case OutputEvent::Kind::kContent:
      return {{"content", event.text}};
    case OutputEvent::Kind::kToolCallBegin:
      return {{"tool_calls", json::array{call_header(event.call, event.text)}}};
    case OutputEvent::Kind::kArguments:
      return {
          {"tool_calls", json::array{json::object{{"index", event.call}, {"function", {{"arguments", event.text}}}}}}};
    case OutputEvent::Kind::kToolCallEnd:
      return {};
  }
  return {};
}

}  // namespace

json::object parse_row(const json::object& row, ReasoningFormat reasoning, ToolFormat tools) {
  if (const json::value* prompt = row.if_contains("prompt"))
    return {{"in_reasoning", ends_in_reasoning(text_of(*prompt, "prompt"))}};
  AnswerParser::Options options{.reasoning = reasoning, .tools = tools};
  if (const json::value* list = row.if_contains("tools"); list != nullptr && !list->is_null()) {
    if (!list->is_array()) throw UsageError("\"tools\" of the row must be a list");
    options.tool_list = std::make_shared<const json::array>(list->get_array());
  }
  if (const json::value* thinking = row.if_contains("thinking"); thinking != nullptr) {
    if (!thinking->is_bool()) throw UsageError("\"thinking\" of the row must be true or false");
    options.thinking = thinking->get_bool();
  }
  AnswerParser parser(options);
  ParsedAnswer answer;
  json::array deltas;
  const auto take = [&](const OutputEvents& events) {
    answer.add(events);
    for (const OutputEvent& event : events)
      if (json::object delta = delta_of(event); !delta.empty()) deltas.push_back(std::move(delta));
  };
  for (const std::string& chunk : chunks_of(row)) take(parser.add(chunk));
  take(parser.finish());
  json::array calls;
  for (const ParsedAnswer::ToolCall& call : answer.tool_calls) {
    const int index = static_cast<int>(calls.size());
    calls.push_back({{"id", tool_call_id(0, index)},
                     {"type", "function"},
                     {"function", {{"name", call.name}, {"arguments", call.arguments}}}});
  }
  return {{"reasoning", answer.reasoning},
          {"content", answer.content},
          {"tool_calls", std::move(calls)},
          {"deltas", std::move(deltas)}};
}

}  // namespace calandra

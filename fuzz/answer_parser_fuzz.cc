// Any bytes as the text of an answer: however it is cut, the same reasoning, content and calls, whose arguments are
// JSON.
#include "text/parsers/answer_parser.h"

#include <cstddef>
#include <cstdint>
#include <cstdlib>

namespace {

using namespace calandra;

constexpr size_t kShort = 256;  // bytes of a text that is cut at every place, too

ParsedAnswer parse(const AnswerParser::Options& options, std::string_view text, size_t every) {
  AnswerParser parser(options);
  ParsedAnswer answer;
  for (size_t at = 0; at < text.size(); at += every) answer.add(parser.add(text.substr(at, every)));
  answer.add(parser.finish());
  return answer;
}

ParsedAnswer parse_cut_at(const AnswerParser::Options& options, std::string_view text, size_t place) {
  AnswerParser parser(options);
  ParsedAnswer answer;
  answer.add(parser.add(text.substr(0, place)));
  answer.add(parser.add(text.substr(place)));
  answer.add(parser.finish());
  return answer;
}

bool same(const ParsedAnswer& a, const ParsedAnswer& b) {
  if (a.reasoning != b.reasoning || a.content != b.content || a.tool_calls.size() != b.tool_calls.size()) return false;
  for (size_t i = 0; i < a.tool_calls.size(); ++i)
    if (a.tool_calls[i].name != b.tool_calls[i].name || a.tool_calls[i].arguments != b.tool_calls[i].arguments)
      return false;
  return true;
}

bool is_utf8(std::string_view text) {
  boost::system::error_code failed;
  json::parse(json::serialize(json::value(json::string(text))), failed);
  return !failed;
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* bytes, size_t size) {
  static const auto kTools = std::make_shared<const json::array>(
      parse_json(R"([{"function": {"name": "f", "parameters": {"properties": {"s": {"type": "string"},
        "i": {"type": "integer"}, "n": {"type": ["number", "null"]}, "o": {"type": "object"},
        "z": {"anyOf": [{"type": "string"}, {"type": "null"}]}}}}}])",
                 "tools")
          .as_array());
  if (size == 0 || size > 4096) return 0;
  const AnswerParser::Options options{.reasoning = static_cast<ReasoningFormat>(bytes[0] % 3),
                                      .thinking = (bytes[0] & 64) != 0,
                                      .tools = static_cast<ToolFormat>(bytes[0] / 3 % 3),
                                      .tool_list = kTools,
                                      .parallel_tool_calls = (bytes[0] & 128) == 0};
  const std::string_view text(reinterpret_cast<const char*>(bytes) + 1, size - 1);
  const ParsedAnswer whole = parse(options, text, text.size() + 1);
  for (const size_t every : {1, 2, 7})
    if (!same(whole, parse(options, text, every))) std::abort();
  if (text.size() <= kShort)
    for (size_t place = 1; place < text.size(); ++place)
      if (!same(whole, parse_cut_at(options, text, place))) std::abort();
  if (!is_utf8(text)) return 0;  // the engine's text always is
  for (const ParsedAnswer::ToolCall& call : whole.tool_calls) {
    boost::system::error_code failed;
    const json::value arguments = json::parse(call.arguments, failed, {}, {.max_depth = 512});
    if (failed || !arguments.is_object()) std::abort();
  }
  return 0;
}

// AnswerParser: the text of one answer, as it arrives, to reasoning, content and tool calls.
//
// A pure state machine: what it gives depends on the text and the options, never on where the text was cut. All
// reasoning comes before all content; no event holds part of a tag that was consumed, and what was held back as a
// beginning of a tag comes when it turns out to be text.
#pragma once

#include <memory>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <variant>

#include "base/json.h"
#include "text/parsers/json_tool_parser.h"
#include "text/parsers/output_events.h"
#include "text/parsers/reasoning_parser.h"
#include "text/parsers/xml_tool_parser.h"
#include "text/text_piece.h"

namespace calandra {

enum class ReasoningFormat { kNone, kQwen3, kDeepSeekR1 };
enum class ToolFormat { kNone, kQwen3Coder, kHermes };

// By vLLM's names and their aliases ("" and "none": kNone); nothing for an unknown one. kReasoningParsers and
// kToolCallParsers list the names for messages.
std::optional<ReasoningFormat> reasoning_format(std::string_view name);
std::optional<ToolFormat> tool_format(std::string_view name);
inline constexpr std::string_view kReasoningParsers = "qwen3, deepseek_r1";
inline constexpr std::string_view kToolCallParsers = "qwen3_coder, qwen3_xml, hermes";

// What a model writes, by its chat template.
ReasoningFormat reasoning_format_of_template(std::string_view chat_template);
ToolFormat tool_format_of_template(std::string_view chat_template);

// Whether an answer to this prompt begins inside of a think block: the last of the two tags decides.
bool ends_in_reasoning(std::string_view prompt);
// The same of a rendered chat: tags count where the template wrote them, and in the last piece, which is of the
// template too or the input that the answer continues. Other input may speak of the tags.
bool ends_in_reasoning(std::span<const TextPiece> prompt);

class AnswerParser {
 public:
  struct Options {
    ReasoningFormat reasoning = ReasoningFormat::kNone;
    bool thinking = false;                                   // the prompt ended inside of a think block
    ToolFormat tools = ToolFormat::kNone;                    // kNone with tool_choice "none" and without tools
    std::shared_ptr<const json::array> tool_list = nullptr;  // OpenAI's, for the types of arguments
    bool parallel_tool_calls = true;                         // false: calls behind the first are left out
  };
  explicit AnswerParser(const Options& options);

  // What is certain after this text.
  OutputEvents add(std::string_view text) { return push(text, false); }
  // The rest, at the end of the answer; nothing may be added afterwards.
  OutputEvents finish() { return push("", true); }

  // Whether all text so far was reasoning.
  bool in_reasoning() const { return reasoning_ && !reasoning_->in_content(); }

 private:
  OutputEvents push(std::string_view text, bool last);

  std::optional<ReasoningParser> reasoning_;
  std::variant<std::monostate, XmlToolParser, JsonToolParser> tools_;
  bool parallel_tool_calls_;
};

// An answer as a whole.
struct ParsedAnswer {
  struct ToolCall {
    std::string name, arguments;  // arguments: JSON text of an object
  };
  std::string reasoning, content;
  std::vector<ToolCall> tool_calls;

  void add(const OutputEvents& events);
};

// "call_" and 24 hexadecimal digits that belong to the seed and the index of the call; another seed gives other ids.
std::string tool_call_id(uint64_t seed, int call);

}  // namespace calandra

#include "text/parsers/answer_parser.h"

#include <fmt/format.h>

namespace calandra {

std::optional<ReasoningFormat> reasoning_format(std::string_view name) {
  if (name.empty() || name == "none") return ReasoningFormat::kNone;
  if (name == "qwen3") return ReasoningFormat::kQwen3;
  if (name == "deepseek_r1" || name == "deepseek-r1") return ReasoningFormat::kDeepSeekR1;
  return std::nullopt;
}

std::optional<ToolFormat> tool_format(std::string_view name) {
  if (name.empty() || name == "none") return ToolFormat::kNone;
  if (name == "qwen3_coder" || name == "qwen3_xml") return ToolFormat::kQwen3Coder;
  if (name == "hermes" || name == "qwen25") return ToolFormat::kHermes;  // qwen25: SGLang's name
  return std::nullopt;
}

ToolFormat tool_format_of_template(std::string_view chat_template) {
  const auto has = [&](std::string_view text) { return chat_template.find(text) != std::string_view::npos; };
  if (!has(kToolCallBegin)) return ToolFormat::kNone;
  return has("<function=") ? ToolFormat::kQwen3Coder : ToolFormat::kHermes;
}

ReasoningFormat reasoning_format_of_template(std::string_view chat_template) {
  if (chat_template.find(kThinkEnd) == std::string_view::npos) return ReasoningFormat::kNone;
  return tool_format_of_template(chat_template) == ToolFormat::kQwen3Coder ? ReasoningFormat::kQwen3
                                                                           : ReasoningFormat::kDeepSeekR1;
}

bool ends_in_reasoning(std::string_view prompt) {
  const size_t begin = prompt.rfind(kThinkBegin), end = prompt.rfind(kThinkEnd);
  return begin != std::string_view::npos && (end == std::string_view::npos || end < begin);
}

bool ends_in_reasoning(std::span<const TextPiece> prompt) {
  for (size_t i = prompt.size(); i > 0; --i) {
    const TextPiece& piece = prompt[i - 1];
    if (piece.is_input && i < prompt.size()) continue;
    if (ends_in_reasoning(piece.text)) return true;
    if (piece.text.find(kThinkEnd) != std::string_view::npos) return false;
  }
  return false;
}

AnswerParser::AnswerParser(const Options& options) : parallel_tool_calls_(options.parallel_tool_calls) {
  if (options.reasoning != ReasoningFormat::kNone)
    reasoning_.emplace(options.thinking, options.reasoning == ReasoningFormat::kQwen3);
  if (options.tools == ToolFormat::kQwen3Coder)
    tools_.emplace<XmlToolParser>(options.tool_list ? options.tool_list : std::make_shared<const json::array>());
  else if (options.tools == ToolFormat::kHermes)
    tools_.emplace<JsonToolParser>();
}

OutputEvents AnswerParser::push(std::string_view text, bool last) {
  OutputEvents events;
  std::string content;
  if (reasoning_) {
    ReasoningParser::Parts parts = reasoning_->push(text, last);
    if (!parts.reasoning.empty()) events.push_back({OutputEvent::Kind::kReasoning, std::move(parts.reasoning)});
    content = std::move(parts.content);
  } else {
    content = text;
  }
  if (auto* xml = std::get_if<XmlToolParser>(&tools_))
    xml->push(content, last, events);
  else if (auto* calls = std::get_if<JsonToolParser>(&tools_))
    calls->push(content, last, events);
  else if (!content.empty())
    events.push_back({OutputEvent::Kind::kContent, std::move(content)});
  if (!parallel_tool_calls_) std::erase_if(events, [](const OutputEvent& event) { return event.call > 0; });
  return events;
}

void ParsedAnswer::add(const OutputEvents& events) {
  for (const OutputEvent& event : events) {
    switch (event.kind) {
      case OutputEvent::Kind::kReasoning:
        reasoning += event.text;
        break;
      case OutputEvent::Kind::kContent:
        content += event.text;
        break;
      case OutputEvent::Kind::kToolCallBegin:
        tool_calls.push_back({event.text, ""});
        break;
      case OutputEvent::Kind::kArguments:
        tool_calls.back().arguments += event.text;
        break;
      case OutputEvent::Kind::kToolCallEnd:
        break;
    }
  }
}

std::string tool_call_id(uint64_t seed, int call) {
  // splitmix64, two outputs of it
  const auto mix = [](uint64_t x) {
    x += 0x9E3779B97F4A7C15;
    x = (x ^ x >> 30) * 0xBF58476D1CE4E5B9;
    x = (x ^ x >> 27) * 0x94D049BB133111EB;
    return x ^ x >> 31;
  };
  const uint64_t first = mix(seed + mix(static_cast<uint64_t>(call))), second = mix(first);
  return fmt::format("call_{:016x}{:08x}", first, static_cast<uint32_t>(second));
}

}  // namespace calandra

// The chat template of a model: messages to prompt text, as transformers' apply_chat_template renders it.
#pragma once

#include "base/json.h"
#include "text/jinja/failure.h"
#include "text/jinja/template.h"
#include "text/text_piece.h"

#include <ctime>
#include <string>
#include <string_view>
#include <vector>

namespace calandra {

struct RenderedPrompt {
  std::string text;
  std::vector<TextPiece> pieces;     // the same text, cut where its origin changes
  std::vector<size_t> message_ends;  // byte offsets, rising: where a later turn of the same talk will agree up to
};

class ChatTemplate {
 public:
  // `special_tokens` (bos_token, eos_token, …) are variables that count as the template's own text.
  // Throws jinja::Failure with the line.
  explicit ChatTemplate(std::string_view source, json::object special_tokens = {}, jinja::Budgets budgets = {});

  // `tools`: null or empty: none. `kwargs` go to the template (add_generation_prompt, enable_thinking, …), except
  // continue_final_message: with it the text ends with the content of the last message.
  // All strings of the three are user input. Throws jinja::Failure; is_raised_by_template() tells what the client may
  // read. May run on several threads at once.
  RenderedPrompt render(const json::value& messages, const json::value& tools, const json::object& kwargs,
                        const std::tm& now) const;

  // How many of the last messages are tried as message ends; each costs one more rendering.
  static constexpr size_t kMessageEndsTried = 4;

 private:
  jinja::MarkedString render_once(const json::value& messages, const json::value& tools, const json::object& kwargs,
                                  const std::tm& now) const;
  std::vector<size_t> message_ends(const std::string& text, const json::array& messages, const json::value& tools,
                                   json::object kwargs, const std::tm& now) const;

  jinja::Template template_;
  json::object special_tokens_;
  jinja::Budgets budgets_;
};

// The messages with string arguments of tool calls parsed where they are JSON objects, as servers do before rendering.
json::value with_parsed_arguments(json::value messages);

// "2026-01-15 12:30:45" with its week day and day of the year. Throws UsageError.
std::tm parse_clock(std::string_view text);

}  // namespace calandra

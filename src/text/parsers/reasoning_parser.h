// ReasoningParser: cuts the output into reasoning and the content behind it, as it arrives.
//
// With `thinking` (the prompt ended inside an open think block) the text is reasoning up to </think>; a leading <think>
// is dropped. Without, all is content, unless the text itself begins with <think>. With `call_ends` (parser qwen3) a
// tool call, "<tool_call>", white space, "<function=", ends the reasoning too and belongs to the content.
#pragma once

#include <string>
#include <string_view>

namespace calandra {

class ReasoningParser {
 public:
  ReasoningParser(bool thinking, bool call_ends) : thinking_(thinking), call_ends_(call_ends) {}

  struct Parts {
    std::string reasoning, content;
  };
  // What is certain after this piece of text; `last`: no more text comes.
  Parts push(std::string_view text, bool last);

  bool in_content() const { return state_ == State::kContent; }

 private:
  enum class State { kBegin, kReasoning, kContent };
  bool begin(bool last);
  bool reason(Parts& parts, bool last);

  bool thinking_, call_ends_;
  State state_ = State::kBegin;
  std::string held_;
};

}  // namespace calandra

// What the forms of a reply are made of: the parts of an answer, and how it ended.
#pragma once

#include <string>
#include <string_view>

#include "engine/request.h"
#include "text/parsers/answer_parser.h"

namespace calandra::apps {

// The events of an AnswerParser without texts of nothing but space: between a thought and a call, say, where a block of
// its own would be an item that says nothing. Space before other text stays.
class FormParts {
 public:
  FormParts(const AnswerParser::Options& options, bool with_reasoning)
      : parser_(options), with_reasoning_(with_reasoning) {}

  OutputEvents add(std::string_view text) { return pick(parser_.add(text)); }
  OutputEvents finish() { return pick(parser_.finish()); }
  bool in_reasoning() const { return parser_.in_reasoning(); }

 private:
  OutputEvents pick(OutputEvents events);

  AnswerParser parser_;
  const bool with_reasoning_;
  bool in_text_ = false;  // some of it was given
  std::string space_;     // held back before the first of it
};

struct FormEnd {
  FinishReason reason = FinishReason::kStop;
  std::string stop;  // the stop string; empty otherwise
  int64_t prompt_tokens = 0, cached_tokens = 0, output_tokens = 0, reasoning_tokens = 0;
};

}  // namespace calandra::apps

#include "text/parsers/reasoning_parser.h"

#include "text/parsers/output_events.h"

namespace calandra {

// Decides how the text starts; false: that is not certain yet.
bool ReasoningParser::begin(bool last) {
  const size_t text = skip_space(held_, 0);
  switch (match_tag(held_, text, kThinkBegin)) {
    case TagMatch::kYes:
      held_.erase(0, text + kThinkBegin.size());
      state_ = State::kReasoning;
      return true;
    case TagMatch::kMore:
      if (!last) return false;
      [[fallthrough]];
    case TagMatch::kNo:
      state_ = thinking_ ? State::kReasoning : State::kContent;
      return true;
  }
  return true;
}

// Moves the reasoning of `held_` into `parts`; true when it has ended.
bool ReasoningParser::reason(Parts& parts, bool last) {
  size_t at = 0;  // up to here it is reasoning
  while (true) {
    at = held_.find('<', at);
    if (at == std::string::npos) {
      at = held_.size();
      break;
    }
    const TagMatch close = match_tag(held_, at, kThinkEnd);
    TagMatch call = call_ends_ ? match_tag(held_, at, kToolCallBegin) : TagMatch::kNo;
    if (call == TagMatch::kYes) call = match_tag(held_, skip_space(held_, at + kToolCallBegin.size()), "<function=");
    if (close == TagMatch::kYes || call == TagMatch::kYes) {
      parts.reasoning.append(held_, 0, at);
      held_.erase(0, close == TagMatch::kYes ? at + kThinkEnd.size() : at);
      return true;
    }
    if ((close == TagMatch::kMore || call == TagMatch::kMore) && !last) break;
    ++at;
  }
  parts.reasoning.append(held_, 0, at);
  held_.erase(0, at);
  return false;
}

ReasoningParser::Parts ReasoningParser::push(std::string_view text, bool last) {
  Parts parts;
  held_ += text;
  if (state_ == State::kBegin && !begin(last)) return parts;
  if (state_ == State::kReasoning && reason(parts, last)) state_ = State::kContent;
  if (state_ == State::kContent) {
    parts.content = std::move(held_);
    held_.clear();
  }
  return parts;
}

}  // namespace calandra

#include "text/parsers/xml_tool_parser.h"

#include <algorithm>

#include "base/json_member.h"
#include "text/parsers/tool_list.h"

namespace calandra {
namespace {

constexpr std::string_view kFunctionBegin = "<function=", kFunctionEnd = "</function>";
constexpr std::string_view kParameterBegin = "<parameter=", kParameterEnd = "</parameter>";

bool is_name_character(char c) {
  return std::string_view("{}<>\"'").find(c) == std::string_view::npos &&
         kOutputSpace.find(c) == std::string_view::npos;
}

// The value without one newline at each end.
std::string_view inner(std::string_view value) {
  if (value.starts_with('\n')) value.remove_prefix(1);
  if (value.ends_with('\n')) value.remove_suffix(1);
  return value;
}

std::string_view escaped(std::string_view quoted) { return quoted.substr(1, quoted.size() - 2); }

}  // namespace

void XmlToolParser::emit_arguments(std::string text, OutputEvents& events) {
  if (!text.empty()) events.push_back({OutputEvent::Kind::kArguments, std::move(text), calls_});
}

bool XmlToolParser::content(bool last, OutputEvents& events) {
  size_t at = 0;
  while ((at = held_.find('<', at)) != std::string::npos) {
    TagMatch match = match_tag(held_, at, kToolCallBegin);
    size_t function = at;
    if (match == TagMatch::kYes) {
      function = skip_space(held_, at + kToolCallBegin.size());
      match = match_tag(held_, function, kFunctionBegin);
    }
    if (match == TagMatch::kYes || (match == TagMatch::kMore && !last)) {
      pieces_.add(std::string_view(held_).substr(0, at), events);
      held_.erase(0, at);
      return match == TagMatch::kYes && begin_call(function - at, last, events);
    }
    ++at;
  }
  pieces_.add(held_, events);
  held_.clear();
  return false;
}

// `function`: where "<function=" stands in held_.
bool XmlToolParser::begin_call(size_t function, bool last, OutputEvents& events) {
  const size_t begin = function + kFunctionBegin.size();
  size_t end = begin;
  while (end < held_.size() && is_name_character(held_[end])) ++end;
  if (end == held_.size() && !last) return false;
  if (end == held_.size() || held_[end] != '>' || end == begin) {  // no call
    pieces_.add(std::string_view(held_).substr(0, function), events);
    pieces_.cut();
    held_.erase(0, function);
    return true;
  }
  pieces_.begin_call();
  std::string name = held_.substr(begin, end - begin);
  const std::optional<Tool> tool = find_tool(*tools_, name);
  const json::object* parameters = tool && tool->parameters != nullptr ? tool->parameters->if_object() : nullptr;
  const json::value* properties = parameters == nullptr ? nullptr : find_field(*parameters, "properties");
  properties_ = properties == nullptr ? nullptr : properties->if_object();
  any_argument_ = false;
  events.push_back({OutputEvent::Kind::kToolCallBegin, std::move(name), calls_});
  held_.erase(0, end + 1);
  state_ = State::kArguments;
  return true;
}

bool XmlToolParser::arguments(bool last, OutputEvents& events) {
  const size_t at = skip_space(held_, 0);
  const TagMatch match = match_tag(held_, at, kParameterBegin);
  const size_t close = match == TagMatch::kYes ? held_.find('>', at) : std::string::npos;
  if (match != TagMatch::kNo && close == std::string::npos && !last) return false;
  if (close == std::string::npos) {
    emit_arguments(any_argument_ ? "}" : "{}", events);
    events.push_back({OutputEvent::Kind::kToolCallEnd, "", calls_++});
    state_ = State::kFunctionEnd;
    return true;
  }
  const size_t begin = at + kParameterBegin.size();
  const std::string key = held_.substr(begin, close - begin);
  type_ = argument_type(properties_ == nullptr ? nullptr : properties_->if_contains(key));
  emit_arguments((any_argument_ ? ", " : "{") + json_string(key) + ": ", events);
  any_argument_ = true;
  held_.erase(0, close + 1);
  scanned_ = streamed_ = 0;
  depth_ = 0;
  stream_stopped_ = false;
  state_ = State::kValue;
  return true;
}

// Whether the format goes on at `at`, behind a </parameter>.
TagMatch XmlToolParser::goes_on_at(size_t at, bool last) const {
  at = skip_space(held_, at);
  if (at == held_.size()) return last ? TagMatch::kYes : TagMatch::kMore;
  TagMatch best = TagMatch::kNo;
  for (const std::string_view tag : {kFunctionEnd, kToolCallEnd}) {
    const TagMatch match = match_tag(held_, at, tag);
    if (match == TagMatch::kYes) return match;
    if (match == TagMatch::kMore) best = match;
  }
  const TagMatch next = match_tag(held_, at, kParameterBegin);
  if (next == TagMatch::kMore) best = next;
  if (next == TagMatch::kYes) {
    const size_t begin = at + kParameterBegin.size(), close = held_.find('>', begin);
    if (close == std::string::npos)
      best = TagMatch::kMore;
    else if (properties_ == nullptr || properties_->empty() || known(held_.substr(begin, close - begin)))
      return TagMatch::kYes;
  }
  return best == TagMatch::kMore && last ? TagMatch::kNo : best;
}

bool XmlToolParser::find_value_end(bool last, ValueEnd& found) {
  while ((scanned_ = std::min(held_.find('<', scanned_), held_.size())) < held_.size()) {
    const bool line_start = scanned_ > 0 && held_[scanned_ - 1] == '\n';
    const TagMatch close = match_tag(held_, scanned_, kParameterEnd);
    const TagMatch open = line_start ? match_tag(held_, scanned_, kParameterBegin) : TagMatch::kNo;
    if (!last && (close == TagMatch::kMore || open == TagMatch::kMore)) return false;
    if (close == TagMatch::kYes) {
      const size_t behind = scanned_ + kParameterEnd.size();
      if (depth_ == 0) {
        const TagMatch goes_on = goes_on_at(behind, last);
        if (goes_on == TagMatch::kMore) return false;
        if (goes_on == TagMatch::kYes) {
          found = {scanned_, behind};
          return true;
        }
      }
      depth_ = std::max(depth_ - 1, 0);
      scanned_ = behind;
    } else {
      if (open == TagMatch::kYes) ++depth_;
      ++scanned_;
    }
  }
  if (last) found = repaired_value_end();
  return last;
}

// Of a value whose </parameter> never came: the next parameter of the tool, the end of the function, or all.
XmlToolParser::ValueEnd XmlToolParser::repaired_value_end() const {
  for (size_t at = held_.find(kParameterBegin); at != std::string::npos; at = held_.find(kParameterBegin, at + 1)) {
    const size_t begin = at + kParameterBegin.size(), close = held_.find_first_of(">\n", begin);
    if ((at == 0 || held_[at - 1] == '\n') && close != std::string::npos && held_[close] == '>' &&
        known(held_.substr(begin, close - begin)))
      return {at, at};
  }
  for (size_t at = held_.find(kFunctionEnd); at != std::string::npos; at = held_.find(kFunctionEnd, at + 1)) {
    const size_t behind = skip_space(held_, at + kFunctionEnd.size());
    if (behind == held_.size() || match_tag(held_, behind, kToolCallEnd) == TagMatch::kYes) return {at, at};
  }
  return {held_.size(), held_.size()};
}

// Passes on what of a string is certain, whatever comes.
void XmlToolParser::stream_string(OutputEvents& events) {
  if (!type_.is_string() || stream_stopped_) return;
  size_t end = streamed_;
  while ((end = std::min(held_.find('<', end), held_.size())) < held_.size()) {
    TagMatch most = TagMatch::kNo;
    for (const std::string_view tag : {kParameterEnd, kParameterBegin, kFunctionEnd}) {
      const TagMatch match = match_tag(held_, end, tag);
      if (match == TagMatch::kYes) stream_stopped_ = true;
      if (match != TagMatch::kNo) most = match;
    }
    if (most != TagMatch::kNo) break;
    ++end;
  }
  if (end > 0 && held_[end - 1] == '\n') --end;  // perhaps the one that is cut off
  const size_t begin = streamed_ > 0 ? streamed_ : held_.starts_with('\n') ? 1 : 0;
  if (type_.nullable && end < begin + 6 && streamed_ == 0) return;  // it may be null
  if (end <= begin) return;
  const std::string part = json_string(std::string_view(held_).substr(begin, end - begin));
  emit_arguments((streamed_ == 0 ? "\"" : "") + std::string(escaped(part)), events);
  streamed_ = end;
}

bool XmlToolParser::value(bool last, OutputEvents& events) {
  ValueEnd found;
  if (!find_value_end(last, found)) {
    stream_string(events);
    return false;
  }
  const std::string_view text = std::string_view(held_).substr(0, found.end);
  if (streamed_ > 0) {
    const std::string_view rest = text.substr(streamed_);
    emit_arguments(
        std::string(escaped(json_string(rest.ends_with('\n') ? rest.substr(0, rest.size() - 1) : rest))) + "\"",
        events);
  } else {
    emit_arguments(argument_json(inner(text), type_), events);
  }
  held_.erase(0, found.next);
  state_ = State::kArguments;
  return true;
}

bool XmlToolParser::function_end(bool last) {
  size_t at = 0;
  while ((at = std::min(held_.find('<', at), held_.size())) < held_.size()) {
    const TagMatch function = match_tag(held_, at, kFunctionEnd), call = match_tag(held_, at, kToolCallEnd);
    if (function == TagMatch::kYes || call == TagMatch::kYes) {
      held_.erase(0, function == TagMatch::kYes ? at + kFunctionEnd.size() : at);
      state_ = State::kCallEnd;
      return true;
    }
    if (!last && (function == TagMatch::kMore || call == TagMatch::kMore)) break;
    ++at;
  }
  held_.erase(0, at);
  return false;
}

bool XmlToolParser::call_end(bool last) {
  const size_t at = skip_space(held_, 0);
  const TagMatch match = match_tag(held_, at, kToolCallEnd);
  if (match == TagMatch::kMore && !last) return false;
  if (match == TagMatch::kYes) held_.erase(0, at + kToolCallEnd.size());
  state_ = State::kContent;
  return true;
}

void XmlToolParser::push(std::string_view text, bool last, OutputEvents& events) {
  held_ += text;
  const auto step = [&] {
    switch (state_) {
      case State::kContent:
        return content(last, events);
      case State::kArguments:
        return arguments(last, events);
      case State::kValue:
        return value(last, events);
      case State::kFunctionEnd:
        return function_end(last);
      case State::kCallEnd:
        return call_end(last);
    }
    return false;
  };
  while (step()) {
  }
  if (last) pieces_.finish(events);
}

}  // namespace calandra

#include "text/parsers/json_tool_parser.h"

#include <optional>
#include <utility>

#include "base/error.h"
#include "base/json.h"

namespace calandra {
namespace {

struct Call {
  std::string name, arguments;
};

std::optional<json::value> parse_text(std::string_view text) {
  boost::system::error_code failed;
  json::parse_options options;
  options.max_depth = 256;
  json::value value = json::parse(text, failed, {}, options);
  if (failed) return std::nullopt;
  return value;
}

std::optional<Call> call_of(std::string_view text) {
  std::optional<json::value> value = parse_text(text);
  if (!value || !value->is_object()) return std::nullopt;
  const json::value* name = value->get_object().if_contains("name");
  if (name == nullptr || !name->is_string() || name->get_string().empty()) return std::nullopt;
  json::value arguments = json::object();
  if (const json::value* given = value->get_object().if_contains("arguments")) arguments = *given;
  if (arguments.is_string()) {
    std::optional<json::value> inner = parse_text(arguments.get_string());
    if (!inner) return std::nullopt;
    json::value moved = std::move(*inner);
    arguments = std::move(moved);
  }
  if (!arguments.is_object()) return std::nullopt;
  return Call{std::string(name->get_string()), to_json(arguments)};
}

// The name of a call whose object, up to the brace of a member of it, is this, if that member is its arguments.
std::optional<std::string> name_before_arguments(std::string_view text) {
  std::optional<json::value> value = parse_text(std::string(text) + "null}");
  if (!value || !value->is_object() || value->get_object().empty()) return std::nullopt;
  const json::object& object = value->get_object();
  const json::value* name = object.if_contains("name");
  if (name == nullptr || !name->is_string() || name->get_string().empty()) return std::nullopt;
  if ((object.end() - 1)->key() != "arguments") return std::nullopt;
  return std::string(name->get_string());
}

bool ends_with_key(std::string_view text, std::string_view key) {
  for (const std::string_view end : {std::string_view(":"), key}) {
    text = text.substr(0, text.find_last_not_of(kOutputSpace) + 1);
    if (!text.ends_with(end)) return false;
    text.remove_suffix(end.size());
  }
  return true;
}

}  // namespace

void JsonToolParser::drop(size_t size) {
  begin_ += size;
  scanned_ = 0;
  depth_ = 0;
  in_string_ = escaped_ = met_arguments_ = false;
}

void JsonToolParser::add_content(size_t size, OutputEvents& events) {
  pieces_.add(text().substr(0, size), events);
  drop(size);
}

JsonToolParser::Follow JsonToolParser::follow(size_t body) {
  const std::string_view text = this->text();
  while (scanned_ < text.size()) {
    const char c = text[scanned_++];
    if (in_string_) {
      if (static_cast<unsigned char>(c) < 0x20) return Follow::kFault;  // JSON has no such strings
      if (!escaped_ && c == '"') in_string_ = false;
      escaped_ = !escaped_ && c == '\\';
    } else if (c == '"') {
      in_string_ = true;
    } else if (c == '{' || c == '[') {
      ++depth_;
      if (depth_ != 2 || c != '{' || met_arguments_) continue;
      met_arguments_ = ends_with_key(text.substr(body, scanned_ - 1 - body), "\"arguments\"");
      if (met_arguments_) return Follow::kArguments;
    } else if (c == '}' || c == ']') {
      if (--depth_ == 0) return Follow::kEnd;
    } else if (c == '<') {  // a tag: what is none would be looked through again from each tag inside of it
      return Follow::kFault;
    }
  }
  return Follow::kMore;
}

bool JsonToolParser::content(bool last, OutputEvents& events) {
  const std::string_view text = this->text();
  if (scanned_ == 0) {
    const size_t tag = find_tag(text, 0, kToolCallBegin);
    if (tag > 0) add_content(tag, events);
    if (tag == text.size()) return false;
    if (tag > 0) return true;
    if (match_tag(text, 0, kToolCallBegin) == TagMatch::kMore) {
      if (last) add_content(text.size(), events);
      return false;
    }
  }
  const auto refuse = [&] {
    add_content(kToolCallBegin.size(), events);
    pieces_.cut();
    return true;
  };
  const size_t body = skip_space(text, kToolCallBegin.size());
  if (body == text.size()) return last ? refuse() : false;
  if (text[body] != '{') return refuse();
  if (scanned_ == 0) scanned_ = body;
  if (scanned_ == body || depth_ > 0) {
    const Follow followed = follow(body);
    if (followed == Follow::kFault) return refuse();
    if (followed == Follow::kMore) return last ? refuse() : false;
    if (followed == Follow::kArguments) {
      const size_t brace = scanned_ - 1;
      if (auto name = name_before_arguments(text.substr(body, brace - body)))
        begin_call(brace, *std::move(name), events);
      return true;
    }
  }
  const size_t behind = skip_space(text, scanned_);
  switch (match_tag(text, behind, kToolCallEnd)) {
    case TagMatch::kMore:
      if (!last) return false;
      if (behind < text.size()) return refuse();
      break;
    case TagMatch::kNo:
      return refuse();
    case TagMatch::kYes:
      break;
  }
  std::optional<Call> call = call_of(text.substr(body, scanned_ - body));
  if (!call) return refuse();
  begin_call(behind, std::move(call->name), events);
  events.push_back({OutputEvent::Kind::kArguments, std::move(call->arguments), calls_});
  end_call(State::kClosing, events);
  return true;
}

void JsonToolParser::begin_call(size_t size, std::string name, OutputEvents& events) {
  pieces_.begin_call();
  events.push_back({OutputEvent::Kind::kToolCallBegin, std::move(name), calls_});
  drop(size);
  state_ = State::kArguments;
  follower_ = {};
}

void JsonToolParser::end_call(State next, OutputEvents& events) {
  events.push_back({OutputEvent::Kind::kToolCallEnd, "", calls_++});
  state_ = next;
}

bool JsonToolParser::arguments(bool last, OutputEvents& events) {
  std::string json;
  scanned_ += follower_.push(text().substr(scanned_), json);
  const bool ends = follower_.complete() || follower_.broken() || last;
  if (ends && !follower_.complete()) json += follower_.closing();
  if (!json.empty()) events.push_back({OutputEvent::Kind::kArguments, std::move(json), calls_});
  const size_t held = follower_.held_bytes();
  drop(scanned_ - held);
  if (!ends) {
    scanned_ = held;
    return false;
  }
  end_call(follower_.complete() ? State::kBehind : State::kContent, events);
  return true;
}

bool JsonToolParser::behind_arguments(bool last) {
  if (scanned_ == 0) drop(skip_space(text(), 0));
  if (text().empty()) return false;
  state_ = State::kClosing;
  if (text().front() != ',') return true;
  // More members, which mean nothing.
  if (scanned_ == 0) depth_ = 1;
  met_arguments_ = true;
  const Follow followed = follow(0);
  if (followed == Follow::kEnd) {
    drop(scanned_);
  } else if (followed == Follow::kFault || last) {
    drop(0);
    state_ = State::kContent;
  } else {
    state_ = State::kBehind;
    return false;
  }
  return true;
}

bool JsonToolParser::closing(bool last) {
  size_t at = 0;
  while (at < text().size() && (text()[at] == '}' || kOutputSpace.find(text()[at]) != std::string_view::npos)) ++at;
  drop(at);
  const TagMatch match = match_tag(text(), 0, kToolCallEnd);
  if (match == TagMatch::kMore && !last) return false;
  if (match == TagMatch::kYes) drop(kToolCallEnd.size());
  state_ = State::kContent;
  return true;
}

void JsonToolParser::push(std::string_view text, bool last, OutputEvents& events) {
  held_ += text;
  const auto step = [&] {
    switch (state_) {
      case State::kContent:
        return content(last, events);
      case State::kArguments:
        return arguments(last, events);
      case State::kBehind:
        return behind_arguments(last);
      case State::kClosing:
        return closing(last);
    }
    return false;
  };
  while (step()) {
  }
  held_.erase(0, begin_);
  begin_ = 0;
  if (last) pieces_.finish(events);
}

}  // namespace calandra

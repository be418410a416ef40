#include "text/parsers/json_tool_parser.h"

#include <optional>

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

}  // namespace

void JsonToolParser::content(size_t size, OutputEvents& events) {
  pieces_.add(std::string_view(held_).substr(0, size), events);
  held_.erase(0, size);
  scanned_ = 0;
  depth_ = 0;
  in_string_ = escaped_ = false;
}

// One decision at the beginning of held_; false: it needs more text.
bool JsonToolParser::step(bool last, OutputEvents& events) {
  const std::string_view text = held_;
  if (scanned_ == 0) {
    const size_t tag = find_tag(text, 0, kToolCallBegin);
    if (tag > 0) {
      content(tag, events);
      return !held_.empty();
    }
    if (text.empty()) return false;
    if (match_tag(text, 0, kToolCallBegin) == TagMatch::kMore) {
      if (last) content(text.size(), events);
      return false;
    }
  }
  const auto refuse = [&] {
    content(kToolCallBegin.size(), events);
    pieces_.cut();
    return true;
  };
  const size_t body = skip_space(text, kToolCallBegin.size());
  if (body == text.size()) return last ? refuse() : false;
  if (text[body] != '{') return refuse();
  if (scanned_ == 0) scanned_ = body;
  while (scanned_ == body || depth_ > 0) {
    if (scanned_ == text.size()) return last ? refuse() : false;
    const char c = text[scanned_++];
    if (in_string_) {
      if (static_cast<unsigned char>(c) < 0x20) return refuse();  // JSON has no such strings
      if (!escaped_ && c == '"') in_string_ = false;
      escaped_ = !escaped_ && c == '\\';
    } else if (c == '"') {
      in_string_ = true;
    } else if (c == '{' || c == '[') {
      ++depth_;
    } else if (c == '}' || c == ']') {
      --depth_;
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
  pieces_.begin_call();
  events.push_back({OutputEvent::Kind::kToolCallBegin, std::move(call->name), calls_});
  events.push_back({OutputEvent::Kind::kArguments, std::move(call->arguments), calls_});
  events.push_back({OutputEvent::Kind::kToolCallEnd, "", calls_++});
  held_.erase(0, behind == text.size() ? behind : behind + kToolCallEnd.size());
  scanned_ = 0;
  return !held_.empty();
}

void JsonToolParser::push(std::string_view text, bool last, OutputEvents& events) {
  held_ += text;
  while (step(last, events)) {
  }
  if (last) pieces_.finish(events);
}

}  // namespace calandra

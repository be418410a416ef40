#include "text/parsers/json_follower.h"

#include <fmt/format.h>

#include <utility>

#include "base/json.h"

namespace calandra {
namespace {

constexpr size_t kDeepest = 256;  // as what reads the arguments of calls

bool is_space(char c) { return c == ' ' || c == '\t' || c == '\n' || c == '\r'; }

bool is_of_literal(char c) {
  return (c >= '0' && c <= '9') || (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || c == '-' || c == '+' || c == '.';
}

bool is_literal(std::string_view text) {
  boost::system::error_code failed;
  const json::value value = json::parse(text, failed);
  return !failed && (value.is_number() || value.is_bool() || value.is_null());
}

// How far an escape is one: surrogates come in pairs.
enum class Escape { kMore, kWhole, kNone };
Escape escape_state(std::string_view escape) {
  if (escape.size() == 1) return Escape::kMore;
  if (escape[1] != 'u') return std::string_view("\"\\/bfnrt").find(escape[1]) < 8 ? Escape::kWhole : Escape::kNone;
  uint32_t unit = 0;
  for (size_t i = 2; i < escape.size(); ++i) {
    const size_t place = i % 6;  // of the second one, which has six characters too
    if (place < 2) {
      if (escape[i] != "\\u"[place]) return Escape::kNone;
      unit = 0;
      continue;
    }
    const size_t digit = std::string_view("0123456789abcdefABCDEF").find(escape[i]);
    if (digit == std::string_view::npos) return Escape::kNone;
    unit = unit * 16 + static_cast<uint32_t>(digit < 16 ? digit : digit - 6);
    if (place < 5) continue;
    const bool is_high = unit >= 0xD800 && unit < 0xDC00, is_low = unit >= 0xDC00 && unit < 0xE000;
    if (i > 6) return is_low ? Escape::kWhole : Escape::kNone;
    if (is_low) return Escape::kNone;
    if (!is_high) return Escape::kWhole;
  }
  return Escape::kMore;
}

}  // namespace

void JsonFollower::release(std::string& json) {
  json += held_;
  held_.clear();
  mended_ = 0;
}

// A part of a string that stands for `size` bytes of the text.
void JsonFollower::put(std::string_view text, size_t size, std::string& json) {
  held_ += text;
  mended_ += text.size() - size;
  if (!is_key_) release(json);
}

void JsonFollower::take_in_string(char c, std::string& json) {
  if (!escape_.empty() || c == '\\') {
    escape_ += c;
    const Escape state = escape_state(escape_);
    if (state == Escape::kMore) return;
    const std::string escape = std::exchange(escape_, {});
    if (state == Escape::kWhole) return put(escape, escape.size(), json);
    put("\\\\", 1, json);
    for (const char behind : escape.substr(1)) take_in_string(behind, json);
    return;
  }
  if (static_cast<unsigned char>(c) < 0x20) return put(fmt::format("\\u{:04x}", c), 1, json);
  put(std::string_view(&c, 1), 1, json);
  if (c == '"') next_ = is_key_ ? Next::kColon : Next::kCommaOrEnd;
}

bool JsonFollower::begin_value(char c, std::string& json) {
  is_key_ = false;
  if (c == '{' || c == '[') {
    if (open_.size() == kDeepest) return false;
    open_ += c;
    next_ = Next::kFirst;
    put(std::string_view(&c, 1), 1, json);
    return true;
  }
  if (c == '"') {
    next_ = Next::kString;
    put("\"", 1, json);
    return true;
  }
  if (!is_of_literal(c)) return false;
  literal_ = c;
  next_ = Next::kLiteral;
  return true;
}

bool JsonFollower::end_container(char c, std::string& json) {
  if (c != (open_.back() == '{' ? '}' : ']')) return false;
  open_.pop_back();
  held_ += c;
  release(json);
  next_ = open_.empty() ? Next::kNothing : Next::kCommaOrEnd;
  return true;
}

// False: it cannot come here.
bool JsonFollower::take(char c, std::string& json) {
  if (next_ == Next::kString) {
    take_in_string(c, json);
    return true;
  }
  if (next_ == Next::kLiteral) {
    if (is_of_literal(c)) {
      literal_ += c;
      return true;
    }
    if (!is_literal(literal_)) return false;
    held_ += std::exchange(literal_, {});
    release(json);
    next_ = Next::kCommaOrEnd;
  }
  if (is_space(c)) {
    held_ += c;
    return true;
  }
  const bool in_object = !open_.empty() && open_.back() == '{';
  switch (next_) {
    case Next::kFirst:
      if (c == '}' || c == ']') return end_container(c, json);
      if (!in_object) return begin_value(c, json);
      [[fallthrough]];
    case Next::kKey:
      if (c != '"') return false;
      is_key_ = true;
      held_ += c;
      next_ = Next::kString;
      return true;
    case Next::kColon:
      if (c != ':') return false;
      held_ += c;
      next_ = Next::kValue;
      return true;
    case Next::kValue:
      return begin_value(c, json);
    case Next::kCommaOrEnd:
      if (c != ',') return end_container(c, json);
      held_ += c;
      next_ = in_object ? Next::kKey : Next::kValue;
      return true;
    default:
      return false;
  }
}

size_t JsonFollower::push(std::string_view text, std::string& json) {
  size_t taken = 0;
  while (taken < text.size() && !complete() && !broken()) {
    if (take(text[taken], json))
      ++taken;
    else
      next_ = Next::kFault;
  }
  return taken;
}

std::string JsonFollower::closing() const {
  std::string text;
  if (next_ == Next::kString && !is_key_) text += '"';
  for (auto open = open_.rbegin(); open != open_.rend(); ++open) text += *open == '{' ? '}' : ']';
  return text;
}

}  // namespace calandra

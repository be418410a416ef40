#include "text/parsers/python_literal.h"

#include <charconv>

#include "text/parsers/output_events.h"

namespace calandra {
namespace {

constexpr int kDeepest = 64;

struct NoLiteral {};

class Reader {
 public:
  explicit Reader(std::string_view text) : text_(text) {}

  json::value whole() {
    json::value value = read(0);
    space();
    if (at_ != text_.size()) throw NoLiteral{};
    return value;
  }

 private:
  void space() { at_ = skip_space(text_, at_); }
  bool take(char c) {
    space();
    if (at_ == text_.size() || text_[at_] != c) return false;
    ++at_;
    return true;
  }
  bool take_word(std::string_view word) {
    if (!text_.substr(at_).starts_with(word)) return false;
    at_ += word.size();
    return true;
  }

  json::value read(int depth) {
    if (depth > kDeepest) throw NoLiteral{};
    space();
    if (at_ == text_.size()) throw NoLiteral{};
    switch (text_[at_]) {
      case '{':
        ++at_;
        return dict(depth);
      case '[':
        ++at_;
        return items(']', depth);
      case '(':
        ++at_;
        return items(')', depth);
      case '\'':
      case '"':
        return json::value(string());
      default:
        break;
    }
    if (take_word("True")) return json::value(true);
    if (take_word("False")) return json::value(false);
    if (take_word("None")) return json::value(nullptr);
    return number();
  }

  json::value dict(int depth) {
    json::object object;
    while (!take('}')) {
      space();
      if (at_ == text_.size() || (text_[at_] != '"' && text_[at_] != '\'')) throw NoLiteral{};
      std::string key = string();
      if (!take(':')) throw NoLiteral{};
      object[key] = read(depth + 1);
      if (take('}')) break;
      if (!take(',')) throw NoLiteral{};
    }
    return object;
  }

  json::value items(char close, int depth) {
    json::array array;
    bool comma = false;
    while (!take(close)) {
      array.push_back(read(depth + 1));
      if (take(close)) {
        if (close == ')' && array.size() == 1 && !comma) {  // a value in brackets
          json::value only = std::move(array.front());
          return only;
        }
        break;
      }
      if (!take(',')) throw NoLiteral{};
      comma = true;
    }
    return array;
  }

  std::string string() {
    const char quote = text_[at_++];
    std::string out;
    while (true) {
      if (at_ == text_.size() || text_[at_] == '\n') throw NoLiteral{};
      const char c = text_[at_++];
      if (c == quote) return out;
      if (c == '\\')
        escape(out);
      else
        out += c;
    }
  }

  void escape(std::string& out) {
    if (at_ == text_.size()) throw NoLiteral{};
    const char c = text_[at_++];
    constexpr std::string_view kLetters = "abfnrtv\\'\"0", kMeanings("\a\b\f\n\r\t\v\\'\"\0", 11);
    if (const size_t which = kLetters.find(c); which != std::string_view::npos)
      out += kMeanings[which];
    else if (c == 'x')
      code_point(2, out);
    else if (c == 'u')
      code_point(4, out);
    else if (c == 'U')
      code_point(8, out);
    else if (c != '\n')
      out += {'\\', c};
  }

  void code_point(size_t digits, std::string& out) {
    uint32_t code = 0;
    const std::string_view hex = text_.substr(at_, digits);
    const auto [end, failed] = std::from_chars(hex.data(), hex.data() + hex.size(), code, 16);
    if (failed != std::errc() || end != hex.data() + digits || code > 0x10FFFF || (code >= 0xD800 && code < 0xE000))
      throw NoLiteral{};
    at_ += digits;
    const auto tail = [&](int shift) { out += static_cast<char>(0x80 | (code >> shift & 0x3F)); };
    if (code < 0x80) {
      out += static_cast<char>(code);
    } else if (code < 0x800) {
      out += static_cast<char>(0xC0 | code >> 6);
      tail(0);
    } else if (code < 0x10000) {
      out += static_cast<char>(0xE0 | code >> 12);
      tail(6), tail(0);
    } else {
      out += static_cast<char>(0xF0 | code >> 18);
      tail(12), tail(6), tail(0);
    }
  }

  json::value number() {
    const size_t end = std::min(text_.find_first_not_of("+-.0123456789eE_", at_), text_.size());
    std::string digits(text_.substr(at_, end - at_));
    std::erase(digits, '_');
    if (digits.starts_with('+')) digits.erase(0, 1);
    at_ = end;
    const char *begin = digits.data(), *stop = begin + digits.size();
    int64_t whole = 0;
    if (const auto [to, failed] = std::from_chars(begin, stop, whole); failed == std::errc() && to == stop)
      return json::value(whole);
    double real = 0;
    if (const auto [to, failed] = std::from_chars(begin, stop, real);
        failed == std::errc() && to == stop && !digits.empty())
      return json::value(real);
    throw NoLiteral{};
  }

  std::string_view text_;
  size_t at_ = 0;
};

}  // namespace

std::optional<json::value> parse_python_literal(std::string_view text) {
  try {
    return Reader(text).whole();
  } catch (const NoLiteral&) {
    return std::nullopt;
  }
}

}  // namespace calandra

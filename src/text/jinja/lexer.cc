#include "text/jinja/lexer.h"

#include "text/jinja/unicode.h"

#include <array>
#include <charconv>

namespace calandra::jinja {
namespace {

constexpr size_t kMaxNumberLength = 4300;

[[noreturn]] void syntax_error(const std::string& message, int line) {
  throw Failure("TemplateSyntaxError", message, line);
}

// "\r\n" and "\r" become "\n"; one newline at the end goes.
std::string normalized(std::string_view source) {
  std::string text;
  text.reserve(source.size());
  for (size_t i = 0; i < source.size(); ++i) {
    if (source[i] == '\r') {
      text += '\n';
      if (i + 1 < source.size() && source[i + 1] == '\n') ++i;
    } else {
      text += source[i];
    }
  }
  if (!text.empty() && text.back() == '\n') text.pop_back();
  return text;
}

bool is_ascii_digit(char c) { return c >= '0' && c <= '9'; }

class Lexer {
 public:
  explicit Lexer(std::string_view source) : text_(normalized(source)) {}

  std::vector<Token> run() {
    while (at_ < text_.size()) outside();
    add(TokenKind::kEnd, "");
    return std::move(tokens_);
  }

 private:
  // --- outside of tags ---

  void outside() {
    const size_t tag = next_tag(at_);
    if (tag == std::string::npos) {
      add_text(text_.substr(at_));
      at_ = text_.size();
      return;
    }
    const char kind = text_[tag + 1];
    size_t inside = tag + 2;
    const char sign = inside < text_.size() && (text_[inside] == '-' || text_[inside] == '+') ? text_[inside++] : 0;
    std::string before = text_.substr(at_, tag - at_);
    const int lines = count_lines(at_, tag);
    strip_before(before, sign, kind != '{');
    add_text(before);
    line_ += lines;
    at_ = inside;
    if (kind == '#') return skip_comment();
    if (kind == '%' && raw_block()) return;
    add(kind == '{' ? TokenKind::kPrintBegin : TokenKind::kBlockBegin, "");
    inside_tag(kind == '{');
  }

  size_t next_tag(size_t from) const {
    for (size_t at = text_.find('{', from); at != std::string::npos; at = text_.find('{', at + 1)) {
      const char next = at + 1 < text_.size() ? text_[at + 1] : 0;
      if (next == '{' || next == '%' || next == '#') return at;
    }
    return std::string::npos;
  }

  // `-` takes all white space in front of a tag; without a sign, blocks and comments take the spaces of their own line.
  void strip_before(std::string& before, char sign, bool strips_line) const {
    if (sign == '-') {
      before.resize(trimmed_size(before));
    } else if (sign == 0 && strips_line) {
      const size_t newline = before.rfind('\n');
      const size_t line_begin = newline == std::string::npos ? 0 : newline + 1;
      if ((line_begin > 0 || line_starts_) && is_blank(std::string_view(before).substr(line_begin)))
        before.resize(line_begin);
    }
  }

  static bool is_blank(std::string_view text) {
    for (size_t at = 0; at < text.size();) {
      if (!is_space(next_char(text, at))) return false;
    }
    return true;
  }

  static size_t trimmed_size(const std::string& text) {
    size_t end = text.size();
    while (end > 0) {
      const size_t begin = previous_offset(text, end);
      size_t at = begin;
      if (!is_space(next_char(text, at))) break;
      end = begin;
    }
    return end;
  }

  void skip_comment() {
    const size_t end = text_.find("#}", at_);
    if (end == std::string::npos) syntax_error("Missing end of comment tag", line_);
    const char sign = end > at_ && (text_[end - 1] == '-' || text_[end - 1] == '+') ? text_[end - 1] : 0;
    line_ += count_lines(at_, end);
    finish_tag(end + 2, sign, true);
  }

  // After "{%": reads a whole {% raw %}…{% endraw %} if there is one.
  bool raw_block() {
    size_t at = skip_spaces(at_);
    if (text_.compare(at, 3, "raw") != 0) return false;
    at = skip_spaces(at + 3);
    const bool strips = at < text_.size() && text_[at] == '-';
    if (strips) ++at;
    if (text_.compare(at, 2, "%}") != 0) return false;
    at += 2;
    const size_t begin = strips ? skip_spaces(at) : at;
    line_ += count_lines(at_, begin);
    for (size_t open = text_.find("{%", begin); open != std::string::npos; open = text_.find("{%", open + 1)) {
      size_t end = open + 2;
      const char sign = end < text_.size() && (text_[end] == '-' || text_[end] == '+') ? text_[end++] : 0;
      end = skip_spaces(end);
      if (text_.compare(end, 6, "endraw") != 0) continue;
      end = skip_spaces(end + 6);
      const char end_sign = end < text_.size() && (text_[end] == '-' || text_[end] == '+') ? text_[end++] : 0;
      if (text_.compare(end, 2, "%}") != 0) continue;
      std::string content = text_.substr(begin, open - begin);
      line_starts_ = begin > 0 && text_[begin - 1] == '\n';
      strip_before(content, sign, true);
      add_text(content);
      line_ += count_lines(begin, end);
      finish_tag(end + 2, end_sign, true);
      return true;
    }
    syntax_error("Missing end of raw directive", line_);
  }

  // Behind a tag: `-` takes all white space, `+` nothing, otherwise blocks take one newline.
  void finish_tag(size_t end, char sign, bool trims_newline) {
    at_ = end;
    if (sign == '-')
      at_ = skip_spaces(end);
    else if (sign == 0 && trims_newline && end < text_.size() && text_[end] == '\n')
      ++at_;
    line_ += count_lines(end, at_);
    line_starts_ = text_[at_ - 1] == '\n';
  }

  size_t skip_spaces(size_t at) const {
    while (at < text_.size()) {
      size_t next = at;
      if (!is_space(next_char(text_, next))) break;
      at = next;
    }
    return at;
  }

  int count_lines(size_t begin, size_t end) const {
    int lines = 0;
    for (size_t i = begin; i < end; ++i) lines += text_[i] == '\n' ? 1 : 0;
    return lines;
  }

  void add(TokenKind kind, std::string text, Value value = Value()) {
    tokens_.push_back({kind, line_, std::move(text), std::move(value)});
  }
  void add_text(std::string text) {
    if (!text.empty()) add(TokenKind::kText, std::move(text));
  }

  // --- inside of tags ---

  bool tag_ends(bool is_print) {
    if (!open_.empty()) return false;
    const char* end = is_print ? "}}" : "%}";
    const char sign = text_[at_] == '-' || (!is_print && text_[at_] == '+') ? text_[at_] : 0;
    const size_t close = at_ + (sign != 0 ? 1 : 0);
    if (text_.compare(close, 2, end) != 0) return false;
    add(is_print ? TokenKind::kPrintEnd : TokenKind::kBlockEnd, "");
    finish_tag(close + 2, sign, !is_print);
    return true;
  }

  void inside_tag(bool is_print) {
    open_.clear();
    while (at_ < text_.size()) {
      if (tag_ends(is_print)) return;
      const size_t next = skip_spaces(at_);
      if (next > at_) {
        line_ += count_lines(at_, next);
        at_ = next;
      } else if (!number() && !name() && !string() && !symbol()) {
        size_t end = at_;
        next_char(text_, end);
        syntax_error("unexpected char '" + text_.substr(at_, end - at_) + "' at " +
                         std::to_string(char_count(std::string_view(text_).substr(0, at_))),
                     line_);
      }
    }
  }

  // Digits with single underscores between them, from `at`; the end, or `at` if there are none.
  size_t digits(size_t at) const {
    size_t end = at;
    while (end < text_.size() &&
           (is_ascii_digit(text_[end]) ||
            (text_[end] == '_' && end > at && end + 1 < text_.size() && is_ascii_digit(text_[end + 1]))))
      ++end;
    return end;
  }

  bool number() {
    if (!is_ascii_digit(text_[at_])) return false;
    if (at_ == 0 || text_[at_ - 1] != '.') {
      if (const size_t end = float_end(); end > 0) {
        double value = 0;
        const std::string plain = without_underscores(at_, end);
        std::from_chars(plain.data(), plain.data() + plain.size(), value);
        if (value == 0) value = std::strtod(plain.c_str(), nullptr);  // out of range: infinity or a denormal
        add(TokenKind::kFloat, text_.substr(at_, end - at_), Value::real(value));
        at_ = end;
        return true;
      }
    }
    integer();
    return true;
  }

  size_t float_end() const {
    size_t end = digits(at_);
    bool is_float = false;
    if (end + 1 < text_.size() && text_[end] == '.' && is_ascii_digit(text_[end + 1])) {
      end = digits(end + 1);
      is_float = true;
    }
    if (end < text_.size() && (text_[end] == 'e' || text_[end] == 'E')) {
      size_t exponent = end + 1;
      if (exponent < text_.size() && (text_[exponent] == '+' || text_[exponent] == '-')) ++exponent;
      if (exponent < text_.size() && is_ascii_digit(text_[exponent])) return digits(exponent);
    }
    return is_float ? end : 0;
  }

  std::string without_underscores(size_t begin, size_t end) const {
    std::string plain;
    for (size_t i = begin; i < end; ++i) {
      if (text_[i] != '_') plain += text_[i];
    }
    return plain;
  }

  void integer() {
    const char mark = at_ + 1 < text_.size() ? static_cast<char>(text_[at_ + 1] | 0x20) : 0;
    const int bits = text_[at_] != '0' ? 0 : mark == 'b' ? 1 : mark == 'o' ? 3 : mark == 'x' ? 4 : 0;
    if (bits > 0) {
      BigInt value = 0;
      size_t end = at_ + 2;
      bool any = false;
      while (end < text_.size() && end - at_ < kMaxNumberLength) {
        const size_t digit_at = text_[end] == '_' ? end + 1 : end;
        const int digit = digit_at < text_.size() ? hex_value(text_[digit_at]) : -1;
        if (digit < 0 || digit >= (1 << bits)) break;
        value = (value << bits) + digit;
        end = digit_at + 1;
        any = true;
      }
      if (any) return add_integer(value, end);
    }
    size_t end = digits(at_);
    if (text_[at_] == '0') {  // "00_0" is one number, "08" two
      end = at_ + 1;
      while (end < text_.size() &&
             (text_[end] == '0' || (text_[end] == '_' && end + 1 < text_.size() && text_[end + 1] == '0')))
        ++end;
    }
    if (end - at_ > kMaxNumberLength) syntax_error("a number is too long", line_);
    const std::string plain = without_underscores(at_, end);
    const size_t first = std::min(plain.find_first_not_of('0'), plain.size() - 1);
    add_integer(BigInt(plain.substr(first)), end);
  }

  void add_integer(const BigInt& value, size_t end) {
    add(TokenKind::kInteger, text_.substr(at_, end - at_), Value::big(nullptr, value));
    at_ = end;
  }

  static int hex_value(char c) {
    if (is_ascii_digit(c)) return c - '0';
    const char lower = static_cast<char>(c | 0x20);
    return lower >= 'a' && lower <= 'f' ? lower - 'a' + 10 : -1;
  }

  bool name() {
    size_t end = at_;
    bool valid = true;
    while (end < text_.size()) {
      size_t next = end;
      const char32_t c = next_char(text_, next);
      if (!is_identifier_part(c)) break;
      if (end == at_) valid = is_identifier_start(c);
      end = next;
    }
    if (end == at_) return false;
    if (!valid) syntax_error("Invalid character in identifier", line_);
    add(TokenKind::kName, text_.substr(at_, end - at_));
    at_ = end;
    return true;
  }

  bool string() {
    const char quote = text_[at_];
    if (quote != '\'' && quote != '"') return false;
    size_t end = at_ + 1;
    while (end < text_.size() && text_[end] != quote) end += text_[end] == '\\' ? 2 : 1;
    if (end >= text_.size()) return false;
    const std::string_view raw = std::string_view(text_).substr(at_ + 1, end - at_ - 1);
    add(TokenKind::kString, unescaped(raw));
    line_ += count_lines(at_, end);
    at_ = end + 1;
    return true;
  }

  std::string unescaped(std::string_view raw) const {
    std::string out;
    char32_t high = 0;  // the first half of a surrogate pair
    for (size_t i = 0; i < raw.size();) {
      if (raw[i] != '\\') {
        out += raw[i++];
        continue;
      }
      const char c = raw[++i];
      ++i;
      constexpr std::string_view kFrom = "\\'\"abfnrtv", kTo = "\\'\"\a\b\f\n\r\t\v";
      if (const size_t simple = kFrom.find(c); simple != std::string_view::npos) {
        out += kTo[simple];
      } else if (c == '\n') {
        continue;
      } else if (c >= '0' && c <= '7') {
        char32_t code = static_cast<char32_t>(c - '0');
        for (int n = 0; n < 2 && i < raw.size() && raw[i] >= '0' && raw[i] <= '7'; ++n)
          code = code * 8 + static_cast<char32_t>(raw[i++] - '0');
        append_char(out, code);
      } else if (c == 'x' || c == 'u' || c == 'U') {
        const char32_t code = hex_escape(raw, i, c == 'x' ? 2 : c == 'u' ? 4 : 8);
        if (code >= 0xd800 && code < 0xdc00 && raw.substr(i, 2) == "\\u") {
          high = code;
          continue;
        }
        if (code >= 0xdc00 && code < 0xe000 && high != 0)
          append_char(out, 0x10000 + ((high - 0xd800) << 10) + (code - 0xdc00));
        else if ((code >= 0xd800 && code < 0xe000) || high != 0)
          syntax_error("a string holds half of a surrogate pair", line_);
        else
          append_char(out, code);
        high = 0;
      } else if (c == 'N') {
        syntax_error("characters by name (\\N) are not supported", line_);
      } else {
        out += '\\';
        out += c;
      }
    }
    return out;
  }

  char32_t hex_escape(std::string_view raw, size_t& i, size_t count) const {
    char32_t code = 0;
    for (size_t n = 0; n < count; ++n, ++i) {
      const int digit = i < raw.size() ? hex_value(raw[i]) : -1;
      if (digit < 0) syntax_error("truncated escape in a string", line_);
      code = code * 16 + static_cast<char32_t>(digit);
    }
    if (code > 0x10ffff) syntax_error("illegal Unicode character in a string", line_);
    return code;
  }

  bool symbol() {
    constexpr std::array<std::string_view, 25> kSymbols = {"//", "**", "==", "!=", ">=", "<=", "+", "-", "/",
                                                           "*",  "%",  "~",  "[",  "]",  "(",  ")", "{", "}",
                                                           ">",  "<",  "=",  ".",  ":",  "|",  ","};
    std::string_view found;
    for (const std::string_view symbol : kSymbols) {
      if (text_.compare(at_, symbol.size(), symbol) == 0) {
        found = symbol;
        break;
      }
    }
    if (found.empty() && text_[at_] == ';') found = ";";
    if (found.empty()) return false;
    if (found == "(" || found == "[" || found == "{") {
      open_ += found == "(" ? ')' : found == "[" ? ']' : '}';
    } else if (found == ")" || found == "]" || found == "}") {
      if (open_.empty()) syntax_error("unexpected '" + std::string(found) + "'", line_);
      if (open_.back() != found[0])
        syntax_error("unexpected '" + std::string(found) + "', expected '" + open_.back() + "'", line_);
      open_.pop_back();
    }
    add(TokenKind::kOperator, std::string(found));
    at_ += found.size();
    return true;
  }

  std::string text_;
  size_t at_ = 0;
  int line_ = 1;
  bool line_starts_ = true;  // the text before at_ ends with a newline, or there is none
  std::string open_;         // closing brackets that are expected
  std::vector<Token> tokens_;
};

}  // namespace

std::vector<Token> tokenize(std::string_view source) { return Lexer(source).run(); }

}  // namespace calandra::jinja

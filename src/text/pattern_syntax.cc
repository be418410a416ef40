// Oniguruma's regular expressions in PCRE2's spelling. Sources: Oniguruma doc/RE (syntax ONIG_SYNTAX_ONIGURUMA),
// pcre2pattern(3).
#include <algorithm>
#include <array>
#include <charconv>

#include "base/error.h"
#include "text/pattern.h"
#include "text/utf8.h"

namespace calandra {
namespace {

constexpr int kMaxDepth = 100;

// General categories, and the one script whose stand-ins are of the same script.
constexpr std::array<std::string_view, 39> kProperties = {"L",  "Lu", "Ll", "Lt", "Lm", "Lo", "M",  "Mn",  "Mc", "Me",
                                                          "N",  "Nd", "Nl", "No", "P",  "Pc", "Pd", "Ps",  "Pe", "Pi",
                                                          "Pf", "Po", "S",  "Sm", "Sc", "Sk", "So", "Z",   "Zs", "Zl",
                                                          "Zp", "C",  "Cc", "Cf", "Co", "Cn", "Cs", "Han", "Any"};

// Sequences that one non-ASCII character matches when case is ignored (full case folding), which PCRE2 does not do.
constexpr std::array<std::string_view, 5> kFoldedPairs = {"ss", "ff", "fi", "fl", "st"};

bool is_alnum(char c) { return (c >= '0' && c <= '9') || (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z'); }
char to_lower(char c) { return c >= 'A' && c <= 'Z' ? static_cast<char>(c + 32) : c; }

class Translator {
 public:
  Translator(std::string_view in, const std::string& where) : in_(in), where_(where) {}

  std::string run() {
    group(false, 0);
    if (at_ < in_.size()) refuse(")");
    return std::move(out_);
  }

 private:
  [[noreturn]] void refuse(std::string_view construct) const {
    throw LoadError(where_ + ": the pattern construct \"" + std::string(construct) + "\" at byte " +
                    std::to_string(at_) + " is not supported");
  }
  bool more() const { return at_ < in_.size(); }
  bool starts(std::string_view text) const { return in_.substr(at_).starts_with(text); }
  void copy(size_t count) {
    out_ += in_.substr(at_, count);
    at_ += count;
  }

  // Alternatives up to the closing parenthesis, which stays.
  void group(bool fold_case, int depth) {
    if (depth > kMaxDepth) refuse("(");
    previous_ = 0;
    while (more() && in_[at_] != ')') {
      const char c = in_[at_];
      if (c == '(') {
        open_group(fold_case, depth);
      } else if (c == '[') {
        previous_ = 0;
        character_class(fold_case);
        quantifier();
      } else if (c == '|') {
        previous_ = 0;
        copy(1);
      } else if (c == '^' || c == '$' || c == '*' || c == '+' || c == '?' || c == '{') {
        refuse(std::string_view(&c, 1));
      } else if (c == '.') {
        previous_ = 0;
        copy(1);
        quantifier();
      } else {
        const char letter = c == '\\' ? escape(fold_case) : literal(fold_case);
        const std::array<char, 2> pair = {previous_, letter};
        if (fold_case &&
            std::find(kFoldedPairs.begin(), kFoldedPairs.end(), std::string_view(pair.data(), 2)) != kFoldedPairs.end())
          refuse(std::string_view(pair.data(), 2));
        previous_ = letter;
        if (quantifier()) previous_ = 0;
      }
    }
  }

  void open_group(bool fold_case, int depth) {
    static constexpr std::array<std::string_view, 7> kOpenings = {"(?:", "(?i:", "(?=", "(?!", "(?<=", "(?<!", "(?>"};
    size_t length = 1;
    if (starts("(?")) {
      const auto* known = std::find_if(kOpenings.begin(), kOpenings.end(), [&](auto s) { return starts(s); });
      if (known == kOpenings.end()) refuse(in_.substr(at_, 4));
      length = known->size();
    }
    const bool folds = fold_case || starts("(?i:");
    copy(length);
    group(folds, depth + 1);
    if (!more()) refuse("( without )");
    copy(1);
    previous_ = 0;
    quantifier();
  }

  // One character that stands for itself; its lower-case form if it is an ASCII letter, else 0.
  char literal(bool fold_case) {
    const char c = in_[at_];
    if (static_cast<unsigned char>(c) >= 0x80) {
      if (fold_case) refuse("(?i: with a character that is not ASCII");
      copy(next_utf8(in_, at_).length);
      return 0;
    }
    if (c == ']' || c == '}') out_ += '\\';
    copy(1);
    return is_alnum(c) ? to_lower(c) : '\0';
  }

  char escape(bool fold_case) {
    if (at_ + 1 >= in_.size()) refuse("\\");
    const char c = in_[at_ + 1];
    if (c == 'p' || c == 'P') {
      const size_t close = in_.find('}', at_);
      if (at_ + 2 >= in_.size() || in_[at_ + 2] != '{' || close == std::string_view::npos) refuse(in_.substr(at_, 2));
      std::string_view name = in_.substr(at_ + 3, close - at_ - 3);
      if (name.starts_with('^')) name.remove_prefix(1);
      if (std::find(kProperties.begin(), kProperties.end(), name) == kProperties.end())
        refuse(in_.substr(at_, std::min<size_t>(close + 1 - at_, 40)));
      copy(close + 1 - at_);
      return 0;
    }
    if (c == 'u' || c == 'x') return code_point(c, fold_case);
    if (std::string_view("sSdDrntf").find(c) != std::string_view::npos) {
      copy(2);
      return 0;
    }
    if (c == 'v') {  // PCRE2 reads \v as a class
      out_ += "\\x0B";
      at_ += 2;
      return 0;
    }
    if (is_alnum(c) || static_cast<unsigned char>(c) >= 0x80) refuse(in_.substr(at_, 2));
    copy(2);
    return 0;
  }

  // \uHHHH, \x{H…}, \xHH
  char code_point(char kind, bool fold_case) {
    const size_t start = at_;
    size_t from = at_ + 2, length = kind == 'u' ? 4 : 2;
    const bool braces = kind == 'x' && from < in_.size() && in_[from] == '{';
    if (braces) {
      ++from;
      length = in_.find('}', from);
      if (length == std::string_view::npos) refuse(in_.substr(at_, 3));
      length -= from;
    }
    uint32_t code = 0;
    const std::string_view digits = in_.substr(std::min(from, in_.size()), length);
    const auto [end, error] = std::from_chars(digits.data(), digits.data() + digits.size(), code, 16);
    const bool whole = error == std::errc() && end == digits.data() + digits.size() && digits.size() == length;
    const bool character = code <= 0x10FFFF && (code < 0xD800 || code > 0xDFFF);
    // \xHH above 7F is a byte in Oniguruma, and part of a character at best.
    if (!whole || !character || (kind == 'x' && !braces && code >= 0x80) || (fold_case && code >= 0x80))
      refuse(in_.substr(start, 10));
    at_ = from + length + (braces ? 1 : 0);
    char buffer[16];
    const auto written = std::to_chars(buffer, buffer + sizeof buffer, code, 16).ptr;
    out_ += "\\x{" + std::string(buffer, written) + "}";
    return code < 0x80 && is_alnum(static_cast<char>(code)) ? to_lower(static_cast<char>(code)) : '\0';
  }

  void character_class(bool fold_case) {
    copy(1);
    if (more() && in_[at_] == '^') copy(1);
    if (more() && in_[at_] == ']') refuse("[]");
    while (more() && in_[at_] != ']') {
      if (in_[at_] == '[') refuse("[ in a class");
      if (starts("&&")) refuse("&&");
      if (in_[at_] == '\\') {
        escape(fold_case);
      } else {
        literal(fold_case);
      }
    }
    if (!more()) refuse("[ without ]");
    copy(1);
  }

  // Copies a quantifier if one follows.
  bool quantifier() {
    if (!more()) return false;
    const char c = in_[at_];
    if (c == '?' || c == '*' || c == '+') {
      copy(1);
      if (more() && (in_[at_] == '?' || in_[at_] == '+')) copy(1);
    } else if (c == '{') {
      const size_t close = in_.find('}', at_);
      const std::string_view body = in_.substr(at_ + 1, close == std::string_view::npos ? 0 : close - at_ - 1);
      const bool digits = body.find_first_not_of("0123456789,") == std::string_view::npos;
      if (!digits || body.empty() || body[0] == ',' || std::count(body.begin(), body.end(), ',') > 1) refuse("{");
      const bool fixed = body.find(',') == std::string_view::npos;
      copy(close + 1 - at_);
      // Oniguruma reads {n,m}+ as two quantifiers and {n}? as optional.
      if (more() && (in_[at_] == '+' || (in_[at_] == '?' && fixed))) refuse("}" + std::string(1, in_[at_]));
      if (more() && in_[at_] == '?') copy(1);
    } else {
      return false;
    }
    if (more() && (in_[at_] == '?' || in_[at_] == '*' || in_[at_] == '+' || in_[at_] == '{')) refuse("two quantifiers");
    return true;
  }

  std::string_view in_;
  const std::string& where_;
  size_t at_ = 0;
  std::string out_;
  char previous_ = 0;  // the ASCII letter just read, for kFoldedPairs
};

}  // namespace

std::string to_pcre2(std::string_view expression, const std::string& where) {
  return Translator(expression, where).run();
}

}  // namespace calandra

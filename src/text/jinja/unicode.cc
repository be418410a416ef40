#include "text/jinja/unicode.h"

#include "text/jinja/special_casing.h"

#include <utf8proc.h>

#include <array>

namespace calandra::jinja {
namespace {

utf8proc_category_t category(char32_t c) { return utf8proc_category(static_cast<utf8proc_int32_t>(c)); }

// The word that starts with c, without c; empty if there is none.
std::u32string_view special(std::u32string_view table, char32_t c) {
  if (c < 0xdf || (c > 0x1fff && c < 0xfb00) || c > 0xfb17) return {};  // no entry lies outside
  size_t begin = 0;
  while (begin < table.size()) {
    const size_t end = table.find(U' ', begin);
    if (table[begin] == c) return table.substr(begin + 1, end - begin - 1);
    begin = end + 1;
  }
  return {};
}

bool is_case_ignorable(char32_t c) {
  switch (category(c)) {
    case UTF8PROC_CATEGORY_MN:
    case UTF8PROC_CATEGORY_ME:
    case UTF8PROC_CATEGORY_CF:
    case UTF8PROC_CATEGORY_LM:
    case UTF8PROC_CATEGORY_SK:
      return true;
    default:
      return c == U'\'' || c == U'.' || c == U':' || c == U'\u00b7' || c == U'\u2019' || c == U'\u2018' ||
             c == U'\u2024' || c == U'\u2027';
  }
}

bool is_final_sigma(std::string_view text, size_t offset) {
  size_t before = offset;
  bool cased_before = false;
  while (before > 0) {
    before = previous_offset(text, before);
    size_t at = before;
    const char32_t c = next_char(text, at);
    if (is_case_ignorable(c)) continue;
    cased_before = is_cased(c);
    break;
  }
  if (!cased_before) return false;
  size_t after = offset;
  next_char(text, after);
  while (after < text.size()) {
    const char32_t c = next_char(text, after);
    if (!is_case_ignorable(c)) return !is_cased(c);
  }
  return true;
}

}  // namespace

char32_t next_char(std::string_view text, size_t& offset) {
  utf8proc_int32_t c = 0;
  const auto* begin = reinterpret_cast<const utf8proc_uint8_t*>(text.data()) + offset;
  if (*begin < 0x80) {
    ++offset;
    return *begin;
  }
  const auto count = utf8proc_iterate(begin, static_cast<utf8proc_ssize_t>(text.size() - offset), &c);
  if (count <= 0) {
    ++offset;
    return 0xfffd;
  }
  offset += static_cast<size_t>(count);
  return static_cast<char32_t>(c);
}

void append_char(std::string& text, char32_t c) {
  if (c < 0x80) {
    text += static_cast<char>(c);
    return;
  }
  utf8proc_uint8_t bytes[4];
  const auto count = utf8proc_encode_char(static_cast<utf8proc_int32_t>(c), bytes);
  text.append(reinterpret_cast<const char*>(bytes), static_cast<size_t>(count));
}

// Continuation bytes belong to the character before them; texts are valid UTF-8 except where a client sent broken
// bytes.
static bool is_continuation(char byte) { return (static_cast<unsigned char>(byte) & 0xc0) == 0x80; }

size_t char_count(std::string_view text) {
  size_t count = 0;
  for (const char byte : text) count += is_continuation(byte) ? 0 : 1;
  return count;
}

size_t char_offset(std::string_view text, size_t index) {
  size_t offset = 0;
  while (offset < text.size()) {
    if (!is_continuation(text[offset])) {
      if (index == 0) return offset;
      --index;
    }
    ++offset;
  }
  return text.size();
}

size_t previous_offset(std::string_view text, size_t offset) {
  do --offset;
  while (offset > 0 && is_continuation(text[offset]));
  return offset;
}

bool is_space(char32_t c) {
  return (c >= 0x09 && c <= 0x0d) || (c >= 0x1c && c <= 0x20) || c == 0x85 || c == 0xa0 || c == 0x1680 ||
         (c >= 0x2000 && c <= 0x200a) || c == 0x2028 || c == 0x2029 || c == 0x202f || c == 0x205f || c == 0x3000;
}

bool is_alpha(char32_t c) {
  const auto kind = category(c);
  return kind >= UTF8PROC_CATEGORY_LU && kind <= UTF8PROC_CATEGORY_LO;
}

bool is_decimal(char32_t c) { return category(c) == UTF8PROC_CATEGORY_ND; }

bool is_digit(char32_t c) {
  if (is_decimal(c)) return true;
  return c == 0xb2 || c == 0xb3 || c == 0xb9 || c == 0x2070 || (c >= 0x2074 && c <= 0x2079) ||
         (c >= 0x2080 && c <= 0x2089) || (c >= 0x2460 && c <= 0x2468) || (c >= 0x2474 && c <= 0x247c) ||
         (c >= 0x2488 && c <= 0x2490) || c == 0x24ea || (c >= 0x24f5 && c <= 0x24fd) || c == 0x24ff ||
         (c >= 0x2776 && c <= 0x277e) || (c >= 0x2780 && c <= 0x2788) || (c >= 0x278a && c <= 0x2792) ||
         (c >= 0x1369 && c <= 0x1371) || c == 0x19da || (c >= 0x1f100 && c <= 0x1f10a);
}

bool is_numeric(char32_t c) {
  const auto kind = category(c);
  if (kind >= UTF8PROC_CATEGORY_ND && kind <= UTF8PROC_CATEGORY_NO) return true;
  constexpr std::u32string_view kHanNumbers = U"㐀一七万三九二五亿六八十百千億兆零〇四壹貳參肆伍陸柒捌玖拾佰仟";
  return c != U'㐀' && kHanNumbers.find(c) != std::u32string_view::npos;
}

bool is_upper(char32_t c) {
  return category(c) == UTF8PROC_CATEGORY_LU || (c >= 0x2160 && c <= 0x216f) || (c >= 0x24b6 && c <= 0x24cf) ||
         (c >= 0x1f130 && c <= 0x1f149) || (c >= 0x1f150 && c <= 0x1f169) || (c >= 0x1f170 && c <= 0x1f189);
}

bool is_lower(char32_t c) {
  return category(c) == UTF8PROC_CATEGORY_LL || c == 0xaa || c == 0xba || (c >= 0x2170 && c <= 0x217f) ||
         (c >= 0x24d0 && c <= 0x24e9) || (c >= 0x2b0 && c <= 0x2b8) || c == 0x2c0 || c == 0x2c1 ||
         (c >= 0x2e0 && c <= 0x2e4) || c == 0x345 || c == 0x37a || (c >= 0x1d2c && c <= 0x1d6a) || c == 0x1d78 ||
         (c >= 0x1d9b && c <= 0x1dbf) || c == 0x2071 || c == 0x207f || (c >= 0x2090 && c <= 0x209c);
}

bool is_title(char32_t c) { return category(c) == UTF8PROC_CATEGORY_LT; }
bool is_cased(char32_t c) { return is_upper(c) || is_lower(c) || is_title(c); }

bool is_printable(char32_t c) {
  switch (category(c)) {
    case UTF8PROC_CATEGORY_CC:
    case UTF8PROC_CATEGORY_CF:
    case UTF8PROC_CATEGORY_CS:
    case UTF8PROC_CATEGORY_CO:
    case UTF8PROC_CATEGORY_CN:
    case UTF8PROC_CATEGORY_ZL:
    case UTF8PROC_CATEGORY_ZP:
      return false;
    case UTF8PROC_CATEGORY_ZS:
      return c == U' ';
    default:
      return true;
  }
}

bool is_identifier_start(char32_t c) { return c == U'_' || is_alpha(c) || category(c) == UTF8PROC_CATEGORY_NL; }

bool is_identifier_part(char32_t c) {
  if (c < 0x80) return c == U'_' || (c >= U'0' && c <= U'9') || (c >= U'a' && c <= U'z') || (c >= U'A' && c <= U'Z');
  const auto kind = category(c);
  return is_identifier_start(c) || kind == UTF8PROC_CATEGORY_ND || kind == UTF8PROC_CATEGORY_MN ||
         kind == UTF8PROC_CATEGORY_MC || kind == UTF8PROC_CATEGORY_PC;
}

int decimal_value(char32_t c) {
  if (c >= U'0' && c <= U'9') return static_cast<int>(c - U'0');
  // Decimal digits come in runs of ten that begin with the zero (the mathematical ones in five runs without a gap).
  if (c >= 0x1d7ce && c <= 0x1d7ff) return static_cast<int>((c - 0x1d7ce) % 10);
  int value = 0;
  while (value < 9 && is_decimal(c - static_cast<char32_t>(value) - 1)) ++value;
  return value;
}

std::u32string to_upper(char32_t c) {
  if (c < 0x80) return {c >= U'a' && c <= U'z' ? c - 32 : c};
  const auto many = special(kSpecialUpper, c);
  if (!many.empty()) return std::u32string(many);
  return {static_cast<char32_t>(utf8proc_toupper(static_cast<utf8proc_int32_t>(c)))};
}

std::u32string to_title(char32_t c) {
  if (c < 0x80) return to_upper(c);
  const auto many = special(kSpecialTitle, c);
  if (!many.empty()) return std::u32string(many);
  return {static_cast<char32_t>(utf8proc_totitle(static_cast<utf8proc_int32_t>(c)))};
}

std::u32string to_lower(std::string_view text, size_t offset, char32_t c) {
  if (c < 0x80) return {c >= U'A' && c <= U'Z' ? c + 32 : c};
  if (c == 0x130) return U"i\u0307";
  if (c == 0x3a3) return {is_final_sigma(text, offset) ? char32_t{0x3c2} : char32_t{0x3c3}};
  return {static_cast<char32_t>(utf8proc_tolower(static_cast<utf8proc_int32_t>(c)))};
}

std::u32string to_folded(char32_t c) {
  if (c < 0x80) return {c >= U'A' && c <= U'Z' ? c + 32 : c};
  std::array<utf8proc_int32_t, 8> folded{};
  const auto count = utf8proc_decompose_char(static_cast<utf8proc_int32_t>(c), folded.data(), folded.size(),
                                             UTF8PROC_CASEFOLD, nullptr);
  if (count <= 0 || static_cast<size_t>(count) > folded.size()) return {c};
  return std::u32string(folded.begin(), folded.begin() + count);
}

}  // namespace calandra::jinja

// Characters as Python's str sees them: white space, classes, case. Text is UTF-8; bytes that are not UTF-8 read as
// U+FFFD.
#pragma once

#include <cstddef>
#include <string>
#include <string_view>

namespace calandra::jinja {

// Reads the character at `offset` (< size) and moves behind it.
char32_t next_char(std::string_view text, size_t& offset);
void append_char(std::string& text, char32_t c);
size_t char_count(std::string_view text);
// Byte offset of character number `index`, or size() if the text has fewer.
size_t char_offset(std::string_view text, size_t index);
// Byte offset of the character that ends before `offset` (> 0).
size_t previous_offset(std::string_view text, size_t offset);

bool is_space(char32_t c);
bool is_alpha(char32_t c);
bool is_decimal(char32_t c);  // str.isdecimal: what int() reads
bool is_digit(char32_t c);    // str.isdigit: decimals and superscripts
bool is_numeric(char32_t c);
bool is_cased(char32_t c);
bool is_upper(char32_t c);
bool is_lower(char32_t c);
bool is_title(char32_t c);
bool is_printable(char32_t c);  // what repr() shows as it is
bool is_identifier_part(char32_t c);
bool is_identifier_start(char32_t c);
int decimal_value(char32_t c);  // 0…9 for is_decimal characters

std::u32string to_upper(char32_t c);
std::u32string to_title(char32_t c);
std::u32string to_folded(char32_t c);
// Lower case depends on context: a sigma at the end of a word has its own form. `offset` is where c stands in `text`.
std::u32string to_lower(std::string_view text, size_t offset, char32_t c);

}  // namespace calandra::jinja

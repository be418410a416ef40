// Reading UTF-8 that may be broken. Ill-formed bytes follow the Unicode Standard 3.9, "U+FFFD substitution of maximal
// subparts".
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>

namespace calandra {

struct Utf8Step {
  char32_t code = 0xFFFD;  // the character, or U+FFFD for an ill-formed part
  uint32_t length = 1;     // bytes used, at least 1
  bool valid = false;
  bool cut = false;  // not valid only because the text ends: these bytes may begin a character
};

// The step at byte `at` (at < text.size()).
Utf8Step next_utf8(std::string_view text, size_t at);

void append_utf8(std::string& out, char32_t code);

// From `at` on, as far as it is ASCII, in steps of eight bytes: `at` itself if it is not.
size_t skip_ascii(std::string_view text, size_t at);

bool is_valid_utf8(std::string_view text);

// The text with one U+FFFD for each maximal ill-formed part.
std::string replace_invalid_utf8(std::string_view text);

}  // namespace calandra

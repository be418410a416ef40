// The Unicode version that patterns are matched by. Hugging Face tokenizers 0.23 classify characters by Unicode 16,
// PCRE2 10.42 by Unicode 14. Characters that differ are matched through a stand-in of the same byte length and class
// that both know.
#pragma once

#include <string>
#include <string_view>

namespace calandra {

// `text` itself when nothing differs, else a copy in `buffer` of the same length.
std::string_view with_stand_ins(std::string_view text, std::string& buffer);

}  // namespace calandra

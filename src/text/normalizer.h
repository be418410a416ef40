// Unicode normalization form C, as Hugging Face tokenizers compute it: by the tables of Unicode 9, so marks that are
// younger neither compose nor reorder.
#pragma once

#include <cstddef>
#include <string>
#include <string_view>

namespace calandra {

// `text` must be valid UTF-8. Linear in its length (and n log n within one run of combining marks).
std::string nfc(std::string_view text);

// The end of the normalization segment that starts at `begin`: the next place at or behind begin + 1 where the text can
// be cut without changing its normal form.
size_t nfc_segment_end(std::string_view text, size_t begin);

}  // namespace calandra

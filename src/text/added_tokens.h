// Added tokens: strings that are found in text before anything else is done with it (tokenizers: AddedVocabulary).
#pragma once

#include <array>
#include <boost/unordered/unordered_flat_map.hpp>
#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

namespace calandra {

struct AddedToken {
  int32_t id = -1;
  std::string content = {};
  bool special = false;      // left out when special tokens are skipped
  bool single_word = false;  // only where no letter, digit or mark touches it
  bool lstrip = false;       // takes the white space in front with it
  bool rstrip = false;       // takes the white space behind with it
  bool normalized = false;   // looked for in the normalised text
};

// Text with its origin: run i covers the bytes from the end of run i - 1 to its own end.
struct TextRun {
  size_t end = 0;
  bool is_input = false;  // nothing is recognised in it, nor across its borders
};
struct MarkedText {
  std::string text;
  std::vector<TextRun> runs;

  void append(std::string_view part, bool is_input);
  MarkedText slice(size_t begin, size_t end) const;
};

class AddedTokenMatcher {
 public:
  // `tokens` carry the content that is looked for (normalised where they ask for it).
  explicit AddedTokenMatcher(std::vector<AddedToken> tokens);
  bool empty() const { return tokens_.empty(); }

  // The text cut into added tokens (id >= 0) and what lies between them (id -1); no part is empty.
  struct Part {
    int32_t id;
    size_t begin, end;
  };
  std::vector<Part> split(const MarkedText& text) const;

 private:
  // The longest token at `begin` that ends at or before `end`; null if there is none.
  const AddedToken* longest_at(std::string_view text, size_t begin, size_t end) const;

  std::vector<AddedToken> tokens_;
  boost::unordered_flat_map<uint64_t, uint32_t> edges_;  // node << 8 | byte -> node; 0 is the root
  std::vector<int32_t> token_at_;                        // by node: index into tokens_, or -1
  std::array<bool, 256> begins_{};                       // by byte: some token begins with it
};

}  // namespace calandra

// A regular expression of a tokenizer.json, matched by PCRE2. The file's patterns are written for Oniguruma; those
// constructs that mean the same in both are accepted, all others are refused at load.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

namespace calandra {

struct TextSpan {
  size_t begin = 0, end = 0;
};

class Pattern {
 public:
  // Throw LoadError; `where` names the file and key.
  static Pattern regex(std::string_view expression, const std::string& where);
  static Pattern literal(std::string_view text, const std::string& where);

  // One character of a word: letters, marks, digits, connectors and joiners (Unicode UTS 18, annex C).
  static Pattern word_character();

  // Fills `matches` with all matches from left to right. An empty match right behind another match is left out. Ends
  // early behind more than `most` that are not empty.
  // `text` must be valid UTF-8. Safe to call from several threads. Throws UsageError if the match takes too many steps.
  void find_all(std::string_view text, std::vector<TextSpan>& matches, size_t most = SIZE_MAX) const;

 private:
  Pattern(std::string_view expression, uint32_t options, const std::string& where);

  std::shared_ptr<const void> code_;
};

// The same expression in PCRE2's syntax. Throws LoadError naming `where` and the construct.
std::string to_pcre2(std::string_view expression, const std::string& where);

}  // namespace calandra

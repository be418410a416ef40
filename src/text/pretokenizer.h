// The pre_tokenizer of a tokenizer.json: cuts text into the words that BPE works on. A list of Split steps, then
// ByteLevel.
#pragma once

#include <cstddef>
#include <cstdint>
#include <deque>
#include <string>
#include <string_view>
#include <vector>

#include "text/pattern.h"

namespace calandra {

enum class SplitBehavior { kRemoved, kIsolated, kMergedWithPrevious, kMergedWithNext, kContiguous };

struct SplitStep {
  Pattern pattern;
  SplitBehavior behavior = SplitBehavior::kIsolated;
  bool invert = false;            // what lies between matches counts as match
  bool add_prefix_space = false;  // first put a space before a piece that has none in front (ByteLevel)
};

class PreTokenizer {
 public:
  explicit PreTokenizer(std::vector<SplitStep> steps, bool add_prefix_space_at_end)
      : steps_(std::move(steps)), add_prefix_space_at_end_(add_prefix_space_at_end) {}

  // What a call of split needs; keep it to save allocations.
  struct Words {
    std::vector<std::string_view> words;  // the result; views into the text or into `storage`
    std::vector<std::string_view> next;
    std::vector<TextSpan> matches;
    std::deque<std::string> storage;  // does not move its strings
  };
  // Of more than `most` words it may cut no more: what is left is the last word then.
  void split(std::string_view text, Words& result, size_t most = SIZE_MAX) const;

 private:
  std::vector<SplitStep> steps_;
  bool add_prefix_space_at_end_;
};

}  // namespace calandra

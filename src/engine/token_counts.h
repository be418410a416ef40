// Which tokens occurred in a sequence, and how often among the outputs: what penalties ask for. Kept up to date token
// by token.
#pragma once

#include <algorithm>
#include <span>
#include <unordered_map>
#include <vector>

#include "base/check.h"
#include "ops/sampling.h"

namespace calandra {

class TokenCounts {
 public:
  // Counts the tokens that came since the last call; the first `prompt_size` of all belong to the prompt.
  void update(std::span<const int32_t> tokens, int64_t prompt_size) {
    CHECK_LE(counted_, static_cast<int64_t>(tokens.size()));
    for (; counted_ < static_cast<int64_t>(tokens.size()); ++counted_) {
      const int32_t id = tokens[counted_];
      const auto [at, is_new] = index_.try_emplace(id, entries_.size());
      if (is_new) entries_.push_back({id, 0});
      if (counted_ >= prompt_size) ++entries_[at->second].outputs;
    }
  }

  // Appends the counts, every id once, in order of first occurrence, as they would be if `drafts` were further outputs.
  ops::ListRange append_to(std::vector<ops::TokenCount>& list, std::span<const int32_t> drafts) const {
    const auto begin = static_cast<int32_t>(list.size());
    list.insert(list.end(), entries_.begin(), entries_.end());
    for (const int32_t id : drafts) {
      const auto known = index_.find(id);
      const auto at = known != index_.end() ? list.begin() + begin + static_cast<std::ptrdiff_t>(known->second)
                                            : std::find_if(list.begin() + begin + std::ssize(entries_), list.end(),
                                                           [id](const ops::TokenCount& c) { return c.id == id; });
      if (at != list.end())
        ++at->outputs;
      else
        list.push_back({id, 1});
    }
    return {begin, static_cast<int32_t>(list.size())};
  }

 private:
  int64_t counted_ = 0;
  std::vector<ops::TokenCount> entries_;
  std::unordered_map<int32_t, size_t> index_;
};

}  // namespace calandra

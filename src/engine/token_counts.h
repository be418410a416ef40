// Which tokens occurred in a sequence, and how often among the outputs: what penalties ask for. Kept up to date token
// by token.
#pragma once

#include <span>
#include <unordered_map>
#include <vector>

#include "ops/sampling.h"

namespace calandra {

class TokenCounts {
 public:
  // Counts the tokens that came since the last call; the first `prompt_size` of all belong to the prompt.
  void update(std::span<const int32_t> tokens, int64_t prompt_size) {
    for (; counted_ < static_cast<int64_t>(tokens.size()); ++counted_) {
      const int32_t id = tokens[counted_];
      const auto [at, is_new] = index_.try_emplace(id, entries_.size());
      if (is_new) entries_.push_back({id, 0});
      if (counted_ >= prompt_size) ++entries_[at->second].outputs;
    }
  }
  // Every id once.
  const std::vector<ops::TokenCount>& entries() const { return entries_; }

 private:
  int64_t counted_ = 0;
  std::vector<ops::TokenCount> entries_;
  std::unordered_map<int32_t, size_t> index_;
};

}  // namespace calandra

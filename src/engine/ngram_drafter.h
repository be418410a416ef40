// Prompt lookup: drafts are the tokens that followed an earlier occurrence of the last n tokens of the sequence
// (vLLM's "ngram").
//
// The longest n in [prompt_lookup_min, prompt_lookup_max] that occurred before wins, and of its occurrences the most
// recent one, which may overlap the end. vLLM takes the first occurrence: near text predicts better, and in an agent's
// history the newest version of a file is the one that is edited. Where the copied text reaches the end of the sequence
// the copy goes on with the drafts themselves (as LZ77 does; vLLM stops), so that a loop is drafted in full.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

namespace calandra {

// The history of one sequence, prompt and outputs; tokens are never taken back.
class NgramDrafter {
 public:
  // 1 <= prompt_lookup_min <= prompt_lookup_max, tokens. The result does not depend on `hash_seed`; an unknown one
  // keeps clients from choosing tokens whose hashes collide.
  NgramDrafter(int prompt_lookup_min, int prompt_lookup_max, uint64_t hash_seed = 0);

  // No allocation until the history has so many tokens.
  void reserve(int64_t tokens);

  // O(prompt_lookup_max^2) steps, whatever the history; amortised, as tables grow by doubling.
  void append(int32_t token);
  void append(std::span<const int32_t> tokens) {
    for (const int32_t token : tokens) append(token);
  }

  // The next k tokens as looked up; empty when no n-gram occurred before. Allocates only to grow `drafts`.
  void propose(int k, std::vector<int32_t>& drafts) const;

  int64_t size() const { return static_cast<int64_t>(tokens_.size()); }
  // Per token 4 bytes (at most 8 without reserve), and 8 to 16 per length of n-grams.
  int64_t memory_bytes() const;

 private:
  // The n-grams of one length by content: an open-addressing table of the place behind each one's last occurrence.
  struct Index {
    std::vector<int32_t> ends;  // a power of two; 0: free
    int64_t used = 0;
    int32_t earlier = 0;  // behind the last occurrence before the one that ends the history; 0: none
  };

  uint64_t hash(int64_t end, int n) const;
  // Where the n-gram that ends before `end` is, or the free place for it.
  size_t find(const Index& index, int64_t end, int n, uint64_t hash) const;
  void resize(Index& index, int n, size_t places);
  void note(Index& index, int n, uint64_t hash);

  int least_;
  uint64_t seed_;
  std::vector<int32_t> tokens_;
  std::vector<Index> indices_;  // n = least_, least_ + 1, ...
};

}  // namespace calandra

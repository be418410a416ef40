// Byte-level byte-pair encoding (arXiv:1508.07909; tokenizers models::bpe): a word starts as its bytes, and the pair of
// neighbours with the lowest rank is joined until no pair has one.
#pragma once

#include <algorithm>
#include <array>
#include <boost/unordered/unordered_flat_map.hpp>
#include <cstdint>
#include <functional>
#include <string>
#include <string_view>
#include <vector>

namespace calandra {

// The spelling of bytes in vocabulary files: printable characters of Latin-1 stand for themselves, other bytes for
// U+0100 and up.
std::string to_byte_spelling(std::string_view bytes);
// The bytes of a token's spelling; a token with any character outside that alphabet stands for its own UTF-8 bytes.
std::string from_byte_spelling(std::string_view spelling);

// Token to id; looked up by string_view.
struct TokenHash {
  using is_transparent = void;
  size_t operator()(std::string_view token) const { return boost::hash<std::string_view>()(token); }
};
using TokenIds = boost::unordered_flat_map<std::string, int32_t, TokenHash, std::equal_to<>>;

struct BpeMerge {
  int32_t left, right, joined;  // token ids; the merge's rank is its place in the list
};

class Bpe {
 public:
  // `byte_ids` has the token of each byte, -1 for a byte without one: as in tokenizers, such a byte is left out of
  // words. With `whole_words` (ignore_merges), a word that is a token by itself is not built from merges.
  Bpe(std::array<int32_t, 256> byte_ids, const std::vector<BpeMerge>& merges, TokenIds whole_words);

  // Memory of one encode call, kept between words.
  struct Scratch {
    struct Symbol {
      int32_t id;  // -1: joined into its left neighbour
      uint32_t previous, next;
    };
    // A pair that may be joined, by its left symbol. Those of one rank that were proposed from left to right are one
    // run, as in a word that repeats itself: the queue of a long word stays short, and work goes along its memory.
    struct Candidate {
      uint32_t at, next;  // of its run; or of those that are free
    };
    struct Run {
      uint32_t rank, at, first;  // at: of the first candidate
      int32_t joined;
    };
    struct Tail {
      uint32_t rank, last;
    };
    std::vector<Symbol> symbols;
    std::vector<Candidate> candidates;
    uint32_t free = 0;
    std::vector<Run> queue;
    std::array<Tail, 8> tails;  // by rank: runs that may grow
  };
  // No byte is left out of words.
  bool keeps_every_byte() const { return std::find(byte_ids_.begin(), byte_ids_.end(), -1) == byte_ids_.end(); }
  // Appends the ids of `word` (less than 2^31 bytes). n log n in its length.
  void encode(std::string_view word, Scratch& scratch, std::vector<int32_t>& ids) const;

 private:
  struct Merge {
    uint32_t rank;
    int32_t joined;
  };
  static uint64_t pair_key(int32_t left, int32_t right) {
    return static_cast<uint64_t>(static_cast<uint32_t>(left)) << 32 | static_cast<uint32_t>(right);
  }
  void propose(Scratch& scratch, uint32_t left, uint32_t right) const;
  static Scratch::Run take_first(Scratch& scratch);

  std::array<int32_t, 256> byte_ids_;
  boost::unordered_flat_map<uint64_t, Merge> merges_;
  TokenIds whole_words_;
};

}  // namespace calandra

// HashShadow: what the hash model must say and leave behind, computed from the tokens alone, without any cache; and
// comparisons of real pages and slots with it.
#pragma once

#include <functional>
#include <string>
#include <vector>

#include "cache/page_pool.h"
#include "cache/slot_pool.h"
#include "tests/hashsim/hash_rules.h"

namespace calandra::hashsim {

class HashShadow {
 public:
  explicit HashShadow(const HashModelConfig& config);

  // The next token, at rotary position (t, h, w); `image` is image_hash of its embedding row, 0 for text.
  void append(int32_t token, const std::array<int32_t, 3>& position, uint64_t image = 0);
  void append(int32_t token);  // text whose rotary position is its index
  int64_t size() const { return static_cast<int64_t>(rows_.size()); }
  const HashModelConfig& config() const { return config_; }

  // After token `index`.
  const HiddenRow& hidden(int64_t index) const { return rows_[index]; }
  std::vector<float> logits(int64_t index) const;
  int32_t greedy(int64_t index) const;

  // Chooses the token at `token_index` from its logits.
  using Choose = std::function<int32_t(std::span<const float> logits, int64_t token_index)>;
  static int32_t choose_greedy(std::span<const float> logits, int64_t token_index);
  // The drafts for tokens P + 1, ..., P + k, where token P is the last one that was sampled: entries
  // [first_key, P] come from true rows, those above from the drafter's own.
  std::vector<int32_t> drafts(int64_t P, int64_t k, int64_t first_key = 1, const Choose& choose = choose_greedy) const;

  // What caches hold of token `index`, and of all before token `index`.
  uint64_t key(int64_t block, int64_t index) const { return keys_[block][index]; }
  uint64_t entry(int64_t layer, int64_t index) const { return entries_[layer][index]; }
  uint64_t tau(int64_t index) const { return tau_[index]; }
  RecurrentInput pending(int64_t block, int64_t index) const;
  RecurrentState state(int64_t block, int64_t index) const;

 private:
  uint64_t entry_sum(int64_t layer, int64_t first_key, int64_t last) const;

  HashModelConfig config_;
  std::vector<int32_t> tokens_;
  std::vector<std::array<int32_t, 3>> positions_;
  std::vector<uint64_t> tau_, rho_, c_;
  std::vector<uint64_t> Z_;  // [size + 1]
  std::vector<HiddenRow> rows_;
  std::vector<std::vector<uint64_t>> keys_, X_;    // per block; X is [size + 1]
  std::vector<std::vector<uint64_t>> entries_;     // per MTP layer; that of index 0 is not used
  std::vector<std::vector<uint64_t>> entry_sums_;  // rolling sums of the entries 1, ..., index
};

// Each says in words what is different, or nothing. The tokens of the shadow are those of the sequence; it may have
// more.
//   The slot stands at P = N + accepted: state, window, N, accepted pending inputs, hidden rows (that of nan_token
//   equals nothing). P < 0: at any place.
std::string slot_difference(const HashShadow& shadow, const SlotPool& slots, int32_t slot, int64_t P = -1);
//   Keys of the tokens [begin, end) in the pages of a block table.
std::string page_difference(const HashShadow& shadow, const PagePool& pages, std::span<const int32_t> block_table,
                            int64_t begin, int64_t end);
//   MTP entries [begin, end), begin >= 1, made from true hidden rows.
std::string entry_difference(const HashShadow& shadow, const PagePool& pages, std::span<const int32_t> block_table,
                             int64_t begin, int64_t end);

// Overwrites what somebody gave back, so that nobody can go on reading it. `from`: first token in the page.
void scribble_page(const HashModelConfig& config, const PagePool& pages, int32_t page, uint64_t seed, int64_t from = 0);
// N and accepted too.
void scribble_slot(const HashModelConfig& config, const SlotPool& slots, int32_t slot, uint64_t seed);

}  // namespace calandra::hashsim

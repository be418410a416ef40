// Where the hash model keeps its words in pages and slots: views of one layer's tensors.
#pragma once

#include <vector>

#include "cache/cache_spec.h"
#include "tests/hashsim/hash_rules.h"

namespace calandra::hashsim {

// Decoder layers 2 b and 2 b + 1 are the attention and the recurrent layer of block b; MTP layers follow.
inline int attention_layer(int64_t block) { return static_cast<int>(2 * block); }
inline int recurrent_layer(int64_t block) { return static_cast<int>(2 * block + 1); }
inline int mtp_layer(const HashModelConfig& config, int64_t layer) {
  return static_cast<int>(2 * config.blocks + layer);
}

// Two tensors of different types, one of them with two heads, so that whoever copies entries must copy all of them.
class PageWords {
 public:
  static CacheSpec spec() { return {{{DType::kI64, 1, 1}, {DType::kI32, 2, 1}}, {}}; }

  explicit PageWords(const std::vector<Tensor>& paged)
      : pages_(paged[0].size(0)),
        page_tokens_(paged[0].size(2)),
        keys_(paged[0].as<int64_t>()),
        values_(paged[1].as<int32_t>()) {}

  int64_t page_tokens() const { return page_tokens_; }
  uint64_t key(int32_t page, int64_t slot) const { return static_cast<uint64_t>(keys_[at(page) + slot]); }
  uint64_t value(int32_t page, int64_t slot) const {
    const int32_t* value = values_ + 2 * at(page) + slot;
    return static_cast<uint32_t>(value[0]) | static_cast<uint64_t>(static_cast<uint32_t>(value[page_tokens_])) << 32;
  }
  void put(int32_t page, int64_t slot, uint64_t key) {
    const uint64_t word = value_of(key);
    keys_[at(page) + slot] = static_cast<int64_t>(key);
    int32_t* value = values_ + 2 * at(page) + slot;
    value[0] = static_cast<int32_t>(word);
    value[page_tokens_] = static_cast<int32_t>(word >> 32);
  }

 private:
  int64_t at(int32_t page) const {
    CHECK_MSG(page >= 0 && page < pages_, "page " + std::to_string(page));
    return page * page_tokens_;
  }
  int64_t pages_, page_tokens_;
  int64_t* keys_;
  int32_t* values_;
};

// State, window and their pending updates, four tensors as in a gated delta layer. Every word is salted per layer.
class SlotWords {
 public:
  static CacheSpec spec() {
    return {{},
            {{"recurrent", DType::kI64, {2}, false},
             {"recurrent_pending", DType::kI64, {3}, true},
             {"conv", DType::kI64, {kWindow}, false},
             {"conv_pending", DType::kI64, {1}, true}}};
  }

  SlotWords(const std::vector<Tensor>& slotted, int64_t block)
      : slots_(slotted[0].size(0)),
        capacity_(slotted[1].size(1)),
        salt_(block_salt(block)),
        state_(slotted[0].as<int64_t>()),
        pending_(slotted[1].as<int64_t>()),
        window_(slotted[2].as<int64_t>()),
        window_pending_(slotted[3].as<int64_t>()) {}

  int64_t capacity() const { return capacity_; }
  RecurrentState load(int32_t slot) const {
    const int64_t s = at(slot);
    RecurrentState state{read(state_ + 2 * s), read(state_ + 2 * s + 1), {}};
    for (int i = 0; i < kWindow; ++i) state.window[i] = read(window_ + kWindow * s + i);
    return state;
  }
  void store(int32_t slot, const RecurrentState& state) {
    const int64_t s = at(slot);
    write(state_ + 2 * s, state.Z);
    write(state_ + 2 * s + 1, state.X);
    for (int i = 0; i < kWindow; ++i) write(window_ + kWindow * s + i, state.window[i]);
  }
  RecurrentInput pending(int32_t slot, int64_t j) const {
    const int64_t* words = pending_ + 3 * (at(slot) * capacity_ + j);
    return {read(words), read(words + 1), read(words + 2)};
  }
  uint64_t pending_tau(int32_t slot, int64_t j) const { return read(window_pending_ + at(slot) * capacity_ + j); }
  void store_pending(int32_t slot, int64_t j, uint64_t tau, const RecurrentInput& input) {
    CHECK_LT(j, capacity_);
    int64_t* words = pending_ + 3 * (at(slot) * capacity_ + j);
    write(words, input.c);
    write(words + 1, input.rho);
    write(words + 2, input.key);
    write(window_pending_ + at(slot) * capacity_ + j, tau);
  }

 private:
  int64_t at(int32_t slot) const {
    CHECK_MSG(slot >= 0 && slot < slots_, "slot " + std::to_string(slot));
    return slot;
  }
  uint64_t read(const int64_t* word) const { return static_cast<uint64_t>(*word) ^ salt_; }
  void write(int64_t* word, uint64_t value) const { *word = static_cast<int64_t>(value ^ salt_); }

  int64_t slots_, capacity_;
  uint64_t salt_;
  int64_t* state_;
  int64_t* pending_;
  int64_t* window_;
  int64_t* window_pending_;
};

}  // namespace calandra::hashsim

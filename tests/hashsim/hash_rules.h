// The arithmetic of the hash model, in one place for the model, its shadow and the inspectors.
//
// What a token leaves behind, with e its token index:
//   tau(e)   token id, index and image row: what the convolution windows hold
//   rho(e)   its rotary position
//   c(e)     tau(e - W) ... tau(e), read through the window ("convolution")
//   R(e)     rolling hash of c(0), rho(0), ..., rho(e - 1), c(e); Z(e) the same after rho(e). The next token is a
//            function of R(e), so that a drafter can follow it without knowing the position of the token it is given.
//   key(e)   per attention layer: hash of tau, rho and everything below; stored in the pages
//   X(e)     rolling sum of the keys, kept by the recurrent layer above: what attention must find in the pages
// Attention reads A(e), the rolling sum of the keys in the pages. The difference A - X is 0 unless pages and slots do
// not belong together; it is added to c, and so changes R for good.
#pragma once

#include <array>
#include <bit>
#include <cstdint>
#include <span>

#include "models/step_cost.h"

namespace calandra::hashsim {

struct HashModelConfig {
  int64_t blocks = 2;      // pairs of an attention layer and a recurrent layer above it
  int64_t mtp_layers = 1;  // 0: no drafter
  bool vision = false;
  int64_t patch_size = 2, temporal_patch_size = 1;
  int64_t vocab_size = 64;
  float logit_scale = 8;   // logits are spread evenly over [0, logit_scale)
  double agreement = 0.6;  // how often a draft has the logits of the target
  int32_t nan_token = -1;  // the row of this token gives NaN logits
  uint64_t seed = 0;       // another seed is another model
  int64_t max_position_embeddings = 1 << 20;
  StepCost step_cost, draft_cost;
};

inline constexpr int kWindow = 3;  // convolution of width 4
using Window = std::array<uint64_t, kWindow>;

inline constexpr uint64_t kRoll = 0xd1342543de82ef95;  // odd: no bit is lost by rolling
inline constexpr uint64_t kDifference = 0x9e3779b97f4a7c15;

// Order matters: mix(a, b) != mix(b, a).
inline uint64_t mix(uint64_t a, uint64_t b) {
  uint64_t h = (a ^ 0x8ebc6af09c88c6e3) * 0xbf58476d1ce4e5b9 + b;
  h = (h ^ (h >> 32)) * 0x94d049bb133111eb;
  return h ^ (h >> 29);
}

// Differs for every layer, so that content of one layer means nothing in another.
inline uint64_t block_salt(int64_t block) { return mix(0xb10c, static_cast<uint64_t>(block)); }
inline uint64_t mtp_salt(int64_t layer) { return mix(0x317b, static_cast<uint64_t>(layer)); }

inline uint64_t token_hash(uint64_t seed, int32_t token, int64_t index, uint64_t image) {
  return mix(mix(mix(seed, static_cast<uint32_t>(token)), static_cast<uint64_t>(index)), image);
}
inline uint64_t position_hash(int32_t t, int32_t h, int32_t w) {
  return mix(mix(static_cast<uint32_t>(t), static_cast<uint32_t>(h)), static_cast<uint32_t>(w));
}
// window: oldest first
inline uint64_t convolve(const Window& window, uint64_t tau) {
  uint64_t c = 0;
  for (const uint64_t input : window) c = mix(c, input);
  return mix(c, tau);
}
inline void shift_in(Window& window, uint64_t tau) {
  for (int i = 0; i + 1 < kWindow; ++i) window[i] = window[i + 1];
  window[kWindow - 1] = tau;
}

// A page entry is a key, and a value that is a function of it; both are read.
inline uint64_t value_of(uint64_t key) { return mix(0x7a1e, key); }
inline uint64_t entry_word(uint64_t key, uint64_t value) { return key + value * kDifference; }
inline uint64_t entry_word(uint64_t key) { return entry_word(key, value_of(key)); }
inline uint64_t roll(uint64_t sum, uint64_t word) { return sum * kRoll + word; }

// What the recurrence of a layer is given for a token; the pending updates hold these three words.
struct RecurrentInput {
  uint64_t c, rho, key;
  bool operator==(const RecurrentInput&) const = default;
};
// State of a recurrent layer after some tokens; that of none is all zero.
struct RecurrentState {
  uint64_t Z = 0, X = 0;
  Window window{};

  uint64_t next_X(uint64_t key) const { return roll(X, entry_word(key)); }
  // Takes a token in and returns its R.
  uint64_t fold(uint64_t tau, const RecurrentInput& input) {
    const uint64_t R = mix(Z, input.c);
    Z = mix(R, input.rho);
    X = next_X(input.key);
    shift_in(window, tau);
    return R;
  }
  bool operator==(const RecurrentState&) const = default;
};

// The stream from layer to layer.
inline uint64_t stream_begin(uint64_t tau, uint64_t rho) { return mix(tau, rho); }
inline uint64_t attention_key(uint64_t stream, int64_t block) { return mix(stream, block_salt(block)); }
inline uint64_t stream_after(uint64_t stream, uint64_t A, uint64_t R) { return mix(mix(stream, A), R); }

// A row after the final norm, as 16-bit integers in f32: exact in every copy.
struct HiddenRow {
  uint64_t pick = 0;    // decides the logits; of the target it is R
  uint64_t R = 0;       // carried on by the drafter
  uint64_t stream = 0;  // everything the layers read; it goes into the MTP entries
  Window window{};      // tau of the last tokens, this one included
  bool operator==(const HiddenRow&) const = default;
};
inline constexpr int kHiddenWords = 3 + kWindow;
inline constexpr int kHiddenSize = 4 * kHiddenWords;

inline void put_word(float* to, uint64_t word) {
  for (int i = 0; i < 4; ++i) to[i] = static_cast<float>(word >> (16 * i) & 0xffff);
}
// Anything else than 16-bit integers, poison for instance, is read as some number or other.
inline uint64_t get_word(const float* from) {
  uint64_t word = 0;
  for (int i = 0; i < 4; ++i) {
    const bool integer = from[i] >= 0 && from[i] < 65536;
    word ^= (integer ? static_cast<uint64_t>(from[i]) : mix(1, std::bit_cast<uint32_t>(from[i]))) << (16 * i);
  }
  return word;
}
inline void put_hidden(float* to, const HiddenRow& row) {
  put_word(to, row.pick);
  put_word(to + 4, row.R);
  put_word(to + 8, row.stream);
  for (int i = 0; i < kWindow; ++i) put_word(to + 12 + 4 * i, row.window[i]);
}
inline HiddenRow get_hidden(const float* from) {
  HiddenRow row{get_word(from), get_word(from + 4), get_word(from + 8), {}};
  for (int i = 0; i < kWindow; ++i) row.window[i] = get_word(from + 12 + 4 * i);
  return row;
}

// An embedding row of an image; 0 stands for "no image".
inline uint64_t image_hash(const float* row, int64_t size) {
  uint64_t hash = 1;
  for (int64_t i = 0; i < size; ++i) hash = mix(hash, std::bit_cast<uint32_t>(row[i]));
  return hash;
}

// The drafter. Entry e is made from the row before it, token e and the rotary position of token e - 1; `row` becomes
// what the result carries of it (R and window). Returns what the entries of all MTP layers share.
inline uint64_t entry_begin(HiddenRow& row, uint64_t tau, uint64_t rho_before) {
  row.R = mix(mix(row.R, rho_before), convolve(row.window, tau));
  shift_in(row.window, tau);
  return mix(mix(row.stream, row.R), mix(tau, rho_before));
}
inline uint64_t entry_key(uint64_t begin, int64_t layer) { return mix(begin, mtp_salt(layer)); }
// A: rolling sum over the entries seen by `layer`.
inline void entry_result(const HashModelConfig& config, HiddenRow& row, uint64_t A, int64_t layer) {
  row.stream = mix(A, mtp_salt(layer) + 1);
  const bool agrees = static_cast<double>(row.stream >> 11) < config.agreement * 0x1p53;
  row.pick = agrees ? row.R : mix(row.R, row.stream);
}

inline void logits_of(const HashModelConfig& config, uint64_t pick, std::span<float> out) {
  for (size_t v = 0; v < out.size(); ++v)
    out[v] = config.logit_scale * static_cast<float>(mix(pick, v) >> 40) * 0x1p-24f;
}

}  // namespace calandra::hashsim

// The noise that makes argmax a sampler: token = argmax(logit + G[token id]), G Gumbel distributed, one
// value per seed, token index, choice and token id, whatever the batch, the vocabulary's shards or the drafts.
//
// The same bits on every instruction set and device: noise.cc uses f32 additions and multiplications only, each rounded
// once (it is compiled with -ffp-contract=off, and its functions are not inline, so that no caller's flags fuse them).
// A device repeats the same operations in the same order. noise_test.cc compares with recorded bits.
#pragma once

#include <bit>
#include <cstdint>

#include "base/philox.h"

namespace calandra {

// What names the noise of one sampled token.
struct NoiseKey {
  uint64_t seed = 0;         // of the request
  uint32_t token_index = 0;  // place of the sampled token in its sequence (never a rotary position)
  uint32_t choice = 0;       // choice index of the request
  uint32_t stream = 0;       // 0 for target and drafts alike; other values are reserved
};

// Random words of the token ids [4 block, 4 block + 4); lane i belongs to id 4 block + i.
constexpr PhiloxCounter noise_words(const NoiseKey& key, uint32_t block) {
  return philox4x32({block, key.token_index, key.choice, key.stream}, key.seed);
}

// G = -log(-log1p(-w)) with w = min((f32(x) + 1/2) 2^-32, 1 - 2^-24), for a random word x. Within 4e-7 max(1, |G|) of
// the exact value. At most 22.88 (x = 0), at least -2.82.
float gumbel(uint32_t x);

// Largest value of gumbel().
constexpr float kMaxGumbel = 22.88f;

// gumbel(x) is never above this: x has its highest bit at 31 - c, so w > 2^-(c + 1), and G <= -log w < (c + 1) log 2.
constexpr float gumbel_bound(uint32_t x) { return static_cast<float>(std::countl_zero(x) + 1) * 0.69315f + 1e-4f; }

// log of a positive normal f32, by the polynomial that gumbel() uses; within 2 ulp.
float log_f32(float x);

// exp(x) for x <= 0, within 2 ulp; 0 below -87 and for minus infinity. Same bits everywhere, as above.
void exp_nonpositive(const float* x, float* out, int64_t n);

// exp(x) for x <= 0 in units of 2^-44, rounded to nearest even: integers, whose sums are exact in every order (up to
// 2^19 terms). 0 below kNoMass.
void exp_mass(const float* x, uint64_t* out, int64_t n);
constexpr float kNoMass = -31.5f;

}  // namespace calandra

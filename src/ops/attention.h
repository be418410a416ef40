// Rotary positions and paged softmax attention.
//   T rows   B sequences   H query heads   Hkv key/value heads   Dh head_dim   R rotary dims
#pragma once

#include "ops/batch.h"
#include "ops/cache_views.h"
#include "ops/exec_context.h"

namespace calandra::ops {

// Rotary frequencies of a model: frequency i turns by position[axis[i]] * inv_freq[i].
struct RopeFrequencies {
  Tensor inv_freq;  // [R / 2] f64
  Tensor axis;      // [R / 2] i32: 0 temporal, 1 height, 2 width
  float scale = 1;  // multiplies cos and sin (attention scaling of YaRN)
};

// Cosines and sines of every row, once per step for all layers. Angles in f64, one rounding to `dtype` (HF casts them
// to the activation type).
//   positions [3, T] i32   returns [2, T, R / 2] in dtype: cosines, sines
Tensor rope_table(ExecContext& ctx, const Tensor& positions, const RopeFrequencies& frequencies, DType dtype);

enum class RopePairing {
  kHalves,     // (x_i, x_{i + R/2})
  kNeighbours  // (x_2i, x_{2i + 1}), HF's rope_interleave; each stays in its place
};

// Rotates the first R dims of each head, in pairs; the rest passes through.
// A turn is computed in f32 and rounded once.
//   x [T, H, Dh]   table [2, T, R / 2] as x, or f32   returns [T, H, Dh], dense
Tensor rope(ExecContext& ctx, const Tensor& x, const Tensor& table, RopePairing pairing = RopePairing::kHalves);

// Puts the rows' keys and values at their token index. Rows of inactive sequences write nothing.
//   k, v [T, Hkv, Dh] as the pages
void store_kv(ExecContext& ctx, const Tensor& k, const Tensor& v, KvPages& pages, const Batch& batch);

// q, k normalised per head (weight + offset), rotated; k, v stored. HF Qwen3_5Attention before the softmax.
//   q [T, H, Dh]   k, v [T, Hkv, Dh]   q_norm, k_norm [Dh] f32; absent: no norm   table [2, T, R / 2]
//   returns q [T, H, Dh]
struct QkNorm {
  const Tensor& q_norm;
  const Tensor& k_norm;
  float eps;
  float weight_offset;
  // Names of the taps of q and k, normalised and rotated.
  const char* q_normed = "q_normed";
  const char* k_normed = "k_normed";
  const char* q_rotated = "q_rotated";
  const char* k_rotated = "k_rotated";
};
Tensor qk_norm_rope_store(ExecContext& ctx, const Tensor& q, const Tensor& k, const Tensor& v, const QkNorm& norm,
                          const Tensor& table, KvPages& pages, const Batch& batch);

// Causal softmax attention over the pages: row t of sequence b sees the keys [first_key[b], token_index[t]], as stored,
// its own included. Query head h reads key head h / (H / Hkv). Scores, softmax and the weighted sum in f32, one
// rounding at the end. Keys are visited in blocks at absolute positions, so that a result depends on neither chunk,
// batch, page size nor threads. Rows of inactive sequences give zeros.
//   q [T, H, Dh]   first_key [B] i32, absent: 0   returns [T, H, Dh]
Tensor paged_attention(ExecContext& ctx, const Tensor& q, const KvPages& pages, const Batch& batch, float scale,
                       const Tensor& first_key = {});

// The whole mixer between the projections and o_proj: qk_norm_rope_store, paged_attention and, with a gate, its product
// with sigmoid(gate), rounded as its parts are.  HF Qwen3_5Attention; without a gate, SGLang's bailing_moe_linear.py.
//   q [T, H, Dh]   k, v [T, Hkv, Dh]   gate [T, H Dh] as q, absent: none   first_key [B] i32, absent: 0
//   returns [T, H Dh]
Tensor attention_mixer(ExecContext& ctx, const Tensor& q, const Tensor& k, const Tensor& v, const Tensor& gate,
                       const QkNorm& norm, const Tensor& table, KvPages& pages, const Batch& batch, float scale,
                       const Tensor& first_key = {});

}  // namespace calandra::ops

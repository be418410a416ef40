// Softmax attention with an output gate: o_proj(attention(q, k, v) * sigmoid(gate)).  HF Qwen3_5Attention.
//   H query heads   Hkv key/value heads   Dh head_dim
#pragma once

#include "cache/cache_spec.h"
#include "layers/rms_norm.h"
#include "ops/attention.h"
#include "ops/dense.h"
#include "weights/weight_reader.h"

namespace calandra {

struct GatedAttention {
  struct Sizes {
    int64_t hidden_size, num_attention_heads, num_key_value_heads, head_dim;
    float eps;
  };
  // Reads q_proj, k_proj, v_proj, o_proj, q_norm, k_norm below `reader`.
  GatedAttention(WeightReader reader, const Sizes& sizes);

  // x [T, D], normalised   table [2, T, R / 2]   first_key [B], absent: 0   returns [T, D]
  Tensor forward(ExecContext& ctx, const Batch& batch, LayerCache& cache, const Tensor& x, const Tensor& table,
                 const Tensor& first_key = {}) const;
  CacheSpec cache_spec(DType dtype) const;

  Sizes sizes;
  LinearPack qgkv{4};  // q [H Dh], gate [H Dh], k [Hkv Dh], v [Hkv Dh]: one read of x
  PackedWeight o_proj;
  Tensor q_norm, k_norm;  // [Dh] f32, stored minus one
};

}  // namespace calandra

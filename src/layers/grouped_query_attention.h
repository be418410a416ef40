// Softmax attention with grouped key heads and one fused projection: dense(attention(q, k, v)).
// The full-attention layers of BailingMoeLinearV2 (SGLang bailing_moe_linear.py).
//   H query heads   Hkv key/value heads   D head_dim
#pragma once

#include "cache/cache_spec.h"
#include "ops/attention.h"
#include "ops/dense.h"
#include "weights/weight_reader.h"

namespace calandra {

struct GroupedQueryAttention {
  struct Sizes {
    int64_t hidden_size, num_attention_heads, num_key_value_heads, head_dim;
    float eps;
    bool use_qk_norm;
    bool qkv_bias, dense_bias;  // of random weights; a checkpoint is asked
  };
  // Reads query_key_value, query_layernorm, key_layernorm, dense below `reader`.
  GroupedQueryAttention(WeightReader reader, const Sizes& sizes);

  // x [T, hidden_size], normalised   table [2, T, R / 2]   returns [T, hidden_size]
  Tensor forward(ExecContext& ctx, const Batch& batch, LayerCache& cache, const Tensor& x, const Tensor& table) const;
  CacheSpec cache_spec(DType dtype) const;

  Sizes sizes;
  PackedWeight query_key_value;  // [(H + 2 Hkv) D], rows q | k | v
  Tensor q_norm, k_norm;         // [D] f32, plain; absent without use_qk_norm
  PackedWeight dense;
};

}  // namespace calandra

// Multi-head latent attention (MLA, arXiv:2405.04434).  HF BailingMoeV2_5Attention, DeepseekV3Attention.
//   H heads   L kv_lora_rank   Dn, R qk_nope_head_dim, qk_rope_head_dim   Dv v_head_dim
#pragma once

#include "cache/cache_spec.h"
#include "layers/rms_norm.h"
#include "ops/attention.h"
#include "ops/dense.h"
#include "ops/latent_attention.h"
#include "weights/weight_reader.h"

namespace calandra {

struct LatentAttention {
  struct Sizes {
    int64_t hidden_size, num_attention_heads;
    int64_t q_lora_rank;  // 0: one q_proj
    int64_t kv_lora_rank, qk_nope_head_dim, qk_rope_head_dim, v_head_dim;
    float eps;
    float scale_factor;  // of the softmax scale (Dn + R)^(-1/2): mscale^2
    bool bias;           // of random weights; a checkpoint is asked
  };
  // Reads q_a_proj, q_a_layernorm, q_b_proj (or q_proj), kv_a_proj_with_mqa, kv_a_layernorm, kv_b_proj, dense below
  // `reader`.
  LatentAttention(WeightReader reader, const Sizes& sizes);

  // x [T, hidden_size], normalised   table [2, T, R / 2]   first_key [B], absent: 0   returns [T, hidden_size]
  // QUIRK: the rope turns neighbours (2i, 2i + 1), over all of R; that of the lightning layers turns halves.
  Tensor forward(ExecContext& ctx, const Batch& batch, LayerCache& cache, const Tensor& x, const Tensor& table,
                 const Tensor& first_key = {}) const;
  CacheSpec cache_spec(DType dtype) const;

  // fn(weight) for every pack, matrix and group that a step reads.
  template <class F>
  void for_each_weight(const F& fn) const {
    fn(from_x);
    if (sizes.q_lora_rank > 0) fn(q_b);
    fn(up.key);
    fn(up.value);
    fn(dense);
  }

  Sizes sizes;
  LinearPack from_x;  // of x: q_a [q_lora_rank] or q_nope [H Dn], q_pe [H R]; last kv_a [L + R]
  LinearPack q_b;     // with q_lora_rank: q_nope [H Dn], q_pe [H R] of q_a
  RmsNorm q_a_layernorm, kv_a_layernorm;
  ops::LatentUpProjection up;
  PackedWeight dense;
};

}  // namespace calandra

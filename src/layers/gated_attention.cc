#include "layers/gated_attention.h"

#include <cmath>

namespace calandra {

GatedAttention::GatedAttention(WeightReader reader, const Sizes& s) : sizes(s) {
  const int64_t H = s.num_attention_heads, Hkv = s.num_key_value_heads, Dh = s.head_dim;
  // Per query head the checkpoint stores Dh rows of the query, then Dh rows of its gate.
  const MatrixShape q_shape{{"2 * num_attention_heads * head_dim", 2 * H * Dh}, {"hidden_size", s.hidden_size}};
  reader.linear(qgkv.part(0), "q_proj.weight", q_shape, RowBlocks{.first = 0, .rows = Dh, .step = 2 * Dh});
  reader.linear(qgkv.part(1), "q_proj.weight", q_shape, RowBlocks{.first = Dh, .rows = Dh, .step = 2 * Dh});
  const MatrixShape kv_shape{{"num_key_value_heads * head_dim", Hkv * Dh}, {"hidden_size", s.hidden_size}};
  reader.linear(qgkv.part(2), "k_proj.weight", kv_shape);
  reader.linear(qgkv.part(3), "v_proj.weight", kv_shape);
  reader.linear(o_proj, "o_proj.weight", {{"hidden_size", s.hidden_size}, {"num_attention_heads * head_dim", H * Dh}});
  reader.vector(q_norm, "q_norm.weight", {"head_dim", Dh});
  reader.vector(k_norm, "k_norm.weight", {"head_dim", Dh});
}

Tensor GatedAttention::forward(ExecContext& ctx, const Batch& batch, LayerCache& cache, const Tensor& x,
                               const Tensor& table, const Tensor& first_key) const {
  const int64_t T = x.size(0), H = sizes.num_attention_heads, Hkv = sizes.num_key_value_heads, Dh = sizes.head_dim;
  KvPages pages{cache.paged[0], cache.paged[1]};

  const auto [q, gate, k, v] = ops::linear(ctx, x, qgkv);  // [T, H Dh] [T, H Dh] [T, Hkv Dh] [T, Hkv Dh]
  if (ctx.taps != nullptr) {                               // HF's tables have each value twice
    ctx.tap("rope_cos", ops::concat_columns(ctx, table[0], table[0]));
    ctx.tap("rope_sin", ops::concat_columns(ctx, table[1], table[1]));
  }
  ctx.tap("gate", gate.view({T, H, Dh}));
  const float scale = 1.0f / std::sqrt(static_cast<float>(Dh));
  Tensor o = ops::attention_mixer(ctx, q.view({T, H, Dh}), k.view({T, Hkv, Dh}), v.view({T, Hkv, Dh}), gate,
                                  {q_norm, k_norm, sizes.eps, 1.0f}, table, pages, batch, scale,
                                  first_key);  // [T, H Dh]
  ctx.tap("gated", o);
  o = ops::linear(ctx, o, o_proj, x.dtype());  // [T, D]
  ctx.tap("output", o);
  return o;
}

CacheSpec GatedAttention::cache_spec(DType dtype) const {
  CacheSpec spec;
  spec.paged = {{dtype, sizes.num_key_value_heads, sizes.head_dim}, {dtype, sizes.num_key_value_heads, sizes.head_dim}};
  return spec;
}

}  // namespace calandra

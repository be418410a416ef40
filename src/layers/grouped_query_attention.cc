#include "layers/grouped_query_attention.h"

#include <cmath>

namespace calandra {

GroupedQueryAttention::GroupedQueryAttention(WeightReader reader, const Sizes& s) : sizes(s) {
  const int64_t H = s.num_attention_heads, Hkv = s.num_key_value_heads, D = s.head_dim;
  const Axis hidden{"hidden_size", s.hidden_size};
  const Axis all{"(num_attention_heads + 2 * num_key_value_heads) * head_dim", (H + 2 * Hkv) * D};
  reader.linear(query_key_value, "query_key_value.weight", {all, hidden});
  if (reader.has("query_key_value.bias", s.qkv_bias)) reader.vector(query_key_value.bias, "query_key_value.bias", all);
  if (s.use_qk_norm) {
    reader.vector(q_norm, "query_layernorm.weight", {"head_dim", D});
    reader.vector(k_norm, "key_layernorm.weight", {"head_dim", D});
  }
  reader.linear(dense, "dense.weight", {hidden, {"num_attention_heads * head_dim", H * D}});
  if (reader.has("dense.bias", s.dense_bias)) reader.vector(dense.bias, "dense.bias", hidden);
}

Tensor GroupedQueryAttention::forward(ExecContext& ctx, const Batch& batch, LayerCache& cache, const Tensor& x,
                                      const Tensor& table) const {
  const int64_t T = x.size(0), H = sizes.num_attention_heads, Hkv = sizes.num_key_value_heads, D = sizes.head_dim;
  KvPages pages{cache.paged[0], cache.paged[1]};

  const Tensor qkv = ops::linear(ctx, x, query_key_value, x.dtype());  // [T, (H + 2 Hkv) D]
  const Tensor q = qkv.slice(1, 0, H * D).view({T, H, D});
  const Tensor k = qkv.slice(1, H * D, (H + Hkv) * D).view({T, Hkv, D});
  const Tensor v = qkv.slice(1, (H + Hkv) * D, qkv.size(1)).view({T, Hkv, D});
  ctx.tap("q", q);
  ctx.tap("k", k);
  const ops::QkNorm norm{q_norm, k_norm, sizes.eps, 0.0f, "q_norm", "k_norm", "q_rope", "k_rope"};
  const float scale = 1.0f / std::sqrt(static_cast<float>(D));
  Tensor o = ops::attention_mixer(ctx, q, k, v, {}, norm, table, pages, batch, scale);  // [T, H D], taps v
  ctx.tap("core", o.view({T, H, D}));
  o = ops::linear(ctx, o, dense, x.dtype());  // [T, hidden_size]
  ctx.tap("attn_out", o);
  return o;
}

CacheSpec GroupedQueryAttention::cache_spec(DType dtype) const {
  CacheSpec spec;
  spec.paged = {{dtype, sizes.num_key_value_heads, sizes.head_dim}, {dtype, sizes.num_key_value_heads, sizes.head_dim}};
  return spec;
}

}  // namespace calandra

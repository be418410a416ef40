#include "layers/latent_attention.h"

#include <algorithm>
#include <cmath>

namespace calandra {
namespace {

void read_norm(RmsNorm& norm, WeightReader reader, const char* name, const Axis& axis, float eps) {
  reader.vector(norm.weight, name, axis);
  norm.eps = eps;
  norm.weight_offset = 0;
}

}  // namespace

LatentAttention::LatentAttention(WeightReader reader, const Sizes& s)
    : sizes(s), from_x(s.q_lora_rank > 0 ? 2 : 3), q_b(s.q_lora_rank > 0 ? 2 : 0) {
  const int64_t H = s.num_attention_heads, L = s.kv_lora_rank, Dn = s.qk_nope_head_dim, R = s.qk_rope_head_dim,
                Dv = s.v_head_dim;
  const Axis hidden{"hidden_size", s.hidden_size}, rank{"kv_lora_rank", L}, q_rank{"q_lora_rank", s.q_lora_rank};
  const Axis queries{"num_attention_heads * (qk_nope_head_dim + qk_rope_head_dim)", H * (Dn + R)};
  // Per head the checkpoint stores Dn rows without rope, then R rows with it.
  const auto read_q = [&](LinearPack& pack, const char* name, const Axis& from) {
    reader.linear(pack.part(0), name, {queries, from}, RowBlocks{.first = 0, .rows = Dn, .step = Dn + R});
    reader.linear(pack.part(1), name, {queries, from}, RowBlocks{.first = Dn, .rows = R, .step = Dn + R});
  };
  if (s.q_lora_rank > 0) {
    reader.linear(from_x.part(0), "q_a_proj.weight", {q_rank, hidden});
    if (reader.has("q_a_proj.bias", s.bias)) reader.vector(from_x.part(0).bias, "q_a_proj.bias", q_rank);
    read_norm(q_a_layernorm, reader, "q_a_layernorm.weight", q_rank, s.eps);
    read_q(q_b, "q_b_proj.weight", q_rank);
  } else {
    read_q(from_x, "q_proj.weight", hidden);
  }
  PackedWeight& kv_a = from_x.part(s.q_lora_rank > 0 ? 1 : 2);
  const Axis compressed{"kv_lora_rank + qk_rope_head_dim", L + R};
  reader.linear(kv_a, "kv_a_proj_with_mqa.weight", {compressed, hidden});
  if (reader.has("kv_a_proj_with_mqa.bias", s.bias)) reader.vector(kv_a.bias, "kv_a_proj_with_mqa.bias", compressed);
  read_norm(kv_a_layernorm, reader, "kv_a_layernorm.weight", rank, s.eps);

  // Per head, Dn rows of the key, which `up` wants transposed, then Dv rows of the value.
  const MatrixShape kv_b{{"num_attention_heads * (qk_nope_head_dim + v_head_dim)", H * (Dn + Dv)}, rank};
  reader.rearranged(up.key, "kv_b_proj.weight", kv_b, H, L, Dn, [=](const float* stored, int64_t h, float* out) {
    const float* rows = stored + h * (Dn + Dv) * L;
    for (int64_t i = 0; i < Dn; ++i)
      for (int64_t l = 0; l < L; ++l) out[l * Dn + i] = rows[i * L + l];
  });
  reader.rearranged(up.value, "kv_b_proj.weight", kv_b, H, Dv, L, [=](const float* stored, int64_t h, float* out) {
    std::copy_n(stored + (h * (Dn + Dv) + Dn) * L, Dv * L, out);
  });
  reader.linear(dense, "dense.weight", {hidden, {"num_attention_heads * v_head_dim", H * Dv}});
  if (reader.has("dense.bias", s.bias)) reader.vector(dense.bias, "dense.bias", hidden);
}

Tensor LatentAttention::forward(ExecContext& ctx, const Batch& batch, LayerCache& cache, const Tensor& x,
                                const Tensor& table, const Tensor& first_key) const {
  const int64_t T = x.size(0), H = sizes.num_attention_heads, L = sizes.kv_lora_rank, Dn = sizes.qk_nope_head_dim,
                R = sizes.qk_rope_head_dim;
  const auto pages_of = [](const Tensor& paged) {  // [pages, 1, page tokens, dim]
    return paged.view({paged.size(0), paged.size(2), paged.size(3)});
  };
  LatentPages pages{pages_of(cache.paged[0]), pages_of(cache.paged[1])};

  ops::PackResult projected = ops::linear(ctx, x, from_x);
  const Tensor kv = projected[sizes.q_lora_rank > 0 ? 1 : 2];  // [T, L + R]
  Tensor q_from = x;
  if (sizes.q_lora_rank > 0) {
    const Tensor q_a = projected[0];  // [T, q_lora_rank]
    q_from = q_a_layernorm(ctx, q_a);
    ctx.tap("q_a", q_a);
    ctx.tap("q_a_norm", q_from);
    projected = ops::linear(ctx, q_from, q_b);
  }
  if (ctx.taps != nullptr) {  // both parts of every head side by side, before the rotation
    const auto parts = (sizes.q_lora_rank > 0 ? q_b : from_x).parts();
    const Tensor without = ops::linear(ctx, q_from, parts[0], x.dtype()).view({T * H, Dn});
    const Tensor with = ops::linear(ctx, q_from, parts[1], x.dtype()).view({T * H, R});
    ctx.tap("q", ops::concat_columns(ctx, without, with).view({T, H, Dn + R}));
  }
  const Tensor q_nope = projected[0].view({T, H, Dn});
  const Tensor q_pe = ops::rope(ctx, projected[1].view({T, H, R}), table, ops::RopePairing::kNeighbours);
  const Tensor latent = kv_a_layernorm(ctx, kv.slice(1, 0, L));
  const Tensor k_pe =
      ops::rope(ctx, kv.slice(1, L, L + R).view({T, 1, R}), table, ops::RopePairing::kNeighbours).view({T, R});
  ctx.tap("q_pe", q_pe);
  ctx.tap("latent", latent);
  ctx.tap("k_pe", k_pe);

  ops::store_latent(ctx, latent, k_pe, pages, batch);
  const float scale = sizes.scale_factor / std::sqrt(static_cast<float>(Dn + R));
  Tensor o = ops::latent_attention(ctx, q_nope, q_pe, up, pages, batch, scale, first_key);  // [T, H, Dv]
  ctx.tap("core", o);
  o = ops::linear(ctx, o.view({T, H * sizes.v_head_dim}), dense, x.dtype());  // [T, hidden_size]
  ctx.tap("attn_out", o);
  return o;
}

CacheSpec LatentAttention::cache_spec(DType dtype) const {
  CacheSpec spec;
  spec.paged = {{dtype, 1, sizes.kv_lora_rank}, {dtype, 1, sizes.qk_rope_head_dim}};
  return spec;
}

}  // namespace calandra

#include "layers/lightning_attention.h"

#include <bit>
#include <cmath>

namespace calandra {
namespace {

// ALiBi's slopes: 2^(-8 (i + 1) / n) for a power of two; else those of the next lower one, then every other one of the
// next higher.
std::vector<double> base_slopes(int64_t n) {
  const auto of_power = [](int64_t power) {
    std::vector<double> slopes;
    for (int64_t i = 0; i < power; ++i)
      slopes.push_back(std::exp2(-8.0 * static_cast<double>(i + 1) / static_cast<double>(power)));
    return slopes;
  };
  const auto power = static_cast<int64_t>(std::bit_floor(static_cast<uint64_t>(n)));
  std::vector<double> slopes = of_power(power);
  const std::vector<double> finer = of_power(2 * power);
  for (int64_t i = 0; i < n - power; ++i) slopes.push_back(finer[2 * i]);
  return slopes;
}

}  // namespace

std::vector<float> decay_slopes(int64_t num_attention_heads, int64_t layer, int64_t num_hidden_layers,
                                LinearDecayVariant variant) {
  const double before = static_cast<double>(variant == LinearDecayVariant::kH ? layer - 1 : layer);
  double factor = 1;
  if (variant != LinearDecayVariant::kNone)
    factor = 1 + 1e-5 - (num_hidden_layers > 1 ? before / static_cast<double>(num_hidden_layers - 1) : 0);
  std::vector<float> slopes;
  for (const double base : base_slopes(num_attention_heads)) slopes.push_back(static_cast<float>(base * factor));
  return slopes;
}

LightningAttention::LightningAttention(WeightReader reader, const Sizes& s) : sizes(s) {
  const int64_t HD = s.num_attention_heads * s.head_dim;
  const Axis hidden{"hidden_size", s.hidden_size}, width{"num_attention_heads * head_dim", HD};
  reader.linear(qkvg.part(0), "query_key_value.weight", {{"3 * num_attention_heads * head_dim", 3 * HD}, hidden});
  if (reader.has("query_key_value.bias", s.qkv_bias))
    reader.vector(qkvg.part(0).bias, "query_key_value.bias", {"3 * num_attention_heads * head_dim", 3 * HD});
  reader.linear(qkvg.part(1), "g_proj.weight", {width, hidden});
  if (s.use_qk_norm) {
    reader.vector(weights.q_norm, "query_layernorm.weight", {"head_dim", s.head_dim});
    reader.vector(weights.k_norm, "key_layernorm.weight", {"head_dim", s.head_dim});
  }
  reader.vector(weights.g_norm, "g_norm.weight", width);
  reader.computed(weights.slope, decay_slopes(s.num_attention_heads, s.layer, s.num_hidden_layers, s.decay));
  weights.norm_groups = s.norm_groups;
  weights.eps = s.eps;
  weights.silu = s.silu;
  weights.rope = s.rope;
  reader.linear(dense, "dense.weight", {hidden, width});
  if (reader.has("dense.bias", s.dense_bias)) reader.vector(dense.bias, "dense.bias", hidden);
}

Tensor LightningAttention::forward(ExecContext& ctx, const Batch& batch, LayerCache& cache, const SlotCounts& slots,
                                   const Tensor& x, const Tensor& table) const {
  LightningState state{cache.slotted[0], cache.slotted[1], cache.slotted[2]};  // in the order of cache_spec

  const auto [qkv, gate, unused_2, unused_3] = ops::linear(ctx, x, qkvg, DType::kF32);  // [T, 3 H D] [T, H D]
  Tensor o = ops::lightning_mixer(ctx, qkv, gate, weights, table, state, slots.accepted, batch, x.dtype());  // [T, H D]
  o = ops::linear(ctx, o, dense, x.dtype());  // [T, hidden_size]
  ctx.tap("attn_out", o);
  return o;
}

CacheSpec LightningAttention::cache_spec() const {
  const int64_t H = sizes.num_attention_heads, D = sizes.head_dim;
  CacheSpec spec;
  spec.slotted = {{"recurrent", DType::kF32, {H, D, D}, false},  // in the order that forward takes them
                  {"pending_k", DType::kF32, {H, D}, true},
                  {"pending_v", DType::kF32, {H, D}, true}};
  return spec;
}

}  // namespace calandra

#include "layers/gated_delta_net.h"

namespace calandra {

GatedDeltaNet::GatedDeltaNet(WeightReader reader, const Sizes& s) : sizes(s) {
  const int64_t Hv = s.num_value_heads;
  const int64_t key_dim = s.num_key_heads * s.key_head_dim, value_dim = Hv * s.value_head_dim;
  const int64_t C = 2 * key_dim + value_dim;
  const Axis hidden{"hidden_size", s.hidden_size};
  reader.linear(in_proj.part(0), "in_proj_qkv.weight", {{"2 * key_dim + value_dim", C}, hidden});
  reader.linear(in_proj.part(1), "in_proj_z.weight", {{"value_dim", value_dim}, hidden});
  reader.linear(in_proj.part(2), "in_proj_b.weight", {{"linear_num_value_heads", Hv}, hidden});
  reader.linear(in_proj.part(3), "in_proj_a.weight", {{"linear_num_value_heads", Hv}, hidden});
  reader.tensor(weights.conv1d, "conv1d.weight",
                {{"2 * key_dim + value_dim", C}, {"1", 1}, {"linear_conv_kernel_dim", s.kernel}}, {C, s.kernel});
  reader.vector(weights.A_log, "A_log", {"linear_num_value_heads", Hv});
  reader.vector(weights.dt_bias, "dt_bias", {"linear_num_value_heads", Hv});
  reader.vector(weights.norm, "norm.weight", {"linear_value_head_dim", s.value_head_dim});
  weights.eps = s.eps;
  weights.gate = s.gate;
  reader.linear(out_proj, "out_proj.weight", {hidden, {"value_dim", value_dim}});
}

Tensor GatedDeltaNet::forward(ExecContext& ctx, const Batch& batch, LayerCache& cache, const SlotCounts& slots,
                              const Tensor& x) const {
  const std::vector<Tensor>& s = cache.slotted;  // in the order of cache_spec
  ConvState conv{s[0], s[1]};
  DeltaState delta{s[2], s[3], s[4], s[5], s[6]};

  const auto [qkv, z, b, a] = ops::linear(ctx, x, in_proj);  // [T, C] [T, Hv Dv] [T, Hv] [T, Hv]
  Tensor o = ops::gated_delta_mixer(ctx, qkv, z, b, a, weights, conv, delta, slots.accepted, batch);  // [T, Hv Dv]
  o = ops::linear(ctx, o, out_proj, x.dtype());                                                       // [T, D]
  ctx.tap("output", o);
  return o;
}

CacheSpec GatedDeltaNet::cache_spec(DType dtype) const {
  const int64_t Hk = sizes.num_key_heads, Hv = sizes.num_value_heads, Dk = sizes.key_head_dim,
                Dv = sizes.value_head_dim;
  const int64_t C = 2 * Hk * Dk + Hv * Dv;
  CacheSpec spec;
  spec.slotted = {{"conv", dtype, {sizes.kernel - 1, C}, false},  // in the order that forward takes them
                  {"conv_pending", dtype, {C}, true},
                  {"recurrent", DType::kF32, {Hv, Dk, Dv}, false},
                  {"pending_k", DType::kF32, {Hk, Dk}, true},
                  {"pending_v", DType::kF32, {Hv, Dv}, true},
                  {"pending_g", DType::kF32, {Hv}, true},
                  {"pending_beta", DType::kF32, {Hv}, true}};
  return spec;
}

}  // namespace calandra

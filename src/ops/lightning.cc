#include "ops/lightning.h"

#include "ops/backend.h"
#include "ops/batch_checks.h"
#include "ops/shapes.h"

namespace calandra::ops {

Tensor lightning_attention(ExecContext& ctx, const Tensor& q, const Tensor& k, const Tensor& v, const Tensor& slope,
                           LightningState& state, const Tensor& accepted, const Batch& batch, DType activations) {
  const Scope scope("lightning_attention");
  const Dims d = match_shapes("lightning_attention", {{q, "T H Dk", DType::kF32},
                                                      {k, "T H Dk", DType::kF32},
                                                      {v, "T H Dv", DType::kF32},
                                                      {slope, "H", DType::kF32},
                                                      {state.S, "slots H Dk Dv", DType::kF32},
                                                      {state.pending_k, "slots M H Dk", DType::kF32},
                                                      {state.pending_v, "slots M H Dv", DType::kF32},
                                                      {accepted, "slots", DType::kI32}});
  check_segments("lightning_attention", batch, d["T"]);
  Tensor out = ctx.workspace.alloc(DType::kF32, v.shape());
  if (!ctx.dry_run && !v.empty())
    ctx.backend.lightning_attention(ctx, q, k, v, slope, state, accepted, batch, activations, out);
  return out;
}

Tensor lightning_mixer(ExecContext& ctx, const Tensor& qkv, const Tensor& gate, const LightningWeights& weights,
                       const Tensor& table, LightningState& state, const Tensor& accepted, const Batch& batch,
                       DType dtype) {
  const Scope scope("lightning_mixer");
  const Dims d = match_shapes("lightning_mixer", {{qkv, "T C", DType::kF32},
                                                  {gate, "T VD", DType::kF32},
                                                  {weights.g_norm, "VD", DType::kF32},
                                                  {weights.slope, "H", DType::kF32},
                                                  {state.S, "slots H Dk Dk", DType::kF32},
                                                  {state.pending_k, "slots M H Dk", DType::kF32},
                                                  {state.pending_v, "slots M H Dk", DType::kF32},
                                                  {accepted, "slots", DType::kI32}});
  CHECK_EQ(d["C"], 3 * d["H"] * d["Dk"]);
  CHECK_EQ(d["VD"], d["H"] * d["Dk"]);
  CHECK_GE(weights.norm_groups, 1);
  CHECK_EQ(d["VD"] % weights.norm_groups, 0);
  CHECK_EQ(weights.q_norm.rank(), weights.k_norm.rank());
  if (weights.q_norm.rank() != 0)
    match_shapes("lightning_mixer", {{state.S, "slots H Dk Dk", DType::kF32},
                                     {weights.q_norm, "Dk", DType::kF32},
                                     {weights.k_norm, "Dk", DType::kF32}});
  if (weights.rope) {
    const Dims t = match_shapes("lightning_mixer", {{qkv, "T C", DType::kF32}, {table, "2 T F", DType::kF32}});
    CHECK_LE(2 * t["F"], d["Dk"]);
  }
  CHECK(dtype == DType::kF32 || dtype == DType::kBF16);
  check_segments("lightning_mixer", batch, d["T"]);
  Tensor out = ctx.workspace.alloc(dtype, {d["T"], d["VD"]});
  if (!qkv.empty()) ctx.backend.lightning_mixer(ctx, qkv, gate, weights, table, state, accepted, batch, out);
  return out;
}

}  // namespace calandra::ops

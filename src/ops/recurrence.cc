#include "ops/recurrence.h"

#include "ops/backend.h"
#include "ops/batch_checks.h"
#include "ops/shapes.h"

namespace calandra::ops {
namespace {

void check_delta_state(const char* op, const DeltaState& state, int64_t Hk, int64_t Hv, int64_t Dk, int64_t Dv) {
  const Dims d = match_shapes(op, {{state.S, "slots Hv Dk Dv", DType::kF32},
                                   {state.pending_k, "slots M Hk Dk", DType::kF32},
                                   {state.pending_v, "slots M Hv Dv", DType::kF32},
                                   {state.pending_g, "slots M Hv", DType::kF32},
                                   {state.pending_beta, "slots M Hv", DType::kF32}});
  CHECK_EQ(d["Hk"], Hk);
  CHECK_EQ(d["Hv"], Hv);
  CHECK_EQ(d["Dk"], Dk);
  CHECK_EQ(d["Dv"], Dv);
  CHECK_EQ(Hv % Hk, 0);
}

}  // namespace

Tensor causal_conv1d_silu(ExecContext& ctx, const Tensor& x, const Tensor& weight, ConvState& state,
                          const Tensor& accepted, const Batch& batch) {
  const Scope scope("causal_conv1d_silu");
  const Dims d = match_shapes("causal_conv1d_silu", {{x, "T C", std::nullopt},
                                                     {weight, "C W", DType::kF32},
                                                     {state.window, "slots Wm1 C", x.dtype()},
                                                     {state.pending, "slots M C", x.dtype()},
                                                     {accepted, "slots", DType::kI32}});
  CHECK_EQ(d["Wm1"], d["W"] - 1);
  check_segments("causal_conv1d_silu", batch, d["T"]);
  Tensor out = ctx.workspace.alloc(x.dtype(), x.shape());
  if (!ctx.dry_run && !x.empty()) ctx.backend.causal_conv1d_silu(ctx, x, weight, state, accepted, batch, out);
  return out;
}

Tensor log_decay(ExecContext& ctx, const Tensor& a, const Tensor& A_log, const Tensor& dt_bias) {
  const Scope scope("log_decay");
  match_shapes("log_decay", {{a, "T Hv", std::nullopt}, {A_log, "Hv", DType::kF32}, {dt_bias, "Hv", DType::kF32}});
  Tensor out = ctx.workspace.alloc(DType::kF32, a.shape());
  if (!ctx.dry_run && !a.empty()) ctx.backend.log_decay(ctx, a, A_log, dt_bias, out);
  return out;
}

Tensor l2_norm(ExecContext& ctx, const Tensor& x) {
  const Scope scope("l2_norm");
  match_shapes("l2_norm", {{x, "T H D", std::nullopt}});
  Tensor out = ctx.workspace.alloc(DType::kF32, x.shape());
  if (!ctx.dry_run && !x.empty()) ctx.backend.l2_norm(ctx, x, out);
  return out;
}

Tensor gated_delta_rule(ExecContext& ctx, const Tensor& q, const Tensor& k, const Tensor& v, const Tensor& g,
                        const Tensor& beta, DeltaState& state, const Tensor& accepted, const Batch& batch) {
  const Scope scope("gated_delta_rule");
  const Dims d = match_shapes("gated_delta_rule", {{q, "T Hk Dk", std::nullopt},
                                                   {k, "T Hk Dk", q.dtype()},
                                                   {v, "T Hv Dv", q.dtype()},
                                                   {g, "T Hv", DType::kF32},
                                                   {beta, "T Hv", DType::kF32},
                                                   {state.S, "slots Hv Dk Dv", DType::kF32},
                                                   {accepted, "slots", DType::kI32}});
  check_delta_state("gated_delta_rule", state, d["Hk"], d["Hv"], d["Dk"], d["Dv"]);
  check_segments("gated_delta_rule", batch, d["T"]);
  Tensor out = ctx.workspace.alloc(v.dtype(), v.shape());
  if (!v.empty()) ctx.backend.gated_delta_rule(ctx, q, k, v, g, beta, state, accepted, batch, out);
  return out;
}

Tensor gated_delta_mixer(ExecContext& ctx, const Tensor& qkv, const Tensor& z, const Tensor& b, const Tensor& a,
                         const GatedDeltaWeights& weights, ConvState& conv, DeltaState& delta, const Tensor& accepted,
                         const Batch& batch) {
  const Scope scope("gated_delta_mixer");
  const Dims d = match_shapes("gated_delta_mixer", {{qkv, "T C", std::nullopt},
                                                    {z, "T VD", qkv.dtype()},
                                                    {b, "T Hv", qkv.dtype()},
                                                    {a, "T Hv", qkv.dtype()},
                                                    {weights.conv1d, "C W", DType::kF32},
                                                    {weights.A_log, "Hv", DType::kF32},
                                                    {weights.dt_bias, "Hv", DType::kF32},
                                                    {weights.norm, "Dv", DType::kF32},
                                                    {conv.window, "slots Wm1 C", qkv.dtype()},
                                                    {conv.pending, "slots M C", qkv.dtype()},
                                                    {delta.S, "slots Hv Dk Dv", DType::kF32},
                                                    {delta.pending_k, "slots M Hk Dk", DType::kF32},
                                                    {accepted, "slots", DType::kI32}});
  CHECK_EQ(d["C"], 2 * d["Hk"] * d["Dk"] + d["Hv"] * d["Dv"]);
  CHECK_EQ(d["VD"], d["Hv"] * d["Dv"]);
  CHECK_EQ(d["Wm1"], d["W"] - 1);
  check_delta_state("gated_delta_mixer", delta, d["Hk"], d["Hv"], d["Dk"], d["Dv"]);
  check_segments("gated_delta_mixer", batch, d["T"]);
  Tensor out = ctx.workspace.alloc(qkv.dtype(), {d["T"], d["VD"]});
  if (!qkv.empty()) ctx.backend.gated_delta_mixer(ctx, qkv, z, b, a, weights, conv, delta, accepted, batch, out);
  return out;
}

void commit_slots(ExecContext& ctx, const Tensor& hidden, SlotCounts& slots, Tensor& ring, const Batch& batch) {
  const Scope scope("commit_slots");
  const Dims d = match_shapes("commit_slots", {{hidden, "T D", std::nullopt},
                                               {slots.N, "slots", DType::kI32},
                                               {slots.accepted, "slots", DType::kI32},
                                               {slots.hidden, "slots M1 D", hidden.dtype()}});
  CHECK_GE(d["M1"], 1);
  if (!ring.empty())
    match_shapes("commit_slots", {{hidden, "T D", std::nullopt},
                                  {ring, "lanes R D", hidden.dtype()},
                                  {batch.token_index, "T", DType::kI32},
                                  {batch.row_sequence, "T", DType::kI32},
                                  {batch.seq_len, "B", DType::kI32},
                                  {batch.lane, "B", DType::kI32}});
  check_segments("commit_slots", batch, d["T"]);
  if (!ctx.dry_run && !hidden.empty()) ctx.backend.commit_slots(ctx, hidden, slots, ring, batch);
}

}  // namespace calandra::ops

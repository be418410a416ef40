// Recurrent token mixers with exact state: causal convolution and the gated delta rule.
//   T rows   S segments   C channels   W kernel width   Hk, Hv key/value heads   Dk, Dv head dims   M pending capacity
//
// What all of them do with slots, for each segment s in order, src = state_src[s], dst = state_dst[s]:
//   1. begin from the state in src (the empty state if src is -1); if s is the first segment of its sequence, fold in
//   the first
//      accepted[src] pending inputs of src. accepted is not looked at for later segments.
//   2. run the certain rows; then write the state to dst.
//   3. run the last draft_count rows of the sequence's last segment on a copy; their inputs go to the pending of dst
//   from 0 on;
//      the state in dst is not touched by them.
// Nothing of src is written unless src == dst. A sequence that is inactive or has no rows keeps its slots bit for bit;
// its rows, if any, give zeros. N and accepted are written by commit_slots only, after the last layer of the step.
// Cutting a sequence into segments, steps, or drafts that are later accepted gives the same bits.
#pragma once

#include "ops/batch.h"
#include "ops/cache_views.h"
#include "ops/exec_context.h"
#include "ops/norm.h"

namespace calandra::ops {

// y[t, c] = silu(sum_j weight[c, j] x[t - W + 1 + j, c]), f32 inside, one rounding; x before the sequence is zero.
// HF Qwen3_5GatedDeltaNet (conv1d then silu). The window holds raw inputs.
//   x [T, C]   weight [C, W] f32   returns [T, C] as x
Tensor causal_conv1d_silu(ExecContext& ctx, const Tensor& x, const Tensor& weight, ConvState& state,
                          const Tensor& accepted, const Batch& batch);

// g = -exp(A_log) * softplus(a + dt_bias) in f32; softplus(x) = x above 20.   a [T, Hv]   A_log, dt_bias [Hv] f32
//   returns [T, Hv] f32, <= 0
Tensor log_decay(ExecContext& ctx, const Tensor& a, const Tensor& A_log, const Tensor& dt_bias);

// x * rsqrt(sum(x^2) + 1e-6) per head, in f32.   x [T, H, D]   returns [T, H, D] f32
Tensor l2_norm(ExecContext& ctx, const Tensor& x);

// Gated delta rule, arXiv:2412.06464; HF torch_recurrent_gated_delta_rule. With S [Dk, Dv] per value head, f32:
//   S <- exp(g_t) S;   S <- S + k_t (beta_t (v_t - S^T k_t))^T;   o_t = S^T q_t / sqrt(Dk)
// q and k are l2-normalised inside (eps 1e-6). Value head h uses key head h / (Hv / Hk).
//   q, k [T, Hk, Dk]   v [T, Hv, Dv]   g, beta [T, Hv] f32   returns [T, Hv, Dv] as v
Tensor gated_delta_rule(ExecContext& ctx, const Tensor& q, const Tensor& k, const Tensor& v, const Tensor& g,
                        const Tensor& beta, DeltaState& state, const Tensor& accepted, const Batch& batch);

// The whole mixer between in_proj and out_proj: convolution, gates, delta rule, gated norm.  HF Qwen3_5GatedDeltaNet.
//   qkv [T, 2 Hk Dk + Hv Dv]   z [T, Hv Dv]   b, a [T, Hv]   returns [T, Hv Dv]
struct GatedDeltaWeights {
  Tensor conv1d;   // [C, W] f32
  Tensor A_log;    // [Hv] f32
  Tensor dt_bias;  // [Hv] f32
  Tensor norm;     // [Dv] f32
  float eps = 1e-6f;
  GateActivation gate = GateActivation::kSilu;
};
Tensor gated_delta_mixer(ExecContext& ctx, const Tensor& qkv, const Tensor& z, const Tensor& b, const Tensor& a,
                         const GatedDeltaWeights& weights, ConvState& conv, DeltaState& delta, const Tensor& accepted,
                         const Batch& batch);

// After the last layer: for every active sequence with rows, the slots its segments wrote get their counts and hidden
// rows. For segment s with c certain rows:  N[dst] = N[src] + (first segment ? accepted[src] : 0) + c  (N of the empty
// state is 0), accepted[dst] = 0, hidden[dst][0] = the row of its last certain token (of src's row number accepted[src]
// when c = 0), hidden[dst][1 + j] = the row of draft j.
// The last R rows of every active sequence, drafts included, stay in its ring, each at the place of its token:
// ring[lane[b], token_index[t] mod R] = hidden[t]  for its rows t with token_index[t] >= seq_len[b] - R.
//   hidden [T, D], after the final norm   ring [lanes, R, D] as hidden, lanes may have a stride; empty: there are none
void commit_slots(ExecContext& ctx, const Tensor& hidden, SlotCounts& slots, Tensor& ring, const Batch& batch);

}  // namespace calandra::ops

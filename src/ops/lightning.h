// Lightning attention: linear attention with a constant decay per head, and exact state (slots: ops/recurrence.h).
//   T rows   H heads   Dk, Dv head dims   M pending capacity   G norm groups
#pragma once

#include "ops/attention.h"
#include "ops/batch.h"
#include "ops/cache_views.h"
#include "ops/exec_context.h"

namespace calandra::ops {

// arXiv:2401.04658 without its blocks: the recurrent form in token order. With lambda = exp(-slope[h]), S [Dk, Dv] f32:
//   S <- lambda S + k_t v_t^T;   o_t = S^T q_t Dk^(-1/2)
// Cutting a sequence into segments, steps, or drafts that are later accepted gives the same bits.
//   q, k [T, H, Dk]   v [T, H, Dv] f32   slope [H] f32 > 0   returns [T, H, Dv] f32
// `activations`: the type that the model keeps numbers in. A backend need not be more exact than bf16 deserves: its
// products may be of numbers with 16 bits of mantissa.
Tensor lightning_attention(ExecContext& ctx, const Tensor& q, const Tensor& k, const Tensor& v, const Tensor& slope,
                           LightningState& state, const Tensor& accepted, const Batch& batch, DType activations);

struct LightningWeights {
  Tensor q_norm, k_norm;  // [Dk] f32, plain; absent: no norm
  Tensor g_norm;          // [H Dv] f32
  Tensor slope;           // [H] f32
  int64_t norm_groups = 1;
  float eps = 1e-6f;
  bool silu = false;  // on q, k and v before everything else
  bool rope = true;
};

// The whole mixer between the projections and `dense`, in f32 until its one rounding at the end:
//   q, k, v = silu?(qkv);   q, k = rope(rms_norm(q)), rope(rms_norm(k));   o = lightning_attention
//   out = group_rms_norm(o, G groups of H Dv / G neighbours) * g_norm * sigmoid(gate)
// vLLM BailingMoELinearAttention; docs/models/bailing_v2_5.md.
// Dv is Dk. rope turns the first R dims of a head, halves paired.
//   qkv [T, 3 H Dk] f32, rows q | k | v   gate [T, H Dv] f32   table [2, T, R / 2] f32   returns [T, H Dv] in `out`
// Taps: qkv (before silu, if there is one), q, k, v, q_norm, k_norm (if there are norms), q_rope, k_rope (if there is
// rope), slope and decay = exp(-slope) (constants), core, group_norm (with its weight, before the gate), gate.
Tensor lightning_mixer(ExecContext& ctx, const Tensor& qkv, const Tensor& gate, const LightningWeights& weights,
                       const Tensor& table, LightningState& state, const Tensor& accepted, const Batch& batch,
                       DType out);

}  // namespace calandra::ops

// Sparse mixture of experts: router, products with the chosen experts, their weighted sum.
//   T rows   D hidden_size   E experts   k chosen per row   F width of an expert
#pragma once

#include "ops/dense.h"
#include "ops/exec_context.h"
#include "ops/weight.h"

namespace calandra::ops {

enum class RouterScore { kSoftmax, kSigmoid };

struct RouterOptions {
  RouterScore score = RouterScore::kSoftmax;
  int64_t top_k = 0;
  int64_t n_group = 1;     // groups of E / n_group neighbours
  int64_t topk_group = 1;  // groups that are kept
  bool norm_topk_prob = true;
  float routed_scaling_factor = 1;
};

struct Routing {
  Tensor experts;  // [T, k] i32, best choice first
  Tensor weights;  // [T, k] f32
};

// Scores p = softmax or sigmoid of the logits; choice scores c = p + bias. The group score is the sum of the two
// largest c of a group (sigmoid; one, if a group has one expert) or the largest (softmax); the topk_group best groups
// are kept, and of their experts the top_k largest c, ties to the lower index everywhere. Weights are p, without the
// bias; with norm_topk_prob divided by (their sum + 1e-20); times routed_scaling_factor. All in f32. A NaN is the
// smallest score. HF Qwen3_5MoeTopKRouter (softmax, one group), BailingMoeV2_5Gate (docs/models/bailing_v2_5.md).
//   logits [T, E] f32   bias [E] f32 or absent
Routing route(ExecContext& ctx, const Tensor& logits, const Tensor& bias, const RouterOptions& options);

// y[t, j] = x W_e^T with e = experts[t, j]; sums over K as in `linear`: a row's result is that of linear with that
// expert alone, bit for bit, whatever the other rows chose.
// Experts outside [0, E) give zeros: they must not read beyond the weights.
//   x [T, K] (the same for all choices of a row) or [T, k, K]   experts [T, k] i32   returns [T, k, N], as x
Tensor grouped_linear(ExecContext& ctx, const Tensor& x, const GroupedWeight& weight, const Tensor& experts);

// sum_j weights[t, j] y[t, j], f32, in the order of j, one rounding.
//   y [T, k, D]   weights [T, k] f32   returns [T, D]
Tensor moe_combine(ExecContext& ctx, const Tensor& y, const Tensor& weights);

// What a family calls the taps of sparse_moe.
struct SparseMoeTaps {
  const char* input = "moe/input";  // null: already tapped, as the norm before
  const char* experts = "chosen_experts";
  const char* routed = "routed_output";
  const char* shared = "shared_output";  // before its gate
  const char* output = "moe/output";     // without the residual
};

struct SparseMoeWeights {
  PackedWeight router;           // [E, D]
  Tensor bias;                   // [E] f32; absent: none
  GroupedWeight gate, up;        // E x [F, D]
  GroupedWeight down;            // E x [D, F]
  LinearPack shared_gate_up{2};  // [Fs, D] each; N = 0: no shared expert
  PackedWeight shared_down;      // [D, Fs]
  PackedWeight shared_gate;      // [1, D], through a sigmoid; N = 0: none
  SparseMoeTaps taps;
};

// residual + (routed + shared), where routed = moe_combine of the SwiGLU experts that `route` chose for the f32 logits
// of x, and shared = shared expert (x), times sigmoid(shared_gate(x)) if there is one. Rounded to the type of x:
// routed, shared, the sigmoid and its product, both sums.  HF Qwen3_5MoeSparseMoeBlock, BailingMoeV2_5SparseMoeBlock.
//   x, residual [T, D]   returns [T, D]
// Taps: those of SparseMoeTaps, router_logits, router_scores, group_scores and groups (best first; with several
// groups), expert_weights, shared_gate (before the sigmoid).
Tensor sparse_moe(ExecContext& ctx, const Tensor& x, const SparseMoeWeights& weights, const RouterOptions& options,
                  const Tensor& residual);

}  // namespace calandra::ops

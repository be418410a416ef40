// Mixture of experts with a shared expert, in the place of a feed-forward: HF Qwen3_5MoeSparseMoeBlock and
// BailingMoeV2_5SparseMoeBlock.
//   E experts   F width of an expert   Fs width of the shared one   D hidden_size
#pragma once

#include "ops/moe.h"
#include "weights/weight_reader.h"

namespace calandra {

struct SparseMoe {
  struct Sizes {
    int64_t hidden_size, num_experts, moe_intermediate_size, shared_intermediate_size;  // the last 0: no shared expert
  };
  // What the families call the parts.
  struct Names {
    const char* shared_experts;  // "shared_expert"
    const char* shared_gate;     // "shared_expert_gate.weight"; null: the shared expert has no gate
    bool expert_bias;            // the router has a bias on the choice
    ops::SparseMoeTaps taps;
  };
  static constexpr ops::SparseMoeTaps kBailingTaps{nullptr, "experts", "routed", "shared", "mlp_out"};
  static constexpr Names kQwen3_5{"shared_expert", "shared_expert_gate.weight", false, {}};
  static constexpr Names kBailing{"shared_experts", nullptr, false, kBailingTaps};
  static constexpr Names kBailingWithBias{"shared_experts", nullptr, true, kBailingTaps};

  // Reads gate, experts (fused or one by one, as the checkpoint has them) and shared experts below `reader`.
  // Throws LoadError when the router's bias stands under two names.
  SparseMoe(WeightReader reader, const Sizes& sizes, const ops::RouterOptions& options, const Names& names);

  // residual + moe(x).   x, residual [T, D]
  Tensor forward(ExecContext& ctx, const Tensor& x, const Tensor& residual) const {
    return ops::sparse_moe(ctx, x, weights, options, residual);
  }

  ops::SparseMoeWeights weights;
  ops::RouterOptions options;
};

}  // namespace calandra

// SwiGLU feed-forward: down(silu(gate(x)) * up(x)).  HF Qwen3_5MLP.
#pragma once

#include "ops/dense.h"
#include "weights/weight_reader.h"

namespace calandra {

struct SwiGluMlp {
  // Reads gate_proj, up_proj [F, D] and down_proj [D, F] below `reader`.
  SwiGluMlp(WeightReader reader, int64_t hidden_size, int64_t intermediate_size);

  // residual + mlp(x).   x, residual [T, D]
  Tensor forward(ExecContext& ctx, const Tensor& x, const Tensor& residual) const {
    return ops::swiglu_mlp(ctx, x, gate_up, down_proj, residual);
  }

  LinearPack gate_up{2};
  PackedWeight down_proj;
};

}  // namespace calandra

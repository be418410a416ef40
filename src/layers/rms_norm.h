// RMS normalisation with a weight that is stored minus one (weight_offset 1, Qwen3.5) or plain (0).
#pragma once

#include "ops/norm.h"

namespace calandra {

struct RmsNorm {
  Tensor weight;  // [D] f32
  float eps = 1e-6f;
  float weight_offset = 1;

  Tensor operator()(ExecContext& ctx, const Tensor& x) const {
    return ops::rms_norm(ctx, x, weight, eps, weight_offset);
  }
  // {x + y, norm of it}
  std::pair<Tensor, Tensor> after_add(ExecContext& ctx, const Tensor& x, const Tensor& y) const {
    return ops::add_rms_norm(ctx, x, y, weight, eps, weight_offset);
  }
};

}  // namespace calandra

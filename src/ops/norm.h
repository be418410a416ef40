// Normalisations. Statistics in f32; one rounding, at the end.
#pragma once

#include <utility>

#include "ops/exec_context.h"

namespace calandra::ops {

// y = x * rsqrt(mean(x^2) + eps) * (weight_offset + weight).  HF Qwen3_5RMSNorm has weight_offset 1 (weights are stored
// minus one).
//   x [T, D] or [T, H, D] (normalised over D)   weight [D] f32   returns as x, dense
Tensor rms_norm(ExecContext& ctx, const Tensor& x, const Tensor& weight, float eps, float weight_offset);

// sum = x + y, rounded to their type; then rms_norm(sum).   x, y [T, D]   returns {sum, norm}, each [T, D]
std::pair<Tensor, Tensor> add_rms_norm(ExecContext& ctx, const Tensor& x, const Tensor& y, const Tensor& weight,
                                       float eps, float weight_offset);

enum class GateActivation { kSilu, kSigmoid };

// y = rms_norm(x) * weight * act(z), all in f32, one rounding.  HF Qwen3_5RMSNormGated; output_gate_type "sigmoid" as
// vLLM has it.
//   x, z [T, H, D]   weight [D] f32, plain   returns [T, H, D] as x
Tensor gated_rms_norm(ExecContext& ctx, const Tensor& x, const Tensor& z, const Tensor& weight, float eps,
                      GateActivation act);

}  // namespace calandra::ops

// Normalisations. Statistics in f32; one rounding, at the end.
#pragma once

#include <optional>
#include <utility>

#include "ops/exec_context.h"

namespace calandra::ops {

// y = x * rsqrt(mean(x^2) + eps) * (weight_offset + weight).  HF Qwen3_5RMSNorm has weight_offset 1 (weights are stored
// minus one).
//   x [T, D] or [T, H, D] (normalised over D)   weight [D], or [H, D] of its own per head, f32   returns as x, dense
Tensor rms_norm(ExecContext& ctx, const Tensor& x, const Tensor& weight, float eps, float weight_offset);

// sum = x + y, rounded to their type; then rms_norm(sum).   x, y [T, D]   returns {sum, norm}, each [T, D]
std::pair<Tensor, Tensor> add_rms_norm(ExecContext& ctx, const Tensor& x, const Tensor& y, const Tensor& weight,
                                       float eps, float weight_offset);

enum class GateActivation { kSilu, kSigmoid };

// y = rms_norm(x) * weight * act(z), all in f32, one rounding.  HF Qwen3_5RMSNormGated; output_gate_type "sigmoid" as
// vLLM has it. With a weight per head it is the grouped norm of Bailing's lightning attention (H: groups).
//   x, z [T, H, D]   weight [D] or [H, D] f32, plain   returns [T, H, D] in `out`, absent: as x
Tensor gated_rms_norm(ExecContext& ctx, const Tensor& x, const Tensor& z, const Tensor& weight, float eps,
                      GateActivation act, std::optional<DType> out = {});

}  // namespace calandra::ops

// Ops of vision towers.   P rows (patches)   D width   H heads   Dh head_dim
#pragma once

#include "ops/exec_context.h"

namespace calandra::ops {

// (x - mean) * rsqrt(var + eps) * weight + bias; statistics in f32, one rounding at the end.  torch LayerNorm.
//   x [P, D]   weight, bias [D] f32   returns [P, D] as x
Tensor layer_norm(ExecContext& ctx, const Tensor& x, const Tensor& weight, const Tensor& bias, float eps);

enum class GeluForm { kTanh, kErf };  // gelu_pytorch_tanh, gelu

// x Phi(x), or its tanh approximation, in f32, one rounding.   x [P, D]   returns [P, D] as x
Tensor gelu(ExecContext& ctx, const Tensor& x, GeluForm form);

// y[i] = sum_j weight[i, j] table[index[i, j]], in f32 in the order of j, one rounding (interpolated position
// embeddings).
//   table [N, D] f32   index [P, J] i32 in [0, N)   weight [P, J] f32   returns [P, D] in `out`
Tensor weighted_rows(ExecContext& ctx, const Tensor& table, const Tensor& index, const Tensor& weight, DType out);

// Softmax attention without a mask inside each segment (a frame of an image or video). Scores, softmax and sum in f32,
// keys in blocks at positions relative to the segment: a result does not depend on other segments or threads.
//   q, k, v [P, H, Dh]   segment_start [S + 1] i32, last entry P   returns [P, H, Dh]
Tensor segment_attention(ExecContext& ctx, const Tensor& q, const Tensor& k, const Tensor& v,
                         const Tensor& segment_start, float scale);

}  // namespace calandra::ops

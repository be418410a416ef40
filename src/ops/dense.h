// Dense ops: projections and elementwise products. x and results are f32 | bf16; sums over K in f32, in an order that
// depends on neither the number of rows nor the number of threads.
#pragma once

#include <array>
#include <optional>

#include "ops/exec_context.h"
#include "ops/weight.h"

namespace calandra::ops {

// Results of a LinearPack: views [T, N_i] into one dense [T, sum N]; their row stride is sum N.
using PackResult = std::array<Tensor, LinearPack::kMaxParts>;

// y = x W^T + bias for every part of the pack, one read of x. A bias is added to the f32 sum, before the one rounding
// (torch addmm).
//   x [T, K]   returns per part [T, N_i] in `out`, absent: as x
PackResult linear(ExecContext& ctx, const Tensor& x, const LinearPack& pack, std::optional<DType> out = {});

// y = x W^T + bias.   x [T, K]   returns [T, N] in `out` (the head asks for f32 logits of bf16 activations).
Tensor linear(ExecContext& ctx, const Tensor& x, const PackedWeight& weight, DType out);

// residual + (x W^T + bias). What is in brackets is rounded to the type of x before the sum, as HF does.
//   x [T, K]   residual [T, N] as x   returns [T, N] as x
Tensor linear_add(ExecContext& ctx, const Tensor& x, const PackedWeight& weight, const Tensor& residual);

// residual + down(silu(gate(x)) * up(x)).  HF Qwen3_5MLP; gate_up is the pack (gate, up).
//   x, residual [T, D]   returns [T, D]
Tensor swiglu_mlp(ExecContext& ctx, const Tensor& x, const LinearPack& gate_up, const PackedWeight& down,
                  const Tensor& residual);

// silu(gate) * up, silu rounded to the type of gate first (HF).   gate, up [T, F]   returns [T, F]
Tensor silu_mul(ExecContext& ctx, const Tensor& gate, const Tensor& up);

// x * sigmoid(gate), the sigmoid rounded to the type of gate first (HF).
//   x [T, F]   gate [T, F], or [T, 1]: one factor per row   returns [T, F]
Tensor sigmoid_mul(ExecContext& ctx, const Tensor& x, const Tensor& gate);

// sigmoid(x) in f32.   x [T, H]   returns [T, H] f32
Tensor sigmoid(ExecContext& ctx, const Tensor& x);

// a + b.   [T, D] each
Tensor add(ExecContext& ctx, const Tensor& a, const Tensor& b);

// Rows of an embedding matrix.   ids [T] i32 in [0, N)   weight [N, K]   returns [T, K] in `out`
// Ids outside the matrix give zero rows (the sampler never chooses them; a hostile batch must not read beyond).
Tensor embedding(ExecContext& ctx, const Tensor& ids, const PackedWeight& weight, DType out);

// y[i] = x[rows[i]].   x [T, D]   rows [N] i32 in [0, T)   returns [N, D]
Tensor gather_rows(ExecContext& ctx, const Tensor& x, const Tensor& rows);

// x[rows[i]] = values[i].   x [T, D]   rows [I] i32, distinct, in [0, T)   values [I, D] as x
void scatter_rows(ExecContext& ctx, Tensor& x, const Tensor& rows, const Tensor& values);

// to[to_rows[i]] = from[from_rows[i]].   from [T, D]   to [N, D] as from, perhaps the same memory   from_rows [I] i32
// in [0, T)   to_rows [I] i32, distinct, in [0, N), none of them a row that is read
void copy_rows(ExecContext& ctx, const Tensor& from, const Tensor& from_rows, Tensor& to, const Tensor& to_rows);

// The columns of b behind those of a.   a [T, D1]   b [T, D2] as a   returns [T, D1 + D2]
Tensor concat_columns(ExecContext& ctx, const Tensor& a, const Tensor& b);

}  // namespace calandra::ops

// Causal convolution and the gated delta rule on one core. One table per instruction set.
//
// What fixes a result's bits: the delta rule's sums over Dk run key dim by key dim in each column of S; the l2 norm in
// 16 lanes over Dk. A column of S is a world of its own, so that heads and blocks of columns may be dealt to threads at
// will.
#pragma once

#include <cstdint>

namespace calandra {

constexpr int kDeltaChunk = 32;    // tokens whose inputs are prepared at a time
constexpr int kDeltaColumns = 64;  // most columns of a block of S
constexpr int kMaxDeltaDim = 256;  // Dk, Dv: multiples of 16 up to this
constexpr int kMaxValueHeads = 8;  // per key head
constexpr int kMaxConvKernel = 8;  // W

// Consecutive tokens of one value head, all f32.
struct DeltaChunk {
  int tokens;  // 1 or more
  int Dk;
  const float* q;  // [tokens, Dk], normalised and divided by sqrt(Dk)
  const float* k;  // [tokens, Dk], normalised
  const float* v;  // [tokens, Dv]
  int64_t v_stride;
  const float* decay;  // [tokens], e^g
  const float* beta;   // [tokens]
  int silent;          // the first tokens whose outputs nobody wants
  void* out;           // of token number `silent`, as v's activations
  int64_t out_stride;  // elements
  bool bf16;           // out; f32 otherwise
};

struct RecurrenceKernels {
  // y[n] = silu(sum_j weight[j][n] x[j][n]), one rounding. x: W pointers, the oldest first; weight [W, weight_stride].
  void (*conv_silu)(const void* const* x, bool bf16, int W, const float* weight, int64_t weight_stride, int n, void* y);
  // g[n] = -exp(A_log) softplus(a + dt_bias)
  void (*log_decay)(const void* a, bool bf16, const float* A_log, const float* dt_bias, int n, float* g);
  void (*sigmoid)(const void* x, bool bf16, int n, float* y);
  void (*exp)(const float* x, int n, float* y);
  void (*widen)(const void* x, bool bf16, int n, float* y);
  // y[D] = x rsqrt(sum x^2 + 1e-6) scale
  void (*l2_norm)(const void* x, bool bf16, int D, float scale, float* y);
  // Columns [column, column + columns) of S (a multiple of 16) from `from` through the tokens to `to`; [Dk, Dv] each,
  // may be the same. from null: zeros; to null: the state is dropped. S: working memory [Dk, kDeltaColumns].
  void (*delta)(const DeltaChunk& chunk, int Dv, int column, int columns, const float* from, float* to, float* S);
};

const RecurrenceKernels& recurrence_kernels_avx2();
const RecurrenceKernels& recurrence_kernels_avx512();

}  // namespace calandra

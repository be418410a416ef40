// Functions of one instruction set for linear, elementwise ops and norms. Plain pointers, so that the units behind the
// table share no code with other units. The index of an array of two is 0 for f32, 1 for bf16 activations.
//
// A packed weight is a row of panels of 32 outputs, each [K][32], the last one padded with zeros. f32 and f16 stand in
// order; bf16 as 16 pairs (i, 16 + i), so that a shift widens the first of each pair and a mask the second. f8_e4m3
// stands in order too; behind the values of a panel come 32 scales, f32 and times 256, for every block_k inputs.
#pragma once

#include <cstdint>

namespace calandra {

constexpr int kPanel = 32;              // outputs of a panel
constexpr int kBlockK = 256;            // inputs of a block
constexpr int kXStride = kBlockK + 16;  // from row to row of x in a block: rows fall into different cache sets
constexpr int kRowBlock = 96;           // rows that share a widened weight block: a multiple of every tile height

enum class WeightFormat { kF32, kBF16, kF16, kF8 };

// sums[r][i] = sum_k x[r][k] panel[k][i], one chain of fused multiply-adds over k from 0 on for each: an order that no
// blocking, split or vector width changes.
struct PanelProduct {
  const float* x;          // blocks of kBlockK inputs, each [rows][kXStride]
  int64_t x_block_stride;  // from block to block
  int rows;                // at most kRowBlock
  int64_t K;
  const void* panel;
  WeightFormat format;
  const float* scales;  // f8: [ceil(K / block_k)][kPanel], the panel's weights are its values / 256 times these
  int64_t block_k;
  float* wide;  // [kBlockK][kPanel] scratch
  float* sums;  // [rows][kPanel]
};

// Where the sums go: rounded to the type of out; with a residual rounded, added and rounded again.
struct PanelResult {
  int rows;
  int columns;  // of the panel; fewer than kPanel in the last one
  void* out;
  int64_t out_stride;    // elements
  const void* residual;  // or null
  int64_t residual_stride;
};

struct DenseKernels {
  // Rows [first, first + rows) of x [.., K] to f32 in the layout of PanelProduct.
  void (*spread[2])(const void* x, int64_t stride, int64_t rows, int64_t K, float* blocks, int64_t block_stride);
  void (*multiply)(const PanelProduct& task);
  void (*finish[2])(const float* sums, const PanelResult& result);
  void (*finish_swiglu[2])(const float* gate, const float* up, const PanelResult& result);

  // One row of n numbers.
  void (*silu_mul[2])(const void* gate, const void* up, void* out, int64_t n);
  void (*sigmoid_mul[2])(const void* x, const void* gate, void* out, int64_t n);
  void (*sigmoid[2])(const void* x, float* out, int64_t n);
  void (*add[2])(const void* a, const void* b, void* out, int64_t n);
  void (*rms_norm[2])(const void* x, const float* weight, float eps, float weight_offset, void* out, int64_t n);
  void (*gated_rms_norm[2][2])(const void* x, const void* z, const float* weight, float eps, bool silu, void* out,
                               int64_t n);  // by the type of x and z, then of out
  // n pairs (low[i], high[i]), or (x[2 i], x[2 i + 1]), turned by (cos[i], sin[i])
  void (*rope[2])(const void* low, const void* high, const void* cos, const void* sin, void* out_low, void* out_high,
                  int64_t n);
  void (*rope_pairs[2])(const void* x, const void* cos, const void* sin, void* out, int64_t n);
  // with cos and sin in f32, whatever the type of x
  void (*rope_f32_table[2])(const void* low, const void* high, const void* cos, const void* sin, void* out_low,
                            void* out_high, int64_t n);
  void (*rope_pairs_f32_table[2])(const void* x, const void* cos, const void* sin, void* out, int64_t n);
};

const DenseKernels& dense_kernels_avx2();
const DenseKernels& dense_kernels_avx512();

}  // namespace calandra

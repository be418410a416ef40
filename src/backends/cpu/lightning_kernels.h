// Lightning attention on one core: consecutive tokens through the state of a head. One table per instruction set.
//
// What fixes a result's bits: each element of S sees its tokens in order, S <- fma(k, v, decay S); an output is one
// chain of fused multiply-adds over Dk in each column. No column of S knows another, so that heads and blocks of
// columns may be dealt to threads at will.
#pragma once

#include <cstdint>

namespace calandra {

constexpr int kLightningChunk = 16;    // tokens that pass through S in one sweep
constexpr int kMaxLightningDim = 256;  // Dk, Dv: multiples of 16 up to this
constexpr int kLightningRows = 4;      // rows of S (key dims) whose k and q stand together

struct LightningChunk {
  int tokens;       // 0 to kLightningChunk
  int certain;      // the first of them, that stay in the state
  int Dk, Dv;       // Dv: columns of a whole head, from row to row of S
  const float* kq;  // [Dk / kLightningRows][tokens][k of the rows, then q of the rows]
  const float* v;   // [tokens, Dv]
  float decay;
  float* o;  // [tokens, Dv]
};

struct LightningKernels {
  // One token into kq, q times scale. kq: of the token in the first group of rows.
  void (*pack)(const float* k, const float* q, float scale, int Dk, int tokens, float* kq);
  // Columns [column, column + columns) of S, a multiple of 16, from `from` through the tokens; the state behind the
  // certain ones goes to `to`, which may be `from`. from null: zeros. [Dk, Dv] each.
  void (*run)(const LightningChunk& chunk, int column, int columns, const float* from, float* to);
};

const LightningKernels& lightning_kernels_avx2();
const LightningKernels& lightning_kernels_avx512();

}  // namespace calandra

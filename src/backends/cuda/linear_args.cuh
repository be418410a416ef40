// What the plain kernel of `linear` and `grouped_linear` is given.
#pragma once

#include "backends/cuda/device/types.cuh"
#include "backends/cuda/packed_rows.h"

namespace calandra::cuda {

// One weight of a pack.
struct LinearPart {
  const std::byte* weight;
  const float* bias;
  int64_t row_bytes;
  int64_t scales_at;  // f8: bytes from a row's begin to its scales, one for block_k inputs each
  int64_t block_k;
  int N;
  int column;      // first one in the output
  int first_tile;  // number of the tiles of the parts before
};

// Without `experts`, row r of x makes row r of the output. With them row r is choice r % top_k of token r / top_k.
struct LinearArgs {
  LinearPart part[LinearPack::kMaxParts];
  int parts;
  const void* x;
  int64_t x_stride;  // elements from row to row; with experts, from token to token
  int64_t x_choice;  // elements from choice to choice
  int T, K;
  Output out;
  int64_t out_stride;

  const int32_t* experts;  // [tokens, top_k], rows may have a stride
  int64_t experts_stride, expert_bytes;
  int top_k, E;

  __device__ __forceinline__ const LinearPart& part_of(int tile) const {
    int i = 0;
    while (i + 1 < parts && tile >= part[i + 1].first_tile) ++i;
    return part[i];
  }
  // Where row r of x begins.
  template <class X>
  __device__ __forceinline__ const X* row(int64_t r) const {
    const X* all = static_cast<const X*>(x);
    return experts == nullptr ? all + r * x_stride : all + r / top_k * x_stride + r % top_k * x_choice;
  }
  // The weight of row r; null if its expert does not exist.
  __device__ __forceinline__ const std::byte* weight_of(const LinearPart& p, int64_t r) const {
    if (experts == nullptr) return p.weight;
    const int32_t e = experts[r / top_k * experts_stride + r % top_k];
    return e >= 0 && e < E ? p.weight + e * expert_bytes : nullptr;
  }
};

}  // namespace calandra::cuda

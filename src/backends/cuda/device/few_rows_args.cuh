// What device/few_rows.cuh is given, and which choices of experts share a block there.
#pragma once

#include <cstddef>
#include <cstdint>

#include "backends/cuda/device/reduce.cuh"
#include "backends/cuda/device/route.cuh"
#include "backends/cuda/device/vec.cuh"

namespace calandra::cuda {

constexpr int kTile = 8;       // outputs
constexpr int kTileWarps = 8;  // each has a part of K
constexpr int kChunk = 1024;   // bytes of a row that the warps read at once
constexpr int kOfWarp = kChunk / kTileWarps;
constexpr int kMostRows = 16;
constexpr int kMostChoices = kTileWarps * kWarp;  // of 16 tokens

enum class After : int {
  kStore,   // y
  kAdd,     // residual + y, y rounded first
  kSwiGlu,  // silu(y) * y', both rounded first, where y' is x with the other weight; silu rounded too
};

// One weight, or a pair of them.
struct FewRowsPart {
  const std::byte *weight, *other;  // other: of kSwiGlu
  const float *bias, *other_bias;   // null: none
  const bf16_t* x;
  const bf16_t* residual;
  Output out;
  int64_t x_stride;  // elements from row to row; with experts, from token to token
  int64_t x_choice;  // with experts: elements from choice to choice
  int64_t residual_stride, out_stride;
  int64_t expert_bytes;        // from expert to expert; 0: the part has no experts
  int row_bytes, value_bytes;  // of a row of the weight, which f8's scales follow: one for 128 inputs each
  int N, K;
  int first_block;  // number of the blocks of the parts before
  After after;
  bool f8;         // or bf16
  bool x_aligned;  // rows of x begin at multiples of 16 bytes and have a multiple of 8 numbers, f8's of 128

  __host__ __device__ int outputs_of_tile() const { return after == After::kSwiGlu ? kTile / 2 : kTile; }
  // Of all rows, or of one choice.
  __host__ __device__ int blocks(int tiles_of_block) const {
    const int outputs = outputs_of_tile() * tiles_of_block;
    return (N + outputs - 1) / outputs;
  }
};

struct FewRowsArgs {
  static constexpr int kMostParts = 4;
  FewRowsPart part[kMostParts];
  int parts;
  int T;
  int row_tiles;  // of the kernel's rows
  // The last part may have experts: choice j of token t is experts[t, j].
  const int32_t* experts;
  int64_t experts_stride;
  int top_k, E;
  RouteArgs route;  // of up to 8 rows, whose choices are not there yet; no logits: they are in `experts`
};

// Choices of one expert, up to 16, as token * top_k + choice from the block's first token on.
struct ChoiceGroup {
  int expert, count;
  int16_t choice[kMostRows];
};

// The choices from `own` on with the same expert; none when the group belongs to a choice before it. All threads.
__device__ inline void group_of_choice(const FewRowsArgs& a, int t0, int rows, int own, ChoiceGroup& group) {
  __shared__ unsigned masks[kTileWarps];  // which choices have the expert
  const int choices = rows * a.top_k, i = threadIdx.x, warp = i / kWarp;
  const auto expert = [&](int j) { return a.experts[(t0 + j / a.top_k) * a.experts_stride + j % a.top_k]; };
  const int e = expert(own);
  if (choices == a.top_k) {  // one row: nothing to share
    if (i == 0) group.expert = e, group.count = 1, group.choice[0] = static_cast<int16_t>(own);
    __syncthreads();
    return;
  }
  const bool same = i < choices && expert(i) == e;
  const unsigned mask = __ballot_sync(kAllLanes, same);
  if (i % kWarp == 0) masks[warp] = mask;
  __syncthreads();
  const auto before = [&](int j) {  // choices with the expert in front of j
    int count = 0;
    for (int w = 0; w < j / kWarp; ++w) count += __popc(masks[w]);
    return count + __popc(masks[j / kWarp] & ((1u << j % kWarp) - 1));
  };
  const int before_own = before(own), place = before(i) - before_own;
  const bool leads = before_own % kMostRows == 0;
  if (leads && same && place >= 0 && place < kMostRows) group.choice[place] = static_cast<int16_t>(i);
  if (i == kMostChoices - 1) {
    group.expert = e;
    group.count = leads ? min(before(i) + same - before_own, kMostRows) : 0;
  }
  __syncthreads();
}

// The expert of choice `own` of the rows from t0 on, chosen here. `words`: shared memory.
__device__ inline void route_choice(const RouteArgs& route, int t0, int own, bool keep, float* words,
                                    ChoiceGroup& group) {
  if (threadIdx.x < kWarp) {
    const int last = own % route.top_k,
              expert = route_row(route, t0 + own / route.top_k, words, last, keep && last + 1 == route.top_k,
                                 static_cast<int>(threadIdx.x));
    if (threadIdx.x == 0) group.expert = expert, group.count = 1, group.choice[0] = static_cast<int16_t>(own);
  }
  __syncthreads();
}

}  // namespace calandra::cuda

// The end of a mixture for few tokens: the experts' down products, that of the shared expert, and their weighted sum
// with the residual, each step rounded as its parts are (ops/moe.h).
//   work      a block has one token and 8 outputs; each warp the product of one choice, the last that of the shared
//             expert, all of K. The products are those of device/few_rows.cuh, and so are the bits: a warp keeps the
//             sums of the 8 warps there apart and adds them in order.
//   memory    a number for each choice and output
//   bound by  latency: all that a warp reads of F up to 512 (f8) is under way at once
#pragma once

#include "backends/cuda/device/chunk_products.cuh"
#include "backends/cuda/device/pipeline.cuh"
#include "backends/cuda/device/rows.cuh"

namespace calandra::cuda {

constexpr int kMostDownWarps = 9;  // choices, and the shared expert

// A matrix [N, K], or one for each expert.
struct DownWeight {
  const std::byte* weight;  // null: none
  int64_t expert_bytes;
  int row_bytes, value_bytes, K;  // K: a multiple of 8
};

struct ExpertsDownArgs {
  DownWeight experts, shared;
  const bf16_t *h, *shared_h;  // [T, k, F], [T, Fs]
  const bf16_t* open;          // [T]: through a sigmoid the shared expert's weight; null: 1
  const int32_t* chosen;       // [T, k]
  const float* weights;        // [T, k]
  Rows<const bf16_t> residual;
  bf16_t* out;  // [T, D]
  int k, E, D;
};

// One row of x with 8 rows of a weight from `from` on, of which there are `rows`. Lanes 0 to 3 get outputs 2 lane and
// 2 lane + 1. The 128 bytes that warp i of few_rows has of a chunk meet row i of A, which is x there and zero in the
// other rows, so that its sums are row i of D.
template <bool kF8>
__device__ __forceinline__ void product_of_warp(const DownWeight& w, const std::byte* from, int rows, const bf16_t* x,
                                                float (&y)[2]) {
  using Product = ChunkProduct<kF8>;
  constexpr int kAtOnce = kTileWarps / 2;
  const int lane = threadIdx.x % kWarp, g = lane / 4, t = lane % 4;
  const auto row_of = [&](int i) { return from + int64_t{min(i, rows - 1)} * w.row_bytes; };
  const std::byte* own = row_of(g) + 16 * t;
  float sum[4] = {};
  for (int chunk = 0; chunk < w.value_bytes; chunk += kChunk) {
    const int mine = chunk + g * kOfWarp;
    uint4 low[Product::kOwn];
    float scale[2] = {};
#pragma unroll
    for (int i = 0; i < Product::kOwn; ++i) {
      const int k = mine / Product::kSize + Product::input(i, t);
      low[i] = k < w.K ? x_at<true>(x, k, w.K) : uint4{};
    }
    if (kF8 && mine < w.K)
#pragma unroll
      for (int i = 0; i < 2; ++i)
        scale[i] = __ldg(reinterpret_cast<const float*>(row_of(2 * t + i) + w.value_bytes + mine / kOfWarp * 4));
    float block[4] = {};
#pragma unroll 1
    for (int first = 0; first < kTileWarps; first += kAtOnce) {
      if (chunk + first * kOfWarp >= w.value_bytes) break;
      uint4 values[kAtOnce][2];
#pragma unroll
      for (int u = 0; u < kAtOnce; ++u)
#pragma unroll
        for (int i = 0; i < 2; ++i) {
          const int at = chunk + (first + u) * kOfWarp + i * 64;
          values[u][i] = at + 16 * t < w.value_bytes ? load_once(own + at) : uint4{};
        }
#pragma unroll
      for (int u = 0; u < kAtOnce; ++u) {
        uint4 row[Product::kOwn];
        const uint4 none[Product::kOwn] = {};
#pragma unroll
        for (int i = 0; i < Product::kOwn; ++i) row[i] = g == first + u ? low[i] : uint4{};
        Product::multiply(kF8 ? block : sum, row, none, values[u]);
      }
    }
    if constexpr (kF8)
#pragma unroll
      for (int i = 0; i < 2; ++i) sum[i] = fmaf(block[i], scale[i], sum[i]);
  }
#pragma unroll
  for (int i = 0; i < 2; ++i) {
    y[i] = 0;
#pragma unroll
    for (int part = 0; part < kTileWarps; ++part) y[i] += __shfl_sync(kAllLanes, sum[i], part * 4 + t);
  }
}

template <bool kF8>
__global__ void __launch_bounds__(kMostDownWarps* kWarp, 2) experts_down(const __grid_constant__ ExpertsDownArgs a) {
  __shared__ float y[kMostDownWarps][kTile], weights[kMostDownWarps];
  const int n0 = blockIdx.x * kTile, t = blockIdx.y, warp = threadIdx.x / kWarp, lane = threadIdx.x % kWarp,
            n = n0 + static_cast<int>(threadIdx.x), rows = min(kTile, a.D - n0);
  begin_as_follower();
  const bool joins = threadIdx.x < rows;  // one thread an output
  const float residual = joins ? to_float(a.residual[t][n]) : 0,
              open = joins && a.open != nullptr ? rounded<bf16_t>(sigmoid(to_float(a.open[t]))) : 1;
  const bool is_choice = warp < a.k;
  const DownWeight& w = is_choice ? a.experts : a.shared;
  const int choice = t * a.k + warp, expert = is_choice ? a.chosen[choice] : 0;
  float own[2] = {};
  if (expert >= 0 && expert < a.E)
    product_of_warp<kF8>(w, w.weight + expert * w.expert_bytes + int64_t{n0} * w.row_bytes, rows,
                         is_choice ? a.h + int64_t{choice} * w.K : a.shared_h + int64_t{t} * w.K, own);
  if (lane < 4) y[warp][2 * lane] = rounded<bf16_t>(own[0]), y[warp][2 * lane + 1] = rounded<bf16_t>(own[1]);
  if (lane == 0 && is_choice) weights[warp] = a.weights[choice];
  __syncthreads();
  if (!joins) return;
  const int c = threadIdx.x;
  float sum = 0;
  for (int j = 0; j < a.k; ++j) sum = fmaf(weights[j], y[j][c], sum);
  sum = rounded<bf16_t>(sum);
  if (a.shared.weight != nullptr) sum = rounded<bf16_t>(sum + rounded<bf16_t>(y[a.k][c] * open));
  a.out[int64_t{t} * a.D + n] = from_float<bf16_t>(residual + sum);
}

}  // namespace calandra::cuda

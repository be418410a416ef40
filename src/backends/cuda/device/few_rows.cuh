// Products of few rows of x with weights that are read once, near the memory's speed: y = x W^T. Any number of rows can
// be computed this way, with the same bits: up to 64 share a read of the weights.
//
// A block of 8 warps has kTiles tiles of 8 outputs (rows of W). Weights go from memory straight to registers, kAhead
// chunks of 1 kB of a row before the first is used; a warp multiplies 128 bytes of a chunk on tensor cores
// (device/chunk_products.cuh), with x through the caches. In the end the 8 warps' sums of an output are added in order
// through 4 kB of shared memory a tile (of up to 16 rows). The order of a sum depends on K and the number format alone,
// and an instruction computes every row by itself: a row gives the same bits alone, in any batch, and with experts.
//
// The first weights are read before the kernel in front has ended, since no kernel writes them. Bound by the read of
// the weights: bf16 85 to 95 % of the read bandwidth from 30 MB on, less where a launch is over in a few microseconds;
// f8 about 80 % in a step.
#pragma once

#include "backends/cuda/device/chunk_products.cuh"
#include "backends/cuda/device/pipeline.cuh"

namespace calandra::cuda {

constexpr int kRouteWords = 2 * kTileWarps * 8 * kTile;  // of shared memory that experts' blocks have

// Formats of the weights of a launch.
enum class Stored { kBF16, kF8, kBoth };

// A block: kRows rows (8, 16, 32 or 64) of x and kTiles tiles of outputs; kAhead chunks of weights are read at once,
// and kX of x; kBlocks of a multiprocessor, which their registers leave room for.
template <int kRows_, int kAhead_, int kX_, int kTiles_, int kBlocks_>
struct FewRowsShape {
  static constexpr int kRows = kRows_, kAhead = kAhead_, kX = kX_, kTiles = kTiles_, kBlocks = kBlocks_;
  static constexpr bool kHigh = kRows > 8;                       // the upper 8 rows of an instruction's 16, too
  static constexpr int kGroups = kHigh ? kRows / kMostRows : 1;  // of 16 rows
  static constexpr int kAtOnce = kGroups > 1 ? 1 : kTiles;       // tiles whose sums are in shared memory
  static_assert(kAhead % kX == 0);
  using Sums = float[kAtOnce][kTileWarps][kRows][kTile];
};

// A block of part p. `index`: its number among those of the same rows.
template <bool kF8, class Shape, bool kGrouped, bool kAligned>
__device__ __forceinline__ void few_rows_of(const FewRowsArgs& a, const FewRowsPart& p, int index,
                                            typename Shape::Sums& sums, ChoiceGroup& chosen) {
  constexpr int kRows = Shape::kRows, kAhead = Shape::kAhead, kX = Shape::kX, kTiles = Shape::kTiles;
  constexpr bool kHigh = Shape::kHigh;
  constexpr int kGroups = Shape::kGroups, kAtOnce = Shape::kAtOnce;
  // Measured on an H100, steps of models: so f8 with two chunks ahead is slower; bf16 is up to 10 % slower in models of
  // up to 2B and in experts, whose launches are short, and alike or 1 % faster in 9B and 27B. f8 that is aligned has
  // whole chunks of 128 inputs (FewRowsPart::x_aligned).
  constexpr bool kWeightsAsA = kF8 && kAligned && kAhead == 1 && kGroups == 1;
  using Product = ChunkProduct<kF8>;
  const int warp = threadIdx.x / kWarp, lane = threadIdx.x % kWarp, g = lane / 4, t = lane % 4,
            t0 = (static_cast<int>(blockIdx.x) - index * a.row_tiles) * kRows, rows = min(kRows, a.T - t0);
  const std::byte *weight = p.weight, *other = p.other;
  int block = index - p.first_block, own = rows;
  const bool grouped = kGrouped && p.expert_bytes != 0;
  if (grouped) {
    wait_and_let_next_grid_begin();
    const int blocks = p.blocks(kTiles), slot = block / blocks;
    block %= blocks;
    if (slot >= rows * a.top_k) return;
    if (kRows == 8 && a.route.logits.data != nullptr)
      route_choice(a.route, t0, slot, block == 0, &sums[0][0][0][0], chosen);
    else
      group_of_choice(a, t0, rows, slot, chosen);
    own = chosen.count;
    if (own == 0) return;
    const bool exists = chosen.expert >= 0 && chosen.expert < a.E;
    weight = exists ? weight + chosen.expert * p.expert_bytes : nullptr;
    other += chosen.expert * p.expert_bytes;
  }
  const int per_tile = p.outputs_of_tile(), n0 = block * kTiles * per_tile;
  // Row `i` of a tile's 8: of a pair, 4 of the one and 4 of the other.
  const auto row_of = [&](int tile, int i) {
    const bool second = i >= per_tile;
    const int n = min(n0 + tile * per_tile + (second ? i - per_tile : i), p.N - 1);
    return (second ? other : weight) + int64_t{n} * p.row_bytes;
  };

  const auto x_row = [&](int r) -> const bf16_t* {
    if (r >= own) return nullptr;
    if (!grouped) return p.x + (t0 + r) * p.x_stride;
    const int choice = chosen.choice[r];
    return p.x + (t0 + choice / a.top_k) * p.x_stride + choice % a.top_k * p.x_choice;
  };

  float sum[kWeightsAsA ? kRows / kTile : kGroups * kTiles][4] = {};
  if (weight == nullptr) {
    if (!grouped) wait_and_let_next_grid_begin();
  } else if constexpr (kWeightsAsA) {
    F8Chunks<kRows, kTiles> chunks;
#pragma unroll
    for (int tile = 0; tile < kTiles; ++tile) {
      const std::byte* row = row_of(tile, g);
      chunks.values[tile] = row + warp * kOfWarp + 16 * t;
      chunks.scales[tile] = row + p.value_bytes + warp * sizeof(float);
    }
#pragma unroll
    for (int c = 0; c < kRows / kTile; ++c) chunks.x[c] = x_row(min(c * kTile + g, own - 1)) + warp * kOfWarp + 16 * t;
    chunks.left = (p.value_bytes / kOfWarp - warp + kTileWarps - 1) / kTileWarps;
    if (chunks.left > 0) chunks.load();
    if (!grouped) wait_and_let_next_grid_begin();
    chunks.add(sum);
  } else {
    const std::byte *from[kTiles], *scales[kTiles][2];
#pragma unroll
    for (int tile = 0; tile < kTiles; ++tile) {
      from[tile] = row_of(tile, g) + warp * kOfWarp + 16 * t;
      if constexpr (kF8)
#pragma unroll
        for (int i = 0; i < 2; ++i) scales[tile][i] = row_of(tile, 2 * t + i) + p.value_bytes + warp * sizeof(float);
    }
    const bf16_t *low_row[kGroups], *high_row[kGroups];
#pragma unroll
    for (int group = 0; group < kGroups; ++group)
      low_row[group] = x_row(group * kMostRows + g),
      high_row[group] = kHigh ? x_row(group * kMostRows + g + 8) : nullptr;
    bool waited = grouped;
    for (int begin = 0; begin < p.value_bytes; begin += kAhead * kChunk) {
      uint4 w[kAhead][kTiles][2];
      float scale[kAhead][kTiles][2];
#pragma unroll
      for (int u = 0; u < kAhead; ++u) {
        const int chunk = begin + u * kChunk;
#pragma unroll
        for (int tile = 0; tile < kTiles; ++tile) {
#pragma unroll
          for (int i = 0; i < 2; ++i)
            w[u][tile][i] = chunk + warp * kOfWarp + i * 64 + 16 * t < p.value_bytes
                                ? load_once(from[tile] + chunk + i * 64)
                                : uint4{};
          if constexpr (kF8)
#pragma unroll
            for (int i = 0; i < 2; ++i)
              scale[u][tile][i] = chunk + warp * kOfWarp < p.K
                                      ? __ldg(reinterpret_cast<const float*>(scales[tile][i] + chunk / kOfWarp * 4))
                                      : 0;
        }
      }
      if (!waited) wait_and_let_next_grid_begin(), waited = true;
#pragma unroll
      for (int group = 0; group < kGroups; ++group)
#pragma unroll
        for (int first = 0; first < kAhead; first += kX) {
          uint4 low[kX][Product::kOwn], high[kX][Product::kOwn];
#pragma unroll
          for (int u = 0; u < kX; ++u)
#pragma unroll
            for (int i = 0; i < Product::kOwn; ++i) {
              const int chunk = begin + (first + u) * kChunk,
                        k = chunk / Product::kSize + warp * Product::kInputs + Product::input(i, t);
              const bf16_t *l = low_row[group], *h = high_row[group];
              low[u][i] = l != nullptr && k < p.K ? x_at<kAligned>(l, k, p.K) : uint4{};
              high[u][i] = h != nullptr && k < p.K ? x_at<kAligned>(h, k, p.K) : uint4{};
            }
#pragma unroll
          for (int u = 0; u < kX; ++u)
#pragma unroll
            for (int tile = 0; tile < kTiles; ++tile)
              Product::add(sum[group * kTiles + tile], low[u], high[u], w[first + u][tile], scale[first + u][tile]);
        }
    }
  }
#pragma unroll
  for (int first = 0; first < kTiles; first += kAtOnce) {
    if (first > 0) __syncthreads();  // the sums before have been read
#pragma unroll
    for (int tile = 0; tile < kAtOnce; ++tile)
      if constexpr (kWeightsAsA) {
#pragma unroll
        for (int c = 0; c < kRows / kTile; ++c)
#pragma unroll
          for (int i = 0; i < 2; ++i) sums[tile][warp][c * kTile + 2 * t + i][g] = sum[c][2 * tile + i];
      } else {
#pragma unroll
        for (int group = 0; group < kGroups; ++group)
#pragma unroll
          for (int i = 0; i < (kHigh ? 4 : 2); ++i)
            sums[tile][warp][group * kMostRows + g + i / 2 * 8][2 * t + i % 2] = sum[group * kTiles + first + tile][i];
      }
    __syncthreads();

    // Numbers that nobody wants are counted too: no divisions by what only the launch knows.
    for (int i = threadIdx.x; i < kAtOnce * kRows * kTile; i += kTileWarps * kWarp) {
      const int column = i % kTile, r = i / kTile % kRows, tile = i / kTile / kRows,
                n = n0 + (first + tile) * per_tile + column;
      if (column >= per_tile || r >= own || n >= p.N) continue;
      const auto total = [&](int c, const float* bias) {
        float y = 0;
#pragma unroll
        for (int w = 0; w < kTileWarps; ++w) y += sums[tile][w][r][c];
        return weight != nullptr && bias != nullptr ? y + bias[n] : y;
      };
      const int64_t row = grouped ? int64_t{t0} * a.top_k + chosen.choice[r] : t0 + r;
      float y = total(column, p.bias);
      if (p.after == After::kSwiGlu)
        y = rounded<bf16_t>(silu(rounded<bf16_t>(y))) * rounded<bf16_t>(total(column + per_tile, p.other_bias));
      else if (p.after == After::kAdd)
        y = to_float(p.residual[row * p.residual_stride + n]) + rounded<bf16_t>(y);
      p.out.store(row * p.out_stride + n, y);
    }
  }
}

// kGrouped: the last part has experts, with up to 16 rows. Code that a launch does not need is not in it: what is small
// runs often, and its instructions come from the caches too.
template <Stored kStored, class Shape, bool kGrouped, bool kAligned>
__global__ void __launch_bounds__(kTileWarps* kWarp, Shape::kBlocks) few_rows(const __grid_constant__ FewRowsArgs a) {
  __shared__ typename Shape::Sums sums;
  __shared__ ChoiceGroup chosen;
  // Blocks of the same weights follow each other, so that these come from the caches.
  const int index = static_cast<int>(a.row_tiles == 1 ? blockIdx.x : blockIdx.x / a.row_tiles);
  int number = 0;
  while (number + 1 < a.parts && index >= a.part[number + 1].first_block) ++number;
  const FewRowsPart& p = a.part[number];
  if constexpr (kStored == Stored::kBoth) {
    if (p.f8) return few_rows_of<true, Shape, kGrouped, kAligned>(a, p, index, sums, chosen);
  }
  few_rows_of<kStored == Stored::kF8, Shape, kGrouped, kAligned>(a, p, index, sums, chosen);
}

}  // namespace calandra::cuda

// Products of many rows: y = x W^T on the tensor cores, bf16 in, f32 sums.
//   work      a block takes tiles of 64 kGroups rows and kColumns outputs, one after the other. A warpgroup's first
//             thread copies tiles of x and W (TMA) into a ring of stages; each of the kGroups others sums 64 rows.
//   order     of a sum: inputs in steps of 16 from the first on, whatever the tile is
//   memory    the ring takes 192 kB of shared memory; the sums are in registers
//   bound by  the tensor cores from some 256 rows on, below that by the weights' bytes; 70 to 80 % of their peak for
//             2,048 rows and more of dense weights (bench/results/cuda_gemm.md)
// Experts: rows are sorted by expert (moe_gemm.cu), a list on the device says which rows and expert a tile has.
#pragma once

#include "backends/cuda/device/vec.cuh"
#include "backends/cuda/device/wgmma.cuh"

namespace calandra::cuda {

// Rows of x from `row` on, less than `end`, and their expert.
struct GemmRows {
  int row, end, expert;
};

struct GemmPart {
  CUtensorMap weight;  // [experts, N, K] bf16 or f8
  const std::byte* packed;
  int64_t expert_bytes;
  int row_bytes, value_bytes;  // of a row, which its scales follow
  const float* bias;
  const bf16_t* residual;  // null: none
  int64_t residual_stride;
  Output out;
  int64_t out_stride;
  bool aligned;  // bf16, 8 outputs at a time at multiples of 16 bytes
  int N;
  int first_tile;  // tiles of the parts before
};

struct GemmArgs {
  static constexpr int kMostParts = 4;
  CUtensorMap x;  // [rows, K]
  GemmPart part[kMostParts];
  int parts, T, K;
  int row_tiles, column_tiles;
  const int32_t* tile_count;  // with experts: how many row tiles there are
  const GemmRows* tiles;      // and which
  const int32_t* out_rows;    // and the row of the output of each row of x
};

constexpr int kRing = 192 << 10;              // bytes
constexpr int kPanel = 16;                    // row tiles that share a column tile while it is in the cache
constexpr size_t kGemmShared = kRing + 1024;  // the ring begins at a multiple of 1024 bytes

namespace gemm_detail {

struct Tile {
  GemmRows rows;
  int column;  // of its part
  const GemmPart* part;
};

template <int kRows, int kColumns>
__device__ __forceinline__ Tile tile_of(const GemmArgs& a, int i, int row_tiles) {
  Tile tile;
  int column_tile;
  if (a.tiles != nullptr) {
    tile.rows = a.tiles[i / a.column_tiles];
    column_tile = i % a.column_tiles;
  } else {
    const int panel = kPanel * a.column_tiles, first = i / panel * kPanel, rows = min(kPanel, row_tiles - first);
    tile.rows = {(first + i % panel % rows) * kRows, a.T, 0};
    column_tile = i % panel / rows;
  }
  int part = 0;
  while (part + 1 < a.parts && column_tile >= a.part[part + 1].first_tile) ++part;
  tile.part = &a.part[part];
  tile.column = (column_tile - tile.part->first_tile) * kColumns;
  return tile;
}

// Of four threads each has a word of four blocks; then each has four words of one block.
__device__ __forceinline__ void transpose_words(uint32_t (&w)[4], int t) {
  const bool odd = t & 1, high = t & 2;
#pragma unroll
  for (int i = 0; i < 4; i += 2) {
    const uint32_t got = __shfl_xor_sync(~0u, odd ? w[i] : w[i + 1], 1);
    (odd ? w[i] : w[i + 1]) = got;
  }
#pragma unroll
  for (int i = 0; i < 2; ++i) {
    const uint32_t got = __shfl_xor_sync(~0u, high ? w[i] : w[i + 2], 2);
    (high ? w[i] : w[i + 2]) = got;
  }
}

__device__ __forceinline__ uint32_t add_pairs(uint32_t residual, uint32_t y) {
  const float2 a = __bfloat1622float2(reinterpret_cast<const __nv_bfloat162&>(residual)),
               b = __bfloat1622float2(reinterpret_cast<const __nv_bfloat162&>(y));
  const __nv_bfloat162 sum = __floats2bfloat162_rn(a.x + b.x, a.y + b.y);
  return reinterpret_cast<const uint32_t&>(sum);
}

// Eight outputs of a row at a time.
template <int kColumns>
__device__ __forceinline__ void store_eights(const GemmPart& p, const float (&d)[kColumns / 2], int half, int column,
                                             int64_t to, bool mine) {
  const int t = threadIdx.x % 4;
  bf16_t* out = static_cast<bf16_t*>(p.out.data) + to * p.out_stride + column + t * 8;
  const bf16_t* residual = p.residual != nullptr ? p.residual + to * p.residual_stride + column + t * 8 : nullptr;
  const int left = mine ? p.N - column - t * 8 : 0;
#pragma unroll
  for (int j = 0; j < kColumns / 8; j += 4) {
    uint32_t words[4];
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const __nv_bfloat162 pair = __floats2bfloat162_rn(d[(j + i) * 4 + half * 2], d[(j + i) * 4 + half * 2 + 1]);
      words[i] = reinterpret_cast<const uint32_t&>(pair);
    }
    transpose_words(words, t);
    if (j * 8 >= left) continue;
    if (residual != nullptr) {
      const uint4 r = *reinterpret_cast<const uint4*>(residual + j * 8);
      words[0] = add_pairs(r.x, words[0]), words[1] = add_pairs(r.y, words[1]);
      words[2] = add_pairs(r.z, words[2]), words[3] = add_pairs(r.w, words[3]);
    }
    *reinterpret_cast<uint4*>(out + j * 8) = {words[0], words[1], words[2], words[3]};
  }
}

template <int kColumns>
__device__ __forceinline__ void store_ones(const GemmPart& p, const float (&d)[kColumns / 2], int half, int column,
                                           int64_t to) {
  const int t = threadIdx.x % 4;
#pragma unroll
  for (int i = 0; i < kColumns / 4; ++i) {
    const int n = column + i / 2 * 8 + t * 2 + i % 2;
    float y = d[i / 2 * 4 + half * 2 + i % 2];
    if (n >= p.N) break;
    if (p.residual != nullptr) y = to_float(p.residual[to * p.residual_stride + n]) + rounded<bf16_t>(y);
    p.out.store(to * p.out_stride + n, y);
  }
}

// Rows 16 w + g and 8 below of a warpgroup's 64, from `first` on.
template <int kColumns>
__device__ __forceinline__ void store_sums(const GemmArgs& a, const Tile& tile, float (&d)[kColumns / 2], int first) {
  const GemmPart& p = *tile.part;
  const int thread = threadIdx.x % kWarpgroup, g = thread % 32 / 4, t = thread % 4;
  if (p.bias != nullptr) {
#pragma unroll
    for (int i = 0; i < kColumns / 4; ++i) {
      const int n = tile.column + i / 2 * 8 + t * 2 + i % 2;
      const float bias = n < p.N ? p.bias[n] : 0.0f;
      d[i / 2 * 4 + i % 2] += bias, d[i / 2 * 4 + 2 + i % 2] += bias;
    }
  }
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    const int row = first + thread / 32 * 16 + g + half * 8;
    const bool mine = row < tile.rows.end;
    const int64_t to = a.out_rows != nullptr && mine ? a.out_rows[row] : row;
    if (p.aligned)
      store_eights<kColumns>(p, d, half, tile.column, to, mine);
    else if (mine)
      store_ones<kColumns>(p, d, half, tile.column, to);
  }
}

}  // namespace gemm_detail

template <int kColumns, int kGroups>
__global__ void __launch_bounds__((kGroups + 1) * kWarpgroup, 1) gemm(const __grid_constant__ GemmArgs a) {
  using namespace gemm_detail;
  constexpr int kRows = 64 * kGroups, kRowBytes = kTileDepth * 2, kXBytes = kRows * kRowBytes,
                kStageBytes = kXBytes + kColumns * kRowBytes, kStages = kRing / kStageBytes;
  extern __shared__ std::byte memory[];
  __shared__ uint64_t full[kStages], empty[kStages];
  std::byte* ring = memory + (1024 - shared_address(memory) % 1024) % 1024;
  const int group = threadIdx.x / kWarpgroup, steps = (a.K + kTileDepth - 1) / kTileDepth;
  if (threadIdx.x == 0) {
    for (int i = 0; i < kStages; ++i) barrier_init(&full[i], 1), barrier_init(&empty[i], kGroups * 4);
    barrier_init_done();
  }
  __syncthreads();
  const int row_tiles = a.tiles != nullptr ? *a.tile_count : a.row_tiles, tiles = row_tiles * a.column_tiles;
  int stage = 0;
  uint32_t phase = 0;
  const auto next_stage = [&] {
    if (++stage == kStages) stage = 0, phase ^= 1;
  };

  if (group == 0) {
    if constexpr (kGroups > 1) give_up_registers<40>();
    if (threadIdx.x != 0) return;
    for (int i = blockIdx.x; i < tiles; i += gridDim.x) {
      const Tile tile = tile_of<kRows, kColumns>(a, i, row_tiles);
      for (int k = 0; k < steps; ++k) {
        barrier_wait(&empty[stage], phase ^ 1);
        barrier_expect(&full[stage], kStageBytes);
        std::byte* to = ring + stage * kStageBytes;
        copy_tile(to, a.x, k * kTileDepth, tile.rows.row, &full[stage]);
        copy_tile(to + kXBytes, tile.part->weight, k * kTileDepth, tile.column, tile.rows.expert, &full[stage]);
        next_stage();
      }
    }
  } else {
    if constexpr (kGroups > 1) take_registers<232>();
    float d[kColumns / 2];
    for (int i = blockIdx.x; i < tiles; i += gridDim.x) {
      const Tile tile = tile_of<kRows, kColumns>(a, i, row_tiles);
      int before = 0;
      for (int k = 0; k < steps; ++k) {
        barrier_wait(&full[stage], phase);
        const std::byte* from = ring + stage * kStageBytes;
        const uint64_t x = describe_tile(from + (group - 1) * 64 * kRowBytes), w = describe_tile(from + kXBytes);
        wgmma_begin();
#pragma unroll
        for (int j = 0; j < kTileDepth / 16; ++j) wgmma(d, x + 2 * j, w + 2 * j, k + j);
        wgmma_commit();
        wgmma_wait<1>();
        if (k > 0 && threadIdx.x % 32 == 0) barrier_arrive(&empty[before]);
        before = stage;
        next_stage();
      }
      wgmma_wait<0>();
      hold(d);
      if (threadIdx.x % 32 == 0) barrier_arrive(&empty[before]);
      store_sums<kColumns>(a, tile, d, tile.rows.row + (group - 1) * 64);
    }
  }
}

}  // namespace calandra::cuda

// Products of many rows with weights of f8_e4m3 that have a scale for each 128 inputs: as device/gemm.cuh, but that
// warpgroups turn the weights into bf16, exactly, on their way into the ring.
//   work      a block takes tiles of 64 kGroups rows and 128 outputs. Two warpgroups load 128 inputs ahead and convert;
//             their first thread copies the tile of x. Each of the kGroups others sums 64 rows.
//   order     of a sum: 128 inputs in steps of 16, times their scale in f32, added to the sums of the blocks before
//   memory    three stages of 128 inputs, 48 or 64 kB each, and their scales
#pragma once

#include "backends/cuda/device/gemm.cuh"
#include "backends/cuda/device/mma.cuh"

namespace calandra::cuda {

constexpr int kF8Depth = 128;    // inputs of a scale and of a stage
constexpr int kF8Columns = 128;  // outputs of a tile
constexpr int kF8Stages = 3;
constexpr int kF8Loaders = 2;  // warpgroups
template <int kGroups>
constexpr int kF8StageBytes = (64 * kGroups + kF8Columns) * kF8Depth * 2;
template <int kGroups>
constexpr size_t kGemmF8Shared = kF8Stages* kF8StageBytes<kGroups> + 1024;

namespace gemm_detail {

// What a thread of the loading warpgroups loads of a block of inputs: 16 of each of 4 rows; of the first warpgroup the
// scale of one row too.
struct F8Share {
  static constexpr int kThreads = kF8Loaders * kWarpgroup, kApart = kThreads / 8, kRows = kF8Columns / kApart;
  uint4 values[kRows];
  float scale;

  __device__ __forceinline__ void load(const GemmArgs& a, const Tile& tile, int block) {
    const GemmPart& p = *tile.part;
    const std::byte* weight = p.f8 + tile.rows.expert * p.expert_bytes;
    const int thread = threadIdx.x, at = block * kF8Depth + thread % 8 * 16;
#pragma unroll
    for (int i = 0; i < kRows; ++i) {
      const int n = tile.column + thread / 8 + i * kApart;
      values[i] = n < p.N && at < p.value_bytes
                      ? __ldg(reinterpret_cast<const uint4*>(weight + int64_t{n} * p.row_bytes + at))
                      : uint4{};
    }
    if (thread >= kF8Columns) return;
    const int n = tile.column + thread;
    const std::byte* scales = weight + int64_t{n} * p.row_bytes + p.value_bytes;
    scale = n < p.N ? __ldg(reinterpret_cast<const float*>(scales) + block) : 0.0f;
  }

  // As the copies of bf16 would write two tiles of 64 inputs (device/wgmma.cuh): piece c of row n at place c ^ n % 8.
  __device__ __forceinline__ void store(std::byte* tiles, float* scales) const {
    const int thread = threadIdx.x, tile = thread % 8 / 4, c = thread % 4 * 2;
#pragma unroll
    for (int i = 0; i < kRows; ++i) {
      const int n = thread / 8 + i * kApart;
      std::byte* row = tiles + (tile * kF8Columns + n) * kTileDepth * 2;
      *reinterpret_cast<uint4*>(row + (c ^ n % 8) * 16) = bf16x8_of_e4m3x8({values[i].x, values[i].y});
      *reinterpret_cast<uint4*>(row + ((c + 1) ^ n % 8) * 16) = bf16x8_of_e4m3x8({values[i].z, values[i].w});
    }
    if (thread < kF8Columns) scales[thread] = scale;
  }
};

}  // namespace gemm_detail

template <int kGroups>
__global__ void __launch_bounds__((kGroups + kF8Loaders) * kWarpgroup, 1) gemm_f8(const __grid_constant__ GemmArgs a) {
  using namespace gemm_detail;
  constexpr int kRows = 64 * kGroups, kXTile = kRows * kTileDepth * 2, kWTile = kF8Columns * kTileDepth * 2;
  extern __shared__ std::byte memory[];
  __shared__ uint64_t full[kF8Stages], empty[kF8Stages];
  __shared__ float scales[kF8Stages][kF8Columns];
  std::byte* ring = memory + (1024 - shared_address(memory) % 1024) % 1024;
  const int group = static_cast<int>(threadIdx.x) / kWarpgroup - kF8Loaders, blocks = (a.K + kF8Depth - 1) / kF8Depth;
  const bool first_lane = threadIdx.x % 32 == 0;
  if (threadIdx.x == 0) {
    for (int i = 0; i < kF8Stages; ++i)
      barrier_init(&full[i], 1 + F8Share::kThreads / 32), barrier_init(&empty[i], kGroups * 4);
    barrier_init_done();
  }
  __syncthreads();
  const int row_tiles = a.tiles != nullptr ? *a.tile_count : a.row_tiles, tiles = row_tiles * a.column_tiles;
  int stage = 0;
  uint32_t phase = 0;
  const auto next_stage = [&] {
    if (++stage == kF8Stages) stage = 0, phase ^= 1;
  };

  if (group < 0) {
    if constexpr (kGroups > 1) give_up_registers<64>();
    int i = blockIdx.x, block = 0;
    if (i >= tiles) return;
    Tile tile = tile_of<kRows, kF8Columns>(a, i, row_tiles);
    F8Share share;
    share.load(a, tile, 0);
    while (i < tiles) {
      barrier_wait(&empty[stage], phase ^ 1);
      std::byte* to = ring + stage * kF8StageBytes<kGroups>;
      if (threadIdx.x == 0) {
        barrier_expect(&full[stage], 2 * kXTile);
        copy_tile(to, a.x, block * kF8Depth, tile.rows.row, &full[stage]);
        copy_tile(to + kXTile, a.x, block * kF8Depth + kTileDepth, tile.rows.row, &full[stage]);
      }
      if (++block == blocks) {
        block = 0, i += gridDim.x;
        if (i < tiles) tile = tile_of<kRows, kF8Columns>(a, i, row_tiles);
      }
      const F8Share now = share;
      if (i < tiles) share.load(a, tile, block);
      now.store(to + 2 * kXTile, scales[stage]);
      asm volatile("fence.proxy.async.shared::cta;" ::: "memory");  // before wgmma reads it
      __syncwarp();
      if (first_lane) barrier_arrive(&full[stage]);
      next_stage();
    }
  } else {
    if constexpr (kGroups > 1) take_registers<192>();
    const int t = threadIdx.x % 4;
    float sum[kF8Columns / 2], d[kF8Columns / 2];
    for (int i = blockIdx.x; i < tiles; i += gridDim.x) {
      const Tile tile = tile_of<kRows, kF8Columns>(a, i, row_tiles);
#pragma unroll
      for (float& s : sum) s = 0;
      for (int block = 0; block < blocks; ++block) {
        barrier_wait(&full[stage], phase);
        const std::byte* from = ring + stage * kF8StageBytes<kGroups>;
        wgmma_begin();
#pragma unroll
        for (int half = 0; half < 2; ++half) {
          const uint64_t x = describe_tile(from + half * kXTile + group * 64 * kTileDepth * 2),
                         w = describe_tile(from + 2 * kXTile + half * kWTile);
#pragma unroll
          for (int j = 0; j < kTileDepth / 16; ++j) wgmma(d, x + 2 * j, w + 2 * j, half + j);
        }
        wgmma_commit();
        wgmma_wait<0>();
        hold(d);
#pragma unroll
        for (int j = 0; j < kF8Columns / 8; ++j) {
          const float2 scale = *reinterpret_cast<const float2*>(&scales[stage][j * 8 + t * 2]);
#pragma unroll
          for (int e = 0; e < 4; ++e)
            sum[j * 4 + e] = fmaf(d[j * 4 + e], e % 2 == 0 ? scale.x : scale.y, sum[j * 4 + e]);
        }
        __syncwarp();
        if (first_lane) barrier_arrive(&empty[stage]);
        next_stage();
      }
      store_sums<kF8Columns>(a, tile, sum, tile.rows.row + group * 64);
    }
  }
}

}  // namespace calandra::cuda

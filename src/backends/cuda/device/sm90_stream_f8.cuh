// Products of few rows with weights of f8_e4m3 that have a scale for each 128 inputs: y = x W^T, near the memory's
// speed for any number of rows up to 128. The rows of x are the columns of the tensor cores' products here, so that few
// of them waste little, and each weight is turned into bf16, exactly, once for all rows.
//   work      a block has 128 outputs and a part of K; the blocks of the parts are a cluster. One thread copies tiles
//             of W, of its scales and of x (TMA) into a ring of stages of 128 inputs. Each of eight warps has 16
//             outputs: up to 32 rows by products of its own (mma), more by those of a warpgroup (wgmma), weights in
//             registers.
//   order     of a sum: the products of 128 inputs, times their scale in f32, added to the blocks before; then the
//             parts of K in order, through the shared memory of the cluster. How many parts there are depends on the
//             sizes of the weights and on which kRows it is, and so do the bits.
//   memory    two to four stages of 20 to 50 kB; two or three blocks share a multiprocessor, but with more than 64 rows
//   bound by  the read of the weights, with 60 % of the bandwidth for 32 rows and half for 64 (27B's gate and up,
//             bench/results/cuda_small_kernels.md); the first stages are read before the kernel in front has ended
#pragma once

#include <cooperative_groups.h>

#include "backends/cuda/device/f8_operand.cuh"
#include "backends/cuda/device/few_rows_args.cuh"
#include "backends/cuda/device/wgmma.cuh"

namespace calandra::cuda {

constexpr int kStreamOutputs = 128, kStreamInputs = kF8OperandInputs;  // of a stage
constexpr int kStreamGroups = 2;                                       // warpgroups that multiply
constexpr int kStreamThreads = kStreamGroups * kWarpgroup;
constexpr int kMostStreamRows = 128, kMostStreamParts = 8;  // rows of x; parts of K

// One weight, or a pair of them for SwiGLU: each warpgroup has a weight then, with 64 outputs.
struct StreamPart {
  CUtensorMap weight[kStreamGroups], scales[kStreamGroups];  // of the warpgroups   [N, K] f8, [N, K / 128] f32
  const float* bias[kStreamGroups];                          // null: none
  const bf16_t* residual;
  Output out;
  int64_t residual_stride, out_stride;
  int N;
  int first_tile;  // tiles of the parts before
  After after;

  __host__ __device__ int outputs_of_tile() const {
    return after == After::kSwiGlu ? kStreamOutputs / 2 : kStreamOutputs;
  }
};

struct StreamArgs {
  static constexpr int kMostParts = 4;
  CUtensorMap x;  // [T, K]
  StreamPart part[kMostParts];
  int parts, T;
  int blocks;  // of K
  int splits;  // of K: blocks of a cluster
};

template <int kRows>
struct StreamStage {
  static constexpr int kWeights = 64 * kStreamInputs, kScales = 64 * 4 * sizeof(float);  // of a warpgroup
  static constexpr int kX = kRows * kTileDepth * 2;                                      // of 64 inputs
  static constexpr int kXAt = kStreamGroups * kWeights, kScalesAt = kXAt + 2 * kX,
                       kBytes = kScalesAt + kStreamGroups * kScales;
  static constexpr int kBlocks = kRows <= 16 ? 3 : kRows <= 64 ? 2 : 1;  // of a multiprocessor
  static constexpr int kStages = kRows <= 16 || kRows == 64 ? 3 : 4;
  static constexpr bool kByWarps = kRows <= 16;
  static constexpr size_t kShared = kStages * kBytes + 1024;
  static constexpr int kSumStride = kStreamOutputs + 4;  // floats of a row of sums, which take the ring's place
};

// The sums of a warp's 16 outputs over the 128 inputs of a stage. They have the layout of wgmma's: thread 4 g + t has
// outputs g and g + 8 of rows 2 t and 2 t + 1 of each 8.
template <int kRows>
struct WarpStage {
  // A copy has put 16 bytes c of row n at c ^ n % 8. Thread t has bytes 32 t to 32 t + 31 of rows g and g + 8 of W,
  // and the same inputs of x.
  __device__ __forceinline__ static void multiply(const std::byte* weights, const std::byte* x, float (&d)[kRows / 2]) {
    const int lane = threadIdx.x % kWarp, g = lane / 4, t = lane % 4;
#pragma unroll
    for (float& e : d) e = 0;
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const std::byte* row = weights + g * kStreamInputs + ((2 * t + half) ^ g) * 16;
      const uint4 low = *reinterpret_cast<const uint4*>(row),
                  high = *reinterpret_cast<const uint4*>(row + 8 * kStreamInputs);
      uint32_t a[4][4];
      const uint32_t lows[4] = {low.x, low.y, low.z, low.w}, highs[4] = {high.x, high.y, high.z, high.w};
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        a[i][0] = bf16x2_of_e4m3<0>(lows[i]);
        a[i][1] = bf16x2_of_e4m3<0>(highs[i]);
        a[i][2] = bf16x2_of_e4m3<1>(lows[i]);
        a[i][3] = bf16x2_of_e4m3<1>(highs[i]);
      }
#pragma unroll
      for (int n = 0; n < kRows / 8; ++n)
#pragma unroll
        for (int c = 0; c < 2; ++c) {
          const uint4 b =
              *reinterpret_cast<const uint4*>(x + t / 2 * StreamStage<kRows>::kX + (n * 8 + g) * kTileDepth * 2 +
                                              ((t % 2 * 4 + half * 2 + c) ^ g) * 16);
          float(&sum)[4] = *reinterpret_cast<float(*)[4]>(d + n * 4);
          mma_bf16(sum, a[2 * c][0], a[2 * c][1], a[2 * c][2], a[2 * c][3], b.x, b.y);
          mma_bf16(sum, a[2 * c + 1][0], a[2 * c + 1][1], a[2 * c + 1][2], a[2 * c + 1][3], b.z, b.w);
        }
    }
  }
};

// The same by a warpgroup, whose every warp calls it.
template <int kRows>
struct WarpgroupStage {
  static constexpr int kWidth = kRows < 64 ? kRows : 64;  // rows at once

  // Rows r0 to r0 + kWidth - 1.
  __device__ __forceinline__ static void multiply(const uint32_t (&w)[kStreamInputs / 16][4], const std::byte* x,
                                                  int r0, float (&d)[kWidth / 2]) {
    wgmma_begin();
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const uint64_t tile = describe_tile(x + half * StreamStage<kRows>::kX + r0 * kTileDepth * 2);
#pragma unroll
      for (int j = 0; j < kTileDepth / 16; ++j) wgmma(d, w[half * 4 + j], tile + 2 * j, half + j);
    }
    wgmma_commit();
    wgmma_wait<0>();
    hold(d);
  }
};

template <int kRows>
__global__ void __launch_bounds__(kStreamThreads, StreamStage<kRows>::kBlocks)
    stream_f8(const __grid_constant__ StreamArgs a) {
  namespace cg = cooperative_groups;
  using Stage = StreamStage<kRows>;
  constexpr int kStages = Stage::kStages;
  extern __shared__ std::byte memory[];
  __shared__ uint64_t full[kStages], empty[kStages];
  std::byte* ring = memory + (1024 - shared_address(memory) % 1024) % 1024;
  float* sums = reinterpret_cast<float*>(ring);  // [kRows, kSumStride]
  const int warp = threadIdx.x / kWarp, lane = threadIdx.x % kWarp;
  const int split = static_cast<int>(blockIdx.x) % a.splits, tile = static_cast<int>(blockIdx.x) / a.splits;
  const int first = split * a.blocks / a.splits, count = (split + 1) * a.blocks / a.splits - first;
  int number = 0;
  while (number + 1 < a.parts && tile >= a.part[number + 1].first_tile) ++number;
  const StreamPart& p = a.part[number];
  const int n0 = (tile - p.first_tile) * p.outputs_of_tile();
  if (threadIdx.x == 0) {
    for (int i = 0; i < kStages; ++i) barrier_init(&full[i], 1), barrier_init(&empty[i], kStreamThreads / kWarp);
    barrier_init_done();
  }
  __syncthreads();

  const auto load_weights = [&](int i) {
    uint64_t* barrier = &full[i % kStages];
    std::byte* to = ring + i % kStages * Stage::kBytes;
    barrier_expect(barrier, Stage::kBytes);
#pragma unroll
    for (int group = 0; group < kStreamGroups; ++group) {
      const int n = p.after == After::kSwiGlu ? n0 : n0 + 64 * group;
      copy_tile(to + group * Stage::kWeights, p.weight[group], (first + i) * kStreamInputs, n, barrier);
      copy_tile(to + Stage::kScalesAt + group * Stage::kScales, p.scales[group], (first + i) / 4 * 4, n, barrier);
    }
  };
  const auto load_x = [&](int i) {
    std::byte* to = ring + i % kStages * Stage::kBytes + Stage::kXAt;
#pragma unroll
    for (int half = 0; half < 2; ++half)
      copy_tile(to + half * Stage::kX, a.x, (first + i) * kStreamInputs + half * kTileDepth, 0, &full[i % kStages]);
  };
  const int early = min(kStages, count);
  if (threadIdx.x == 0)
    for (int i = 0; i < early; ++i) load_weights(i);
  wait_and_let_next_grid_begin();
  if (threadIdx.x == 0)
    for (int i = 0; i < early; ++i) load_x(i);
  __syncwarp();
  const int g = lane / 4, t = lane % 4;
  float sum[kRows / 2] = {};
  for (int i = 0; i < count; ++i) {
    const std::byte *stage = ring + i % kStages * Stage::kBytes, *weights = stage + warp * 16 * kStreamInputs,
                    *x = stage + Stage::kXAt;
    barrier_wait(&full[i % kStages], i / kStages % 2);
    const float* scales =
        reinterpret_cast<const float*>(stage + Stage::kScalesAt) + (warp * 16 + g) * 4 + (first + i) % 4;
    const float scale[2] = {scales[0], scales[8 * 4]};
    const auto add = [&](int r0, const auto& d) {
#pragma unroll
      for (int e = 0; e < static_cast<int>(std::size(d)); ++e)
        sum[r0 / 2 + e] = fmaf(d[e], scale[e / 2 % 2], sum[r0 / 2 + e]);
    };
    if constexpr (Stage::kByWarps) {
      float d[kRows / 2];
      WarpStage<kRows>::multiply(weights, x, d);
      add(0, d);
    } else {
      using Warpgroup = WarpgroupStage<kRows>;
      uint32_t w[kStreamInputs / 16][4];
      f8_operand(weights, w);
#pragma unroll
      for (int r0 = 0; r0 < kRows; r0 += Warpgroup::kWidth) {
        float d[Warpgroup::kWidth / 2];
        Warpgroup::multiply(w, x, r0, d);
        add(r0, d);
      }
    }
    __syncwarp();
    if (lane == 0) barrier_arrive(&empty[i % kStages]);
    if (const int next = i - 1 + kStages; threadIdx.x == 0 && i > 0 && next < count) {
      barrier_wait(&empty[next % kStages], (i - 1) / kStages % 2);
      load_weights(next), load_x(next);
    }
    __syncwarp();
  }
  __syncthreads();  // the ring has been read
#pragma unroll
  for (int e = 0; e < kRows / 2; ++e)
    sums[(e / 4 * 8 + t * 2 + e % 2) * Stage::kSumStride + warp * 16 + g + e / 2 % 2 * 8] = sum[e];

  cg::cluster_group cluster = cg::this_cluster();
  cluster.sync();
  const int outputs = p.outputs_of_tile();
  for (int i = split * kStreamThreads + static_cast<int>(threadIdx.x); i < a.T * outputs;
       i += a.splits * kStreamThreads) {
    const int r = i / outputs, column = i % outputs, n = n0 + column;
    if (n >= p.N) continue;
    const auto total = [&](int c, const float* bias) {
      float y = 0;
      for (int part = 0; part < a.splits; ++part)
        y += cluster.map_shared_rank(sums, static_cast<unsigned>(part))[r * Stage::kSumStride + c];
      return bias != nullptr ? y + bias[n] : y;
    };
    float y = total(column, p.bias[0]);
    if (p.after == After::kSwiGlu)
      y = rounded<bf16_t>(silu(rounded<bf16_t>(y))) * rounded<bf16_t>(total(column + 64, p.bias[1]));
    else if (p.after == After::kAdd)
      y = to_float(p.residual[r * p.residual_stride + n]) + rounded<bf16_t>(y);
    p.out.store(r * p.out_stride + n, y);
  }
  cluster.sync();  // nobody reads the sums of a block that has ended
}

}  // namespace calandra::cuda

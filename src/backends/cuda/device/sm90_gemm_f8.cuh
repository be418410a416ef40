// Products of many rows with weights of f8_e4m3 that have a scale for each 128 inputs. The rows of x are the columns of
// the tensor cores' products here, so that the weights come from registers, where they become bf16, exactly, once for
// kRows rows. Shared memory, whose 128 bytes a cycle bound such products, has only x for the tensor cores to read.
//   work      a block takes tiles of kRows rows and 128 outputs, one after the other. One thread copies tiles of W and
//             x (TMA) into a ring of stages of 128 inputs. Two warpgroups have 64 outputs each, 64 rows at a time.
//   order     of a sum: 128 inputs in steps of 16, times their scale in f32, added to the sums of the blocks before
//   memory    192 kB of shared memory: stages of 32, 48 or 80 kB
//   bound by  the tensor cores, and shared memory, which at their peak has 64 bytes a cycle to give them and, with 256
//             rows, 48 more to carry; half of their bf16 peak in prompts of 27B (bench/results/cuda_gemm.md)
#pragma once

#include "backends/cuda/device/f8_operand.cuh"
#include "backends/cuda/device/reduce.cuh"
#include "backends/cuda/device/sm90_gemm.cuh"

namespace calandra::cuda {

constexpr int kF8Depth = 128;    // inputs of a scale and of a stage
constexpr int kF8Columns = 128;  // outputs of a tile
constexpr int kF8Groups = 2;     // warpgroups that multiply
constexpr int kF8Threads = (1 + kF8Groups) * kWarpgroup;

namespace gemm_detail {

constexpr int kF8Width = 64;  // rows of x at once

// Of an 8 x 8 matrix of 16 bits, of which thread 4 g + t has columns 2 t and 2 t + 1 of row g: those of its transpose.
__device__ __forceinline__ uint32_t transposed(uint32_t pair) {
  uint32_t out;
  asm("movmatrix.sync.aligned.m8n8.trans.b16 %0, %1;" : "=r"(out) : "r"(pair));
  return out;
}

// The sums of a warp: outputs n + g and n + g + 8 of rows 8 j + 2 t and 8 j + 2 t + 1 of the tile.
template <int kRows>
__device__ __forceinline__ void store_warp_sums(const GemmArgs& a, const Tile& tile, float (&sum)[kRows / 2], int n) {
  const GemmPart& p = *tile.part;
  const int lane = threadIdx.x % kWarp, g = lane / 4, t = lane % 4;
  if (p.bias != nullptr) {
    const float bias[2] = {n + g < p.N ? p.bias[n + g] : 0.0f, n + g + 8 < p.N ? p.bias[n + g + 8] : 0.0f};
#pragma unroll
    for (int i = 0; i < kRows / 2; ++i) sum[i] += bias[i / 2 % 2];
  }
  const auto row_of_output = [&](int row) { return a.out_rows != nullptr ? int64_t{a.out_rows[row]} : row; };
  if (p.aligned) {  // eight outputs of a row at a time
#pragma unroll
    for (int j = 0; j < kRows / 8; j += 2) {
      uint32_t words[4];
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        const float* of = sum + (j + i / 2) * 4 + i % 2 * 2;
        const __nv_bfloat162 pair = __floats2bfloat162_rn(of[0], of[1]);
        words[i] = transposed(reinterpret_cast<const uint32_t&>(pair));
      }
      transpose_words(words, t);
      const int row = tile.rows.row + (j + t / 2) * 8 + g, column = n + t % 2 * 8;
      if (row < tile.rows.end && column < p.N) {
        const int64_t to = row_of_output(row);
        if (p.residual != nullptr) {
          const uint4 r = *reinterpret_cast<const uint4*>(p.residual + to * p.residual_stride + column);
          words[0] = add_pairs(r.x, words[0]), words[1] = add_pairs(r.y, words[1]);
          words[2] = add_pairs(r.z, words[2]), words[3] = add_pairs(r.w, words[3]);
        }
        bf16_t* out = static_cast<bf16_t*>(p.out.data) + to * p.out_stride + column;
        *reinterpret_cast<uint4*>(out) = {words[0], words[1], words[2], words[3]};
      }
      __syncwarp();  // the next transposes are whole warps'
    }
    return;
  }
#pragma unroll
  for (int i = 0; i < kRows / 2; ++i) {
    const int row = tile.rows.row + i / 4 * 8 + t * 2 + i % 2, column = n + g + i / 2 % 2 * 8;
    if (row >= tile.rows.end || column >= p.N) continue;
    const int64_t to = row_of_output(row);
    float y = sum[i];
    if (p.residual != nullptr) y = to_float(p.residual[to * p.residual_stride + column]) + rounded<bf16_t>(y);
    p.out.store(to * p.out_stride + column, y);
  }
}

}  // namespace gemm_detail

static_assert(kF8Depth == kF8OperandInputs);

template <int kRows>
struct GemmF8Stage {
  static constexpr int kW = kF8Columns * kF8Depth, kX = kRows * kTileDepth * 2;  // bytes; x of 64 inputs
  static constexpr int kBytes = kW + 2 * kX, kStages = kRing / kBytes;
};

template <int kRows>
__global__ void __launch_bounds__(kF8Threads, 1) gemm_f8(const __grid_constant__ GemmArgs a) {
  using namespace gemm_detail;
  using Stage = GemmF8Stage<kRows>;
  constexpr int kStages = Stage::kStages;
  extern __shared__ std::byte memory[];
  __shared__ uint64_t full[kStages], empty[kStages];
  std::byte* ring = memory + (1024 - shared_address(memory) % 1024) % 1024;
  const int group = threadIdx.x / kWarpgroup, blocks = (a.K + kF8Depth - 1) / kF8Depth;
  if (threadIdx.x == 0) {
    for (int i = 0; i < kStages; ++i)
      barrier_init(&full[i], 1), barrier_init(&empty[i], kF8Groups * kWarpgroup / kWarp);
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
    give_up_registers<40>();
    if (threadIdx.x != 0) return;
    for (int i = blockIdx.x; i < tiles; i += gridDim.x) {
      const Tile tile = tile_of<kRows, kF8Columns>(a, i, row_tiles);
      for (int block = 0; block < blocks; ++block) {
        barrier_wait(&empty[stage], phase ^ 1);
        barrier_expect(&full[stage], Stage::kBytes);
        std::byte* to = ring + stage * Stage::kBytes;
        copy_tile(to, tile.part->weight, block * kF8Depth, tile.column, tile.rows.expert, &full[stage]);
        copy_tile(to + Stage::kW, a.x, block * kF8Depth, tile.rows.row, &full[stage]);
        copy_tile(to + Stage::kW + Stage::kX, a.x, block * kF8Depth + kTileDepth, tile.rows.row, &full[stage]);
        next_stage();
      }
    }
  } else {
    take_registers<232>();
    const int warp = static_cast<int>(threadIdx.x) / kWarp - kWarpgroup / kWarp, g = threadIdx.x % kWarp / 4;
    float sum[kRows / 2];
    for (int i = blockIdx.x; i < tiles; i += gridDim.x) {
      const Tile tile = tile_of<kRows, kF8Columns>(a, i, row_tiles);
      const GemmPart& p = *tile.part;
      const int n = tile.column + warp * 16;
      const auto scale_of = [&](int output, int block) {
        const std::byte* row = p.packed + tile.rows.expert * p.expert_bytes + int64_t{output} * p.row_bytes;
        return output < p.N ? __ldg(reinterpret_cast<const float*>(row + p.value_bytes) + block) : 0.0f;
      };
      float scale[2] = {scale_of(n + g, 0), scale_of(n + g + 8, 0)};
#pragma unroll
      for (float& s : sum) s = 0;
      for (int block = 0; block < blocks; ++block) {
        const float now[2] = {scale[0], scale[1]};
        if (block + 1 < blocks) scale[0] = scale_of(n + g, block + 1), scale[1] = scale_of(n + g + 8, block + 1);
        barrier_wait(&full[stage], phase);
        const std::byte *from = ring + stage * Stage::kBytes, *x = from + Stage::kW;
        uint32_t w[kF8OperandInputs / 16][4];
        f8_operand(from + warp * 16 * kF8Depth, w);
#pragma unroll
        for (int r0 = 0; r0 < kRows; r0 += kF8Width) {
          float d[kF8Width / 2];
          wgmma_begin();
#pragma unroll
          for (int half = 0; half < 2; ++half) {
            const uint64_t rows = describe_tile(x + half * Stage::kX + r0 * kTileDepth * 2);
#pragma unroll
            for (int j = 0; j < kTileDepth / 16; ++j) wgmma(d, w[half * 4 + j], rows + 2 * j, half + j);
          }
          wgmma_commit();
          wgmma_wait<0>();
          hold(d);
#pragma unroll
          for (int e = 0; e < kF8Width / 2; ++e) sum[r0 / 2 + e] = fmaf(d[e], now[e / 2 % 2], sum[r0 / 2 + e]);
        }
        __syncwarp();
        if (threadIdx.x % kWarp == 0) barrier_arrive(&empty[stage]);
        next_stage();
      }
      store_warp_sums<kRows>(a, tile, sum, n);
    }
  }
}

}  // namespace calandra::cuda

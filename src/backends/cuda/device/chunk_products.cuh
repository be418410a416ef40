// Products of what a warp has of chunks of weights: 128 bytes of a row in a chunk of 1 kB (device/few_rows.cuh,
// device/experts_down.cuh), on tensor cores (device/mma.cuh). Thread 4 g + t has 16 bytes from 16 t on, and from
// 64 + 16 t on, of row g of a tile, and the same inputs of row g of x.
//
// Weights are B of an instruction, 8 rows, and 16 rows of x are A; or, with what F8Chunks has, weights are A, 16 rows,
// and 8 rows of x are B. Tensor cores give the same bits either way.
#pragma once

#include "backends/cuda/device/few_rows_args.cuh"
#include "backends/cuda/device/mma.cuh"

namespace calandra::cuda {

// 8 numbers of a row of x from k on, zeros beyond K. kAligned: rows begin at multiples of 16 bytes and K is one of 8.
template <bool kAligned>
__device__ __forceinline__ uint4 x_at(const bf16_t* row, int k, int K) {
  if constexpr (kAligned) {
    return *reinterpret_cast<const uint4*>(row + k);
  } else {
    Vec<bf16_t, 8> v;
#pragma unroll
    for (int i = 0; i < 8; ++i) v.at[i] = k + i < K ? row[k + i] : __float2bfloat16_rn(0.0f);
    return reinterpret_cast<const uint4&>(v);
  }
}

// 16 bytes of weights, which are read once. Not ld.global.nc: the assembler moves such loads behind the wait for the
// kernel in front (device/pipeline.cuh), these it leaves where they are.
__device__ __forceinline__ uint4 load_once(const std::byte* from) {
  uint4 v;
  asm volatile("ld.global.L1::no_allocate.L2::128B.v4.u32 {%0, %1, %2, %3}, [%4];"
               : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w)
               : "l"(from));
  return v;
}

// Products of a chunk: a warp's 128 bytes of each row of a tile. f8: a thread has 16 numbers of two steps at once.
template <bool kF8>
struct ChunkProduct {
  static constexpr int kSize = kF8 ? 1 : 2;
  static constexpr int kInputs = kOfWarp / kSize;
  static constexpr int kOwn = kInputs / 32;  // times 8 inputs of a thread

  // The 8 inputs of number i, from the warp's first on.
  __device__ __forceinline__ static int input(int i, int t) {
    return kF8 ? i / 2 * 64 + 16 * t + i % 2 * 8 : i * 32 + 8 * t;
  }
  // Without f8's scale.
  __device__ __forceinline__ static void multiply(float (&sum)[4], const uint4 (&low)[kOwn], const uint4 (&high)[kOwn],
                                                  const uint4 (&w)[2]) {
#pragma unroll
    for (int i = 0; i < 2; ++i)
      if constexpr (kF8) {
        mma_step(sum, low[2 * i], high[2 * i], bf16x8_of_e4m3x8({w[i].x, w[i].y}));
        mma_step(sum, low[2 * i + 1], high[2 * i + 1], bf16x8_of_e4m3x8({w[i].z, w[i].w}));
      } else {
        mma_step(sum, low[i], high[i], w[i]);
      }
  }
  __device__ __forceinline__ static void add(float (&sum)[4], const uint4 (&low)[kOwn], const uint4 (&high)[kOwn],
                                             const uint4 (&w)[2], const float (&scale)[2]) {
    if constexpr (kF8) {
      float block[4] = {};
      multiply(block, low, high, w);
#pragma unroll
      for (int i = 0; i < 4; ++i) sum[i] = fmaf(block[i], scale[i % 2], sum[i]);
    } else {
      multiply(sum, low, high, w);
    }
  }
};

// A warp's part of all chunks of kTiles tiles of f8, one chunk ahead; K a multiple of 128. With ChunkProduct f8 is
// bound by instructions, since its numbers are converted: few_rows has 391 for 2 kB of a warp, here they are 174. Two
// tiles share an instruction as A, a thread needs one scale of a tile, addresses move by steps, and no load is asked
// whether it is within its row.
template <int kRows, int kTiles>
struct F8Chunks {
  static_assert(kTiles <= 2 && kRows % kTile == 0);
  static constexpr int kColumns = kRows / kTile;
  // D of 8 rows of x each: rows g and g + 8 are output g of the first and of the second tile, columns the rows of x.
  using Sums = float[kColumns][4];

  const std::byte *values[kTiles], *scales[kTiles];  // the thread's of the chunk that is loaded next
  const bf16_t* x[kColumns];  // and of the chunk that is multiplied next, of rows that exist, wanted or not
  int left;                   // chunks

  uint4 w[kTiles][2];
  float scale[kTiles];

  __device__ __forceinline__ void load() {
#pragma unroll
    for (int tile = 0; tile < kTiles; ++tile) {
#pragma unroll
      for (int i = 0; i < 2; ++i) w[tile][i] = load_once(values[tile] + i * 64);
      asm volatile("ld.global.f32 %0, [%1];" : "=f"(scale[tile]) : "l"(scales[tile]));  // as load_once
      values[tile] += kChunk;
      scales[tile] += sizeof(float) * kTileWarps;
    }
  }
  // The chunk that is loaded.
  __device__ __forceinline__ void multiply(Sums& sum) {
    float block[kColumns][4] = {};
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      uint4 in[kColumns][2];
#pragma unroll
      for (int c = 0; c < kColumns; ++c)
#pragma unroll
        for (int j = 0; j < 2; ++j) in[c][j] = *reinterpret_cast<const uint4*>(x[c] + i * 64 + j * 8);
#pragma unroll
      for (int j = 0; j < 2; ++j) {
        uint4 a[2] = {};
#pragma unroll
        for (int tile = 0; tile < kTiles; ++tile) {
          const uint4& v = w[tile][i];
          a[tile] = bf16x8_of_e4m3x8(j == 0 ? uint2{v.x, v.y} : uint2{v.z, v.w});
        }
#pragma unroll
        for (int c = 0; c < kColumns; ++c) mma_step(block[c], a[0], a[1], in[c][j]);
      }
    }
#pragma unroll
    for (int c = 0; c < kColumns; ++c) {
      x[c] += kChunk;
#pragma unroll
      for (int i = 0; i < 2 * kTiles; ++i) sum[c][i] = fmaf(block[c][i], scale[i / 2], sum[c][i]);
    }
  }
  // All chunks. The first is loaded, if there is one.
  __device__ __forceinline__ void add(Sums& sum) {
#pragma unroll 1
    while (left > 0) {
      multiply(sum);
      if (--left > 0) load();
    }
  }
};

}  // namespace calandra::cuda

// out[t, h, n] = sum_k x[t, h, k] W_h[n, k] for weights in bf16 or f8_e4m3 on tensor cores, x bf16 or f32 (split into
// two bf16, which leaves 2^-18 of each number). f8 becomes bf16, exactly, on its way into shared memory, and the sum of
// each piece of 128 inputs is scaled in f32.
//
// A block of 4 warps has one head, 64 outputs and 64 rows, or 16 rows where there are no more; a warp has 16 rows and
// all outputs, or 16 outputs. Pieces of 128 inputs have sums of their own, over k in steps of 16 in order, whatever the
// number of rows. They go through shared memory, 17 kB of the weight and up to 35 kB of x. Few rows are bound by the
// read of the weight.
#pragma once

#include <type_traits>

#include "backends/cuda/device/launch.cuh"
#include "backends/cuda/device/mma.cuh"
#include "backends/cuda/device/reduce.cuh"
#include "backends/cuda/device/rows.cuh"
#include "backends/cuda/device/tiles.cuh"
#include "ops/weight.h"

namespace calandra::cuda {

// Weights as they are packed (packed_rows.h).
struct HeadWeights {
  const std::byte* data;
  int64_t head_bytes, row_bytes;       // from one to the next
  int64_t scales_at = 0, block_k = 1;  // of f8_e4m3: where a row's scales begin, and for how many inputs each is
};

constexpr int kProductThreads = 128, kProductOutputs = 64, kProductInputs = 128,
              kProductStride = kProductInputs + kTilePadding;

template <class X, int kRows>
constexpr size_t head_products_bytes() {
  return sizeof(bf16_t) * kProductStride * (kProductOutputs + kRows * (std::is_same_v<X, float> ? 2 : 1));
}

// kRows: 16 or 64.
template <class X, class W, int kRows>
__global__ void __launch_bounds__(kProductThreads)
    head_tiles(Rows<const X> x, HeadWeights weight, int64_t T, int64_t N, int64_t K, Output out) {
  extern __shared__ __align__(16) std::byte product_shared[];
  constexpr bool kSplit = std::is_same_v<X, float>, kScaled = sizeof(W) == 1;
  constexpr int kColumns16 = kRows == 16 ? 1 : kProductOutputs / 16;  // 16 outputs each, of a warp
  bf16_t *weights = reinterpret_cast<bf16_t*>(product_shared), *high = weights + kProductOutputs * kProductStride,
         *low = high + kRows * kProductStride;
  const int64_t n0 = int64_t{blockIdx.x} * kProductOutputs, h = blockIdx.y, H = gridDim.y,
                t0 = int64_t{blockIdx.z} * kRows;
  const int warp = threadIdx.x / kWarp, lane = threadIdx.x % kWarp;
  const int row0 = kRows == 16 ? 0 : warp * 16, column0 = kRows == 16 ? warp * 16 : 0;
  const std::byte* from = weight.data + h * weight.head_bytes + n0 * weight.row_bytes;
  float sum[kColumns16][2][4] = {};
  for (int64_t k0 = 0; k0 < K; k0 += kProductInputs) {
    constexpr int kPieces = kProductInputs / 8;
    for (int i = threadIdx.x; i < kProductOutputs * kPieces; i += kProductThreads) {
      const int r = i / kPieces, c = i % kPieces * 8;
      const std::byte* eight = from + r * weight.row_bytes + (k0 + c) * static_cast<int64_t>(sizeof(W));
      bf16_t* to = weights + r * kProductStride + c;
      if constexpr (kScaled)
        *reinterpret_cast<uint4*>(to) = bf16x8_of_e4m3x8(*reinterpret_cast<const uint2*>(eight));
      else
        copy_16_async(to, eight, true);
    }
    for (int i = threadIdx.x; i < kRows * kPieces; i += kProductThreads) {
      const int r = i / kPieces, c = i % kPieces * 8;
      const bool seen = t0 + r < T;
      const X* piece = seen ? x[t0 + r] + h * K + k0 + c : x.data;
      if constexpr (kSplit) {
        float v[8] = {};
        load_some(piece, v, seen ? 8 : 0, true);
#pragma unroll
        for (int e = 0; e < 8; e += 2) {
          *reinterpret_cast<uint32_t*>(high + r * kProductStride + c + e) = bf16_pair(v[e], v[e + 1]);
          *reinterpret_cast<uint32_t*>(low + r * kProductStride + c + e) = bf16_pair(rest_of(v[e]), rest_of(v[e + 1]));
        }
      } else {
        copy_16_async(high + r * kProductStride + c, piece, seen);
      }
    }
    end_copy_group();
    wait_copies<0>();
    __syncthreads();
    float piece[kColumns16][2][4] = {};
#pragma unroll
    for (int k = 0; k < kProductInputs; k += 16) {
      uint32_t a[4], a_rest[4];
      load_a(a, high, kProductStride, row0, k, lane);
      if constexpr (kSplit) load_a(a_rest, low, kProductStride, row0, k, lane);
#pragma unroll
      for (int n = 0; n < kColumns16; ++n) {
        uint32_t b[4];
        load_b(b, weights, kProductStride, column0 + n * 16, k, lane);
#pragma unroll
        for (int e = 0; e < 2; ++e) {
          mma_bf16(piece[n][e], a[0], a[1], a[2], a[3], b[2 * e], b[2 * e + 1]);
          if constexpr (kSplit)
            mma_bf16(piece[n][e], a_rest[0], a_rest[1], a_rest[2], a_rest[3], b[2 * e], b[2 * e + 1]);
        }
      }
    }
#pragma unroll
    for (int n = 0; n < kColumns16; ++n)
#pragma unroll
      for (int e = 0; e < 2; ++e)
#pragma unroll
        for (int i = 0; i < 4; ++i) {
          float scale = 1;
          if constexpr (kScaled) {
            const int r = column0 + n * 16 + e * 8 + lane % 4 * 2 + i % 2;
            const auto* scales = reinterpret_cast<const float*>(from + r * weight.row_bytes + weight.scales_at);
            scale = scales[k0 / weight.block_k];
          }
          sum[n][e][i] = fmaf(piece[n][e][i], scale, sum[n][e][i]);
        }
    __syncthreads();  // the memory is free for the next piece
  }
#pragma unroll
  for (int n = 0; n < kColumns16; ++n)
#pragma unroll
    for (int e = 0; e < 2; ++e)
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        const int64_t t = t0 + row0 + lane / 4 + i / 2 * 8;
        if (t < T) out.store((t * H + h) * N + n0 + column0 + n * 16 + e * 8 + lane % 4 * 2 + i % 2, sum[n][e][i]);
      }
}

// Whether the kernel serves: whole tiles, 16 bytes at a time, pieces with one scale.
inline bool head_products_serve(const Tensor& x, const GroupedWeight& weight) {
  const bool whole_scales = weight.dtype == DType::kF8E4M3 && weight.block_k % kProductInputs == 0;
  return (weight.dtype == DType::kBF16 || whole_scales) && weight.N % kProductOutputs == 0 &&
         weight.K % kProductInputs == 0 && rows_aligned(x, 16) && weight.packed.stride(0) % 16 == 0;
}

template <class X, class W>
void run_head_tiles(cudaStream_t stream, const Rows<const X>& x, const HeadWeights& weight, int64_t T, int64_t H,
                    int64_t N, int64_t K, Output out) {
  const auto columns = static_cast<unsigned>(N / kProductOutputs), heads = static_cast<unsigned>(H);
  if (T <= 16) {
    const auto kernel = head_tiles<X, W, 16>;
    kernel<<<dim3(columns, heads, 1), kProductThreads, head_products_bytes<X, 16>(), stream>>>(x, weight, T, N, K, out);
  } else {
    constexpr auto kKernel = head_tiles<X, W, 64>;
    allow_shared<kKernel>(head_products_bytes<X, 64>());
    kKernel<<<dim3(columns, heads, blocks_for(T, 64)), kProductThreads, head_products_bytes<X, 64>(), stream>>>(
        x, weight, T, N, K, out);
  }
}

}  // namespace calandra::cuda

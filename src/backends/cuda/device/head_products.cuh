// out[t, h, n] = sum_k x[t, h, k] W_h[n, k] on tensor cores, x and W bf16 or f32 (split into two bf16, which leaves
// 2^-18 of each number; of the products, that of both rests is left out).
//
// A block of 4 warps has one head, 64 outputs and 64 rows, or 16 rows where there are no more; a warp has 16 rows and
// all outputs, or 16 outputs. Sums run over k in steps of 16 in order, whatever the number of rows. Pieces of 128
// inputs go through shared memory, 17 kB of the weight (35 if it is f32) and up to 35 kB of x. Few rows are bound by
// the read of the weight.
#pragma once

#include <type_traits>

#include "backends/cuda/device/launch.cuh"
#include "backends/cuda/device/mma.cuh"
#include "backends/cuda/device/reduce.cuh"
#include "backends/cuda/device/rows.cuh"
#include "backends/cuda/device/tiles.cuh"

namespace calandra::cuda {

constexpr int kProductThreads = 128, kProductOutputs = 64, kProductInputs = 128,
              kProductStride = kProductInputs + kTilePadding;

template <class T>
constexpr int kHalves = std::is_same_v<T, float> ? 2 : 1;  // numbers of bf16 that one of T is split into

template <class X, class W, int kRows>
constexpr size_t head_products_bytes() {
  return sizeof(bf16_t) * kProductStride * (kProductOutputs * kHalves<W> + kRows * kHalves<X>);
}

// 128 inputs of some rows into a tile of bf16; of f32 what the rounding leaves goes to `low`. row_of(r): where they
// are, null for zeros; `any`: an address that may be read. All reads are under way before the first is used.
template <class T, int kTileRows, class RowOf>
__device__ __forceinline__ void bring_tile(RowOf row_of, const T* any, bf16_t* high, bf16_t* low) {
  constexpr int kPieces = kProductInputs / 8, kOwn = kTileRows * kPieces / kProductThreads;
  const auto place = [](int j) {
    const int i = static_cast<int>(threadIdx.x) + j * kProductThreads;
    return int2{i / kPieces, i % kPieces * 8};
  };
  if constexpr (kHalves<T> == 2) {
    float v[kOwn][8] = {};
#pragma unroll
    for (int j = 0; j < kOwn; ++j) {
      const auto [r, c] = place(j);
      if (const T* row = row_of(r); row != nullptr) load_some(row + c, v[j], 8, true);
    }
#pragma unroll
    for (int j = 0; j < kOwn; ++j) {
      const auto [r, c] = place(j);
#pragma unroll
      for (int e = 0; e < 8; e += 2) {
        const int at = r * kProductStride + c + e;
        const float a = v[j][e], b = v[j][e + 1];
        *reinterpret_cast<uint32_t*>(high + at) = bf16_pair(a, b);
        *reinterpret_cast<uint32_t*>(low + at) = bf16_pair(rest_of(a), rest_of(b));
      }
    }
  } else {
#pragma unroll
    for (int j = 0; j < kOwn; ++j) {
      const auto [r, c] = place(j);
      const T* row = row_of(r);
      copy_16_async(high + r * kProductStride + c, row != nullptr ? row + c : any, row != nullptr);
    }
  }
}

// `row_stride`: numbers from row to row of a weight. kRows: 16 or 64.
template <class X, class W, int kRows>
__global__ void __launch_bounds__(kProductThreads)
    head_tiles(Rows<const X> x, const W* weight, int64_t head_stride, int64_t row_stride, int64_t T, int64_t N,
               int64_t K, Output out) {
  extern __shared__ __align__(16) std::byte product_shared[];
  constexpr bool kSplit = kHalves<X> == 2, kSplitWeight = kHalves<W> == 2;
  constexpr int kColumns16 = kRows == 16 ? 1 : kProductOutputs / 16;  // 16 outputs each, of a warp
  bf16_t *weights = reinterpret_cast<bf16_t*>(product_shared),
         *high = weights + kHalves<W> * kProductOutputs * kProductStride, *low = high + kRows * kProductStride,
         *weights_low = weights + kProductOutputs * kProductStride;
  const int64_t n0 = int64_t{blockIdx.x} * kProductOutputs, h = blockIdx.y, H = gridDim.y,
                t0 = int64_t{blockIdx.z} * kRows;
  const int warp = threadIdx.x / kWarp, lane = threadIdx.x % kWarp;
  const int row0 = kRows == 16 ? 0 : warp * 16, column0 = kRows == 16 ? warp * 16 : 0;
  const W* from = weight + h * head_stride + n0 * row_stride;
  float sum[kColumns16][2][4] = {};
  for (int64_t k0 = 0; k0 < K; k0 += kProductInputs) {
    bring_tile<W, kProductOutputs>([&](int r) { return from + r * row_stride + k0; }, from, weights, weights_low);
    bring_tile<X, kRows>([&](int r) -> const X* { return t0 + r < T ? x[t0 + r] + h * K + k0 : nullptr; }, x.data, high,
                         low);
    end_copy_group();
    wait_copies<0>();
    __syncthreads();
#pragma unroll
    for (int k = 0; k < kProductInputs; k += 16) {
      uint32_t a[4], a_rest[4];
      load_a(a, high, kProductStride, row0, k, lane);
      if constexpr (kSplit) load_a(a_rest, low, kProductStride, row0, k, lane);
#pragma unroll
      for (int n = 0; n < kColumns16; ++n) {
        uint32_t b[4], b_rest[4];
        load_b(b, weights, kProductStride, column0 + n * 16, k, lane);
        if constexpr (kSplitWeight) load_b(b_rest, weights_low, kProductStride, column0 + n * 16, k, lane);
#pragma unroll
        for (int e = 0; e < 2; ++e) {
          mma_bf16(sum[n][e], a[0], a[1], a[2], a[3], b[2 * e], b[2 * e + 1]);
          if constexpr (kSplit) mma_bf16(sum[n][e], a_rest[0], a_rest[1], a_rest[2], a_rest[3], b[2 * e], b[2 * e + 1]);
          if constexpr (kSplitWeight) mma_bf16(sum[n][e], a[0], a[1], a[2], a[3], b_rest[2 * e], b_rest[2 * e + 1]);
        }
      }
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

// Whether the kernel serves: whole tiles, 16 bytes at a time.
inline bool head_products_serve(const Tensor& x, int64_t N, int64_t K) {
  return N % kProductOutputs == 0 && K % kProductInputs == 0 && rows_aligned(x, 16);
}

template <class X, class W>
void run_head_tiles(cudaStream_t stream, const Rows<const X>& x, const W* weight, int64_t head_stride,
                    int64_t row_stride, int64_t T, int64_t H, int64_t N, int64_t K, Output out) {
  const auto run = [&]<int kRows>(std::integral_constant<int, kRows>) {
    constexpr auto kKernel = head_tiles<X, W, kRows>;
    constexpr size_t kBytes = head_products_bytes<X, W, kRows>();
    if constexpr (kBytes > 48 * 1024) allow_shared<kKernel>(kBytes);
    const dim3 grid(static_cast<unsigned>(N / kProductOutputs), static_cast<unsigned>(H), blocks_for(T, kRows));
    kKernel<<<grid, kProductThreads, kBytes, stream>>>(x, weight, head_stride, row_stride, T, N, K, out);
  };
  T <= 16 ? run(std::integral_constant<int, 16>()) : run(std::integral_constant<int, 64>());
}

}  // namespace calandra::cuda

// Products with experts of many rows (ops/moe.h): rows are sorted by expert and copied, then device/gemm.cuh.
//   sort_rows     one block: counts the rows of each expert, gives each expert its range, lists the tiles. The order of
//                 an expert's rows is left to chance and changes no bit: a row's sums know nothing of other rows.
//                 Bound by latency of atomics in shared memory: 2 for each row.
//   gather_rows   a warp a row; bound by memory
#include "backends/cuda/moe_gemm.h"

#include "backends/cuda/device/reduce.cuh"
#include "backends/cuda/device/types.cuh"
#include "backends/cuda/linear_gemm.h"
#include "backends/cuda/packed_rows.h"
#include "backends/cuda/scratch.h"

namespace calandra::cuda {

namespace {

constexpr int kSortThreads = 1024;
constexpr int kGatherRows = 8;  // of a block
constexpr int kMostExperts = 4096;

struct Sort {
  Rows<const int32_t> experts;  // [T, k]
  int rows, top_k, E;           // rows: T k
  int tile;
  int32_t *place, *out_rows, *tile_count;  // place: of each row among the sorted, -1: it has no expert
  GemmRows* tiles;
};

__global__ void __launch_bounds__(kSortThreads) sort_rows(const __grid_constant__ Sort a) {
  extern __shared__ int counts[];  // [E], then where the next row of an expert goes
  const int thread = threadIdx.x;
  for (int e = thread; e < a.E; e += kSortThreads) counts[e] = 0;
  __syncthreads();
  const auto expert_of = [&](int i) {
    const int e = a.experts[i / a.top_k][i % a.top_k];
    return e >= 0 && e < a.E ? e : -1;
  };
  for (int i = thread; i < a.rows; i += kSortThreads) {
    const int e = expert_of(i);
    if (e >= 0) atomicAdd(&counts[e], 1);
  }
  __syncthreads();
  if (thread < kWarp) {
    int rows = 0, tiles = 0;  // of the experts before
    for (int e0 = 0; e0 < a.E; e0 += kWarp) {
      const int e = e0 + thread, own = e < a.E ? counts[e] : 0, own_tiles = (own + a.tile - 1) / a.tile;
      int upto = own, tiles_upto = own_tiles;
      for (int lane = 1; lane < kWarp; lane *= 2) {
        const int r = __shfl_up_sync(kAllLanes, upto, lane), t = __shfl_up_sync(kAllLanes, tiles_upto, lane);
        if (thread >= lane) upto += r, tiles_upto += t;
      }
      const int first = rows + upto - own;
      for (int t = 0; t < own_tiles; ++t)
        a.tiles[tiles + tiles_upto - own_tiles + t] = {first + t * a.tile, first + own, e};
      if (e < a.E) counts[e] = first;
      rows += __shfl_sync(kAllLanes, upto, kWarp - 1);
      tiles += __shfl_sync(kAllLanes, tiles_upto, kWarp - 1);
    }
    if (thread == 0) *a.tile_count = tiles;
  }
  __syncthreads();
  for (int i = thread; i < a.rows; i += kSortThreads) {
    const int e = expert_of(i);
    const int place = e >= 0 ? atomicAdd(&counts[e], 1) : -1;
    a.place[i] = place;
    if (place >= 0) a.out_rows[place] = i;
  }
}

// Rows of x in their order; zeros in the output for a row without an expert.
__global__ void __launch_bounds__(kGatherRows* kWarp)
    gather_sorted(const bf16_t* x, int64_t x_stride, int64_t x_choice, const int32_t* place, int rows, int top_k, int K,
                  int N, bf16_t* sorted, bf16_t* out) {
  const int64_t i = int64_t{blockIdx.x} * kGatherRows + threadIdx.x / kWarp;
  const int lane = threadIdx.x % kWarp;
  if (i >= rows) return;
  const int32_t to = place[i];
  if (to < 0) {
    for (int n = lane; n < N; n += kWarp) out[i * N + n] = from_float<bf16_t>(0);
    return;
  }
  const uint4* from = reinterpret_cast<const uint4*>(x + i / top_k * x_stride + i % top_k * x_choice);
  uint4* row = reinterpret_cast<uint4*>(sorted + int64_t{to} * K);
#pragma unroll 4
  for (int v = lane; v < K / 8; v += kWarp) row[v] = from[v];
}

}  // namespace

bool has_grouped_gemm(const Tensor& x, const GroupedWeight& weight) {
  return x.size(0) >= kGemmExpertRows && weight.E <= kMostExperts && has_gemm(x, weight.expert(0)) &&
         weight.packed.stride(0) % 16 == 0;
}

int grouped_gemm(ExecContext& ctx, const Tensor& x, const GroupedWeight& weight, const Tensor& experts, Tensor& out) {
  const int64_t rows = experts.numel(), K = weight.K, E = weight.E;
  const int tile = rows > 96 * E ? 128 : 64;
  const Scratch scratch(ctx.workspace);
  const Tensor sorted = ctx.workspace.alloc(DType::kBF16, {rows, K});
  const Tensor place = ctx.workspace.alloc(DType::kI32, {2, rows}), count = ctx.workspace.alloc(DType::kI32, {1}),
               tiles = ctx.workspace.alloc(DType::kI32, {rows / 64 + E, 3});
  if (ctx.dry_run) return 0;
  const cudaStream_t stream = stream_of(ctx);
  const auto numbers = [](const Tensor& t) { return static_cast<int32_t*>(const_cast<void*>(t.data())); };
  const auto list = reinterpret_cast<GemmRows*>(numbers(tiles));
  const Sort sort{rows_of<int32_t>(experts),
                  static_cast<int>(rows),
                  static_cast<int>(experts.size(1)),
                  static_cast<int>(E),
                  tile,
                  numbers(place),
                  numbers(place) + rows,
                  numbers(count),
                  list};
  sort_rows<<<1, kSortThreads, static_cast<size_t>(E) * sizeof(int), stream>>>(sort);
  gather_sorted<<<blocks_for(rows, kGatherRows), kGatherRows * kWarp, 0, stream>>>(
      static_cast<const bf16_t*>(x.data()), x.stride(0), x.rank() == 3 ? K : 0, sort.place, sort.rows, sort.top_k,
      static_cast<int>(K), static_cast<int>(weight.N), static_cast<bf16_t*>(const_cast<void*>(sorted.data())),
      static_cast<bf16_t*>(out.data()));
  GemmLaunch gemm(sorted, {tile, rows / tile + E, sort.tile_count, list, sort.out_rows});
  gemm.experts(weight, out);
  gemm.run(stream);
  return 3;
}

}  // namespace calandra::cuda

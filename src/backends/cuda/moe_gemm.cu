// Products with experts of many rows (ops/moe.h): rows are sorted by expert and copied, then device/sm90_gemm.cuh.
//   sort_rows     one block: counts the rows of each expert, gives each expert its range, lists the tiles. The order of
//                 an expert's rows is left to chance and changes no bit: a row's sums know nothing of other rows.
//                 Bound by latency of atomics in shared memory, a word for each expert: 2 for each row.
//   gather_sorted a warp a row; no shared memory; bound by memory
#include "backends/cuda/moe_gemm.h"

#include "backends/cuda/device/reduce.cuh"
#include "backends/cuda/device/types.cuh"
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
#pragma unroll 8
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
#pragma unroll 8
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

int32_t* numbers(const Tensor& t) { return static_cast<int32_t*>(const_cast<void*>(t.data())); }

}  // namespace

bool has_grouped_gemm(const Tensor& x, const GroupedWeight& weight) {
  return x.size(0) >= kGemmExpertRows && weight.E <= kMostExperts && has_gemm(x, weight.expert(0)) &&
         weight.packed.stride(0) % 16 == 0;
}

ExpertOrder::ExpertOrder(ExecContext& ctx, const Tensor& experts, int64_t E)
    : experts_(experts),
      choices_(experts.numel()),
      E_(E),
      tile_(choices_ > 96 * E ? 128 : 64),
      place_(ctx.workspace.alloc(DType::kI32, {2, choices_})),
      count_(ctx.workspace.alloc(DType::kI32, {1})),
      tiles_(ctx.workspace.alloc(DType::kI32, {choices_ / 64 + E, 3})) {}

void ExpertOrder::sort(cudaStream_t stream) const {
  const Sort sort{rows_of<int32_t>(experts_),
                  static_cast<int>(choices_),
                  static_cast<int>(experts_.size(1)),
                  static_cast<int>(E_),
                  tile_,
                  numbers(place_),
                  numbers(place_) + choices_,
                  numbers(count_),
                  reinterpret_cast<GemmRows*>(numbers(tiles_))};
  sort_rows<<<1, kSortThreads, static_cast<size_t>(E_) * sizeof(int), stream>>>(sort);
}

void ExpertOrder::gather(cudaStream_t stream, const Tensor& x, const Tensor& sorted, const Tensor& out) const {
  const int64_t K = sorted.size(1);
  gather_sorted<<<blocks_for(choices_, kGatherRows), kGatherRows * kWarp, 0, stream>>>(
      static_cast<const bf16_t*>(x.data()), x.stride(0), x.rank() == 3 ? K : 0, numbers(place_),
      static_cast<int>(choices_), static_cast<int>(experts_.size(1)), static_cast<int>(K),
      out ? static_cast<int>(out.size(2)) : 0, static_cast<bf16_t*>(const_cast<void*>(sorted.data())),
      out ? static_cast<bf16_t*>(const_cast<void*>(out.data())) : nullptr);
}

SortedRows ExpertOrder::scattered() const {
  return {tile_, choices_ / tile_ + E_, numbers(count_), reinterpret_cast<GemmRows*>(numbers(tiles_)),
          numbers(place_) + choices_};
}

SortedRows ExpertOrder::sorted() const {
  SortedRows rows = scattered();
  rows.out_rows = nullptr;
  return rows;
}

int grouped_gemm(ExecContext& ctx, const Tensor& x, const GroupedWeight& weight, const Tensor& experts, Tensor& out) {
  const Scratch scratch(ctx.workspace);
  const Tensor sorted = ctx.workspace.alloc(DType::kBF16, {experts.numel(), weight.K});
  const ExpertOrder order(ctx, experts, weight.E);
  if (ctx.dry_run) return 0;
  order.sort(stream_of(ctx));
  order.gather(stream_of(ctx), x, sorted, out);
  GemmLaunch gemm(sorted, order.scattered());
  gemm.experts(weight, out);
  gemm.run(stream_of(ctx));
  return 3;
}

}  // namespace calandra::cuda

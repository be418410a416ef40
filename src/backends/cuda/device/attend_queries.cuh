// Softmax attention of many bf16 queries over keys on tensor cores, for paged and segment attention.
//
// A block of 4 warps has 64 queries of one key head: rows of one group (a sequence, a segment) with the query heads of
// the key head beside one another; a warp has 16 of them. Keys come in tiles of 64 at absolute positions through
// shared memory, 3 x 64 (D + 8) bf16: queries, keys, values (101 kB for D 256, two blocks a multiprocessor); the values
// arrive while the scores are computed and the next keys while the values are summed. Scores, maximum, sum and values
// of a query stay in registers (online softmax in f32); weights are rounded to bf16 for the second product, their sum
// is not. Keys that a query does not see take part with weight 0, which changes no bit: a query's result depends on its
// keys alone, neither on the other rows nor on where the chunk was cut. Bound by the tensor cores.
#pragma once

#include <cmath>

#include "backends/cuda/device/attend_rows.cuh"
#include "backends/cuda/device/mma.cuh"
#include "backends/cuda/device/tiles.cuh"

namespace calandra::cuda {

constexpr int kTileQueries = 64, kTileKeys = 64;
constexpr int kTileWarps = kTileQueries / 16, kTileThreads = kTileWarps * kWarp;

template <int D>
constexpr size_t attend_queries_bytes() {
  return sizeof(bf16_t) * (kTileQueries + 2 * kTileKeys) * (D + kTilePadding) + 2 * sizeof(int64_t) * kTileKeys;
}

// Groups of rows [start[i], start[i + 1]) with `heads` queries each, cut into tiles of `size` queries. Tiles are
// numbered so that a block finds its own without a count of those before it; some numbers have none.
struct QueryTiles {
  const int32_t* start;
  int groups, heads, size = kTileQueries;
  __device__ __forceinline__ int64_t first_tile(int group) const {
    return int64_t{start[group]} * heads / size + group;
  }
  // The group that tile `index` would be of.
  __device__ __forceinline__ int group_of(int64_t index) const {
    int low = 0, high = groups;
    while (high - low > 1) {
      const int middle = (low + high) / 2;
      (first_tile(middle) <= index ? low : high) = middle;
    }
    return low;
  }
  unsigned numbers(int64_t rows) const { return blocks_for(rows * heads, size) + static_cast<unsigned>(groups); }
};

struct TileShape {
  int64_t H, Dh;
  float scale;
};

// Source: `const bf16_t* k()`, `v()` and `offset(group, head, i)` of key i in both; `runs(group)`: whether the rows of
// the group are this kernel's; `keys(group)`: the keys of the group; `end(group, row)`: the first key that the row does
// not see.
template <int D, class Source>
__global__ void __launch_bounds__(kTileThreads, 2)
    attend_queries_kernel(const __grid_constant__ Source source, QueryTiles tiles, Rows<const bf16_t> q, TileShape s,
                          bf16_t* out) {
  extern __shared__ __align__(16) std::byte attend_shared[];
  constexpr int kStride = D + kTilePadding, kChunks = D / 8;
  bf16_t* queries = reinterpret_cast<bf16_t*>(attend_shared);
  bf16_t *keys = queries + kTileQueries * kStride, *values = keys + kTileKeys * kStride;
  int64_t* offsets = reinterpret_cast<int64_t*>(values + kTileKeys * kStride);  // [2][kTileKeys]; -1: no such key

  const int64_t index = gridDim.x - 1 - blockIdx.x;  // long rows first
  const int group = tiles.group_of(index), head = blockIdx.y, G = tiles.heads;
  const int64_t row0 = tiles.start[group], count = (tiles.start[group + 1] - row0) * G,
                first = (index - tiles.first_tile(group)) * kTileQueries;
  if (first >= count || !source.runs(group)) return;
  const int warp = threadIdx.x / kWarp, lane = threadIdx.x % kWarp;
  const KeySpan span = source.keys(group);
  const int chunks = static_cast<int>(s.Dh / 8);  // of 8 numbers; what is behind them stays zero

  const auto row_of = [&](int64_t query) { return row0 + query / G; };
  const auto place_of = [&](int64_t query) { return (row_of(query) * s.H + int64_t{head} * G + query % G) * s.Dh; };
  const int64_t last = min(count, first + kTileQueries) - 1;
  const int64_t end = min(span.end, source.end(group, row_of(last))), sure = source.end(group, row_of(first));
  const int begin_tile = static_cast<int>(span.begin / kTileKeys),
            end_tile = span.begin < end ? static_cast<int>((end + kTileKeys - 1) / kTileKeys) : begin_tile;

  for (int i = threadIdx.x; i < kTileQueries * kChunks; i += kTileThreads) {
    const int r = i / kChunks, c = i % kChunks;
    const int64_t query = first + r;
    const bool seen = query < count && c < chunks;
    const bf16_t* from = seen ? q[row_of(query)] + (int64_t{head} * G + query % G) * s.Dh + c * 8 : q.data;
    copy_16_async(queries + r * kStride + c * 8, from, seen);
  }
  const auto find_keys = [&](int tile) {
    if (threadIdx.x >= kTileKeys) return;
    const int64_t i = int64_t{tile} * kTileKeys + threadIdx.x;
    offsets[tile % 2 * kTileKeys + threadIdx.x] = i >= span.begin && i < end ? source.offset(group, head, i) : -1;
  };
  const auto load_tile = [&](bf16_t* to, const bf16_t* from, int tile) {
    for (int i = threadIdx.x; i < kTileKeys * kChunks; i += kTileThreads) {
      const int r = i / kChunks, c = i % kChunks;
      const int64_t offset = offsets[tile % 2 * kTileKeys + r];
      const bool seen = offset >= 0 && c < chunks;
      copy_16_async(to + r * kStride + c * 8, seen ? from + offset + c * 8 : from, seen);
    }
    end_copy_group();
  };

  // Of rows g and g + 8 of the warp's 16.
  const int64_t mine[2] = {first + warp * 16 + lane / 4, first + warp * 16 + lane / 4 + 8};
  int64_t ends[2];
#pragma unroll
  for (int r = 0; r < 2; ++r) ends[r] = mine[r] < count ? min(span.end, source.end(group, row_of(mine[r]))) : 0;
  float m[2] = {-INFINITY, -INFINITY}, l[2] = {}, o[D / 8][4] = {};
  const float scale = s.scale * 1.44269504f;  // of exponents of 2

  if (begin_tile < end_tile) find_keys(begin_tile);
  __syncthreads();
  if (begin_tile < end_tile) load_tile(keys, source.k(), begin_tile);
  for (int tile = begin_tile; tile < end_tile; ++tile) {
    wait_copies<0>();
    __syncthreads();  // the keys are there, and nobody reads the values before them
    load_tile(values, source.v(), tile);
    if (tile + 1 < end_tile) find_keys(tile + 1);
    float score[kTileKeys / 8][4] = {};
#pragma unroll 4
    for (int d = 0; d < D; d += 16) {
      uint32_t a[4];
      load_a(a, queries, kStride, warp * 16, d, lane);
#pragma unroll
      for (int n = 0; n < kTileKeys / 16; ++n) {
        uint32_t b[4];
        load_b(b, keys, kStride, n * 16, d, lane);
        mma_bf16(score[2 * n], a[0], a[1], a[2], a[3], b[0], b[1]);
        mma_bf16(score[2 * n + 1], a[0], a[1], a[2], a[3], b[2], b[3]);
      }
    }
    const int64_t key0 = int64_t{tile} * kTileKeys;
    if (key0 < span.begin || key0 + kTileKeys > sure) {
#pragma unroll
      for (int n = 0; n < kTileKeys / 8; ++n)
#pragma unroll
        for (int i = 0; i < 4; ++i) {
          const int64_t key = key0 + n * 8 + lane % 4 * 2 + i % 2;
          if (key < span.begin || key >= ends[i / 2]) score[n][i] = -INFINITY;
        }
    }
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      float top = m[r];
#pragma unroll
      for (int n = 0; n < kTileKeys / 8; ++n) top = fmaxf(top, fmaxf(score[n][2 * r], score[n][2 * r + 1]));
      top = fmaxf(top, __shfl_xor_sync(kAllLanes, top, 1));
      top = fmaxf(top, __shfl_xor_sync(kAllLanes, top, 2));
      const float base = top == -INFINITY ? 0 : __fmul_rn(top, scale);         // nothing seen so far: all weights are 0
      const float shrink = m[r] == top ? 1 : exp2f(fmaf(m[r], scale, -base));  // 1 to the bit
      m[r] = top;
      float sum = 0;
#pragma unroll
      for (int n = 0; n < kTileKeys / 8; ++n)
#pragma unroll
        for (int i = 2 * r; i < 2 * r + 2; ++i) sum += score[n][i] = exp2f(fmaf(score[n][i], scale, -base));
      l[r] = fmaf(l[r], shrink, sum);
#pragma unroll
      for (int n = 0; n < D / 8; ++n) o[n][2 * r] *= shrink, o[n][2 * r + 1] *= shrink;
    }
    wait_copies<0>();
    __syncthreads();  // the values are there, and nobody reads the keys any more
    if (tile + 1 < end_tile) load_tile(keys, source.k(), tile + 1);
#pragma unroll
    for (int k = 0; k < kTileKeys / 16; ++k) {
      const uint32_t a[4] = {bf16_pair(score[2 * k][0], score[2 * k][1]), bf16_pair(score[2 * k][2], score[2 * k][3]),
                             bf16_pair(score[2 * k + 1][0], score[2 * k + 1][1]),
                             bf16_pair(score[2 * k + 1][2], score[2 * k + 1][3])};
#pragma unroll
      for (int n = 0; n < D / 16; ++n) {
        uint32_t b[4];
        load_b_as_stored(b, values, kStride, k * 16, n * 16, lane);
        mma_bf16(o[2 * n], a[0], a[1], a[2], a[3], b[0], b[1]);
        mma_bf16(o[2 * n + 1], a[0], a[1], a[2], a[3], b[2], b[3]);
      }
    }
  }
#pragma unroll
  for (int r = 0; r < 2; ++r) {
    l[r] += __shfl_xor_sync(kAllLanes, l[r], 1);
    l[r] += __shfl_xor_sync(kAllLanes, l[r], 2);
    if (mine[r] >= count) continue;
    const float inverse = l[r] == 0 ? 0 : 1 / l[r];
    bf16_t* to = out + place_of(mine[r]);
#pragma unroll
    for (int n = 0; n < D / 8; ++n) {
      const int d = n * 8 + lane % 4 * 2;
      if (d < s.Dh) *reinterpret_cast<uint32_t*>(to + d) = bf16_pair(o[n][2 * r] * inverse, o[n][2 * r + 1] * inverse);
    }
  }
  wait_copies<0>();
}

template <int D, class Source>
void attend_queries(cudaStream_t stream, const Source& source, const QueryTiles& tiles, const Rows<const bf16_t>& q,
                    int64_t rows, int64_t key_heads, const TileShape& shape, bf16_t* out) {
  constexpr size_t kBytes = attend_queries_bytes<D>();
  const auto kernel = attend_queries_kernel<D, Source>;
  cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, static_cast<int>(kBytes));
  kernel<<<dim3(tiles.numbers(rows), static_cast<unsigned>(key_heads)), kTileThreads, kBytes, stream>>>(source, tiles,
                                                                                                        q, shape, out);
}

}  // namespace calandra::cuda

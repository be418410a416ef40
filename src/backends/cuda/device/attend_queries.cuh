// Softmax attention of many bf16 queries over keys on tensor cores, for paged and segment attention.
//
// A block of 4 warps has 64 queries of one key head: rows of one group (a sequence, a segment) with the query heads of
// the key head beside one another; a warp has 16 of them. Keys come in tiles of 64 at absolute positions through
// shared memory, 3 x 64 (D + 8) bf16: queries, keys, values (101 kB for D 256, two blocks a multiprocessor); the values
// arrive while the scores are computed and the next keys while the values are summed. Scores, maximum, sum and values
// of a query stay in registers (online softmax in f32); weights are rounded to bf16 for the second product, their sum
// is not. Keys that a query does not see take part with weight 0, which changes no bit: a query's result depends on its
// keys alone, neither on the other rows nor on where the chunk was cut. Bound by the tensor cores,
// with a fifth of the peak that only wgmma reaches (heads of 256, bench/results/cuda_prefill.md).
#pragma once

#include "backends/cuda/device/mma.cuh"
#include "backends/cuda/device/query_tiles.cuh"

namespace calandra::cuda {

constexpr int kTileWarps = kTileQueries / 16, kTileThreads = kTileWarps * kWarp;

template <int D>
constexpr size_t attend_queries_bytes() {
  return sizeof(bf16_t) * (kTileQueries + 2 * kTileKeys) * (D + kTilePadding) + 2 * sizeof(int64_t) * kTileKeys;
}

// Source: `const bf16_t* k()`, `v()` and `offset(group, head, i)` of key i in both; `runs(group)`: whether the rows of
// the group are this kernel's; `keys(group)`: the keys of the group; `end(group, row)`: the first key that the row does
// not see.
template <int D, class Source>
__global__ void __launch_bounds__(kTileThreads, 2)
    attend_queries(const __grid_constant__ Source source, QueryTiles tiles, Rows<const bf16_t> q, TileShape s,
                   bf16_t* out) {
  extern __shared__ __align__(16) std::byte attend_shared[];
  constexpr int kStride = D + kTilePadding, kChunks = D / 8;
  bf16_t* queries = reinterpret_cast<bf16_t*>(attend_shared);
  bf16_t *keys = queries + kTileQueries * kStride, *values = keys + kTileKeys * kStride;
  int64_t* offsets = reinterpret_cast<int64_t*>(values + kTileKeys * kStride);  // [2][kTileKeys]; -1: no such key

  const int64_t index = gridDim.x - 1 - blockIdx.x;  // long rows first
  const int group = tiles.group_of(index), head = blockIdx.y;
  const QueryTile own(tiles.start, group, head, tiles.heads, (index - tiles.first_tile(group)) * kTileQueries);
  if (own.first >= own.count || !source.runs(group)) return;
  const int warp = threadIdx.x / kWarp, lane = threadIdx.x % kWarp;
  const int chunks = static_cast<int>(s.Dh / 8);  // of 8 numbers; what is behind them stays zero
  const SeenKeys<kTileKeys> seen(source, own, kTileQueries, source.keys(group));

  load_queries<kTileQueries, kChunks, kTileThreads>(own, q, s.Dh,
                                                    [&](int r, int c) { return queries + r * kStride + c * 8; });
  const auto find_keys = [&](int tile) {
    if (threadIdx.x >= kTileKeys) return;
    const int64_t i = int64_t{tile} * kTileKeys + threadIdx.x;
    offsets[tile % 2 * kTileKeys + threadIdx.x] = i >= seen.begin && i < seen.end ? source.offset(group, head, i) : -1;
  };
  const auto load_tile = [&](bf16_t* to, const bf16_t* from, int tile) {
    for (int i = threadIdx.x; i < kTileKeys * kChunks; i += kTileThreads) {
      const int r = i / kChunks, c = i % kChunks;
      const int64_t offset = offsets[tile % 2 * kTileKeys + r];
      const bool exists = offset >= 0 && c < chunks;
      copy_16_async(to + r * kStride + c * 8, exists ? from + offset + c * 8 : from, exists);
    }
    end_copy_group();
  };

  // Of rows g and g + 8 of the warp's 16.
  const int64_t mine[2] = {own.first + warp * 16 + lane / 4, own.first + warp * 16 + lane / 4 + 8};
  const int64_t ends[2] = {own.end(source, mine[0], seen.end), own.end(source, mine[1], seen.end)};
  TwoQueries<D / 8> sums;
  const float scale = s.scale * kLog2e;

  if (seen.begin_tile < seen.end_tile) find_keys(seen.begin_tile);
  __syncthreads();
  if (seen.begin_tile < seen.end_tile) load_tile(keys, source.k(), seen.begin_tile);
  for (int tile = seen.begin_tile; tile < seen.end_tile; ++tile) {
    wait_copies<0>();
    __syncthreads();  // the keys are there, and nobody reads the values before them
    load_tile(values, source.v(), tile);
    if (tile + 1 < seen.end_tile) find_keys(tile + 1);
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
    if (!seen.by_all(key0)) hide_keys(score, key0, seen.begin, ends);
    sums.weigh(score, scale);
    wait_copies<0>();
    __syncthreads();  // the values are there, and nobody reads the keys any more
    if (tile + 1 < seen.end_tile) load_tile(keys, source.k(), tile + 1);
#pragma unroll
    for (int k = 0; k < kTileKeys / 16; ++k) {
      const uint32_t a[4] = {bf16_pair(score[2 * k][0], score[2 * k][1]), bf16_pair(score[2 * k][2], score[2 * k][3]),
                             bf16_pair(score[2 * k + 1][0], score[2 * k + 1][1]),
                             bf16_pair(score[2 * k + 1][2], score[2 * k + 1][3])};
#pragma unroll
      for (int n = 0; n < D / 16; ++n) {
        uint32_t b[4];
        load_b_as_stored(b, values, kStride, k * 16, n * 16, lane);
        mma_bf16(sums.o[2 * n], a[0], a[1], a[2], a[3], b[0], b[1]);
        mma_bf16(sums.o[2 * n + 1], a[0], a[1], a[2], a[3], b[2], b[3]);
      }
    }
  }
  sums.write(own, mine, s, out);
  wait_copies<0>();
}

template <int D, class Source>
void run_attend_queries(cudaStream_t stream, const Source& source, const QueryTiles& tiles, const Rows<const bf16_t>& q,
                        int64_t rows, int64_t key_heads, const TileShape& shape, bf16_t* out) {
  constexpr size_t kBytes = attend_queries_bytes<D>();
  constexpr auto kKernel = attend_queries<D, Source>;
  allow_shared<kKernel>(kBytes);
  kKernel<<<dim3(tiles.numbers(rows), static_cast<unsigned>(key_heads)), kTileThreads, kBytes, stream>>>(source, tiles,
                                                                                                         q, shape, out);
}

}  // namespace calandra::cuda

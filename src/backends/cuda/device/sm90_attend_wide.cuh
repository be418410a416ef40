// Softmax attention of many bf16 queries over keys of up to 256 numbers, on Hopper's tensor cores (wgmma.cuh).
//
// A block has 128 queries of one key head, as attend_queries.cuh has 64, in two warpgroups of 64. Keys come in tiles of
// 64 at absolute positions: two tiles of keys and two of values are in shared memory beside the queries (192 kB), the
// next while one is worked on. Scores, maximum, sum and values of a query stay in registers; what is said there of the
// rounding of weights and of the bits of a query holds here too. While one warpgroup takes the exponentials, the other
// one has the tensor cores, by which it is bound, and by the reads of shared memory: a third of the tensor cores' peak
// in prompts of 8,192 tokens (bench/results/cuda_prefill.md).
#pragma once

#include "backends/cuda/device/query_tiles.cuh"
#include "backends/cuda/device/wgmma.cuh"

namespace calandra::cuda {

constexpr int kWideQueries = 128, kWideDim = 256, kWideThreads = kWideQueries / 64 * kWarpgroup;

namespace wide_detail {

constexpr int kPieces = kWideDim / 8;                     // of 16 bytes
constexpr int kQueryBytes = kWideQueries * kWideDim * 2;  // four tiles of 64 numbers, as copies of wgmma.cuh write them
constexpr int kKeyBytes = kTileKeys * kWideDim * 2;       // the same
constexpr int kKeysPart = kTileKeys * kTileDepth * 2;     // one of them
constexpr int kQueriesPart = kWideQueries * kTileDepth * 2;  // one of them

// Where piece c of row r is in tiles of `rows` rows.
__device__ __forceinline__ int place_of_piece(int rows, int r, int c) {
  return (c / 8 * rows + r) * 128 + (c % 8 ^ r % 8) * 16;
}

}  // namespace wide_detail

constexpr size_t kAttendWideBytes =
    1024 + wide_detail::kQueryBytes + 4 * wide_detail::kKeyBytes + 2 * sizeof(int64_t) * kTileKeys;

// Source: as attend_queries has it. Heads of s.Dh <= 256 numbers, a multiple of 8.
template <class Source>
__global__ void __launch_bounds__(kWideThreads, 1) attend_wide(const __grid_constant__ Source source, QueryTiles tiles,
                                                               Rows<const bf16_t> q, TileShape s, bf16_t* out) {
  using namespace wide_detail;
  extern __shared__ std::byte memory[];
  std::byte* queries = memory + (1024 - shared_address(memory) % 1024) % 1024;
  std::byte *keys = queries + kQueryBytes, *values = keys + 2 * kKeyBytes;  // two of each
  int64_t* offsets = reinterpret_cast<int64_t*>(values + 2 * kKeyBytes);    // [2][kTileKeys]; -1: no such key

  const int64_t index = gridDim.x - 1 - blockIdx.x;  // long rows first
  const int group = tiles.group_of(index), head = blockIdx.y;
  const QueryTile own(tiles.start, group, head, tiles.heads, (index - tiles.first_tile(group)) * kWideQueries);
  if (own.first >= own.count || !source.runs(group)) return;
  const int warpgroup = threadIdx.x / kWarpgroup, warp = threadIdx.x / kWarp, lane = threadIdx.x % kWarp;
  const int pieces = static_cast<int>(s.Dh / 8);  // what is behind them stays zero
  const SeenKeys<kTileKeys> seen(source, own, kWideQueries, source.keys(group));

  load_queries<kWideQueries, kPieces, kWideThreads>(
      own, q, s.Dh, [&](int r, int c) { return queries + place_of_piece(kWideQueries, r, c); });
  const auto find_keys = [&](int tile) {
    if (threadIdx.x >= kTileKeys || tile >= seen.end_tile) return;
    const int64_t i = int64_t{tile} * kTileKeys + threadIdx.x;
    offsets[tile % 2 * kTileKeys + threadIdx.x] = i >= seen.begin && i < seen.end ? source.offset(group, head, i) : -1;
  };
  const auto load_tile = [&](int tile) {
    if (tile >= seen.end_tile) return;
    const int64_t* offset_of = offsets + tile % 2 * kTileKeys;
    std::byte *to_keys = keys + tile % 2 * kKeyBytes, *to_values = values + tile % 2 * kKeyBytes;
#pragma unroll
    for (int i = threadIdx.x; i < kTileKeys * kPieces; i += kWideThreads) {
      const int r = i / kPieces, c = i % kPieces;
      const int64_t offset = offset_of[r];
      const bool exists = offset >= 0 && c < pieces;
      const int64_t from = exists ? offset + c * 8 : 0;
      const int place = place_of_piece(kTileKeys, r, c);
      copy_16_async(to_keys + place, source.k() + from, exists);
      copy_16_async(to_values + place, source.v() + from, exists);
    }
  };

  // Of rows g and g + 8 of the warp's 16.
  const int64_t mine[2] = {own.first + warp * 16 + lane / 4, own.first + warp * 16 + lane / 4 + 8};
  const int64_t ends[2] = {own.end(source, mine[0], seen.end), own.end(source, mine[1], seen.end)};
  TwoQueries<kWideDim / 8> sums;
  const float scale = s.scale * kLog2e;

  find_keys(seen.begin_tile);
  __syncthreads();
  load_tile(seen.begin_tile);
  find_keys(seen.begin_tile + 1);
  for (int tile = seen.begin_tile; tile < seen.end_tile; ++tile) {
    wait_copies_of_all();
    asm volatile("fence.proxy.async.shared::cta;" ::: "memory");  // before wgmma reads them
    __syncthreads();  // the tile is there, and nobody reads the one before it any more
    load_tile(tile + 1);
    find_keys(tile + 2);
    const std::byte *own_keys = keys + tile % 2 * kKeyBytes, *own_values = values + tile % 2 * kKeyBytes;
    float score[kTileKeys / 8][4];
    wgmma_begin();
#pragma unroll
    for (int part = 0; part < kWideDim / kTileDepth; ++part) {
      const uint64_t a = describe_tile(queries + part * kQueriesPart + warpgroup * 64 * 128),
                     b = describe_tile(own_keys + part * kKeysPart);
#pragma unroll
      for (int j = 0; j < kTileDepth / 16; ++j) wgmma(flat(score), a + 2 * j, b + 2 * j, part + j);
    }
    wgmma_commit();
    wgmma_wait<0>();
    hold(flat(score));
    const int64_t key0 = int64_t{tile} * kTileKeys;
    if (!seen.by_all(key0)) hide_keys(score, key0, seen.begin, ends);
    sums.weigh(score, scale);
    uint32_t weights[kTileKeys / 16][4];
#pragma unroll
    for (int i = 0; i < kTileKeys / 4; ++i)
      weights[i / 4][i % 4] = bf16_pair(score[i / 2][i % 2 * 2], score[i / 2][i % 2 * 2 + 1]);
    hold(flat(sums.o));
    wgmma_begin();
    const uint64_t v = describe_tile_as_stored(own_values, kKeysPart);
#pragma unroll
    for (int k = 0; k < kTileKeys / 16; ++k) wgmma_as_stored(flat(sums.o), weights[k], v + 128 * k);
    wgmma_commit();
    wgmma_wait<0>();
    hold(flat(sums.o));
  }
  sums.write(own, mine, s, out);
  wait_copies_of_all();
}

template <class Source>
void run_attend_wide(cudaStream_t stream, const Source& source, const QueryTiles& tiles, const Rows<const bf16_t>& q,
                     int64_t rows, int64_t key_heads, const TileShape& shape, bf16_t* out) {
  constexpr auto kKernel = attend_wide<Source>;
  allow_shared<kKernel>(kAttendWideBytes);
  kKernel<<<dim3(tiles.numbers(rows), static_cast<unsigned>(key_heads)), kWideThreads, kAttendWideBytes, stream>>>(
      source, tiles, q, shape, out);
}

}  // namespace calandra::cuda

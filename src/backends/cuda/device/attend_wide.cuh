// Softmax attention of many bf16 queries over keys of up to 256 numbers, on Hopper's tensor cores (wgmma.cuh).
//
// A block has 128 queries of one key head, as attend_queries.cuh has 64, in two warpgroups of 64. Keys come in tiles of
// 64 at absolute positions: two tiles of keys and two of values are in shared memory beside the queries (192 kB), the
// next while one is worked on. Scores, maximum, sum and values of a query stay in registers; what is said there of the
// rounding of weights and of the bits of a query holds here too. While one warpgroup takes the exponentials, the other
// one has the tensor cores, by which it is bound, and by the reads of shared memory.
#pragma once

#include "backends/cuda/device/attend_queries.cuh"
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

// Source: as attend_queries_kernel has it. Heads of s.Dh <= 256 numbers, a multiple of 8.
template <class Source>
__global__ void __launch_bounds__(kWideThreads, 1)
    attend_wide_kernel(const __grid_constant__ Source source, QueryTiles tiles, Rows<const bf16_t> q, TileShape s,
                       bf16_t* out) {
  using namespace wide_detail;
  extern __shared__ std::byte memory[];
  std::byte* queries = memory + (1024 - shared_address(memory) % 1024) % 1024;
  std::byte *keys = queries + kQueryBytes, *values = keys + 2 * kKeyBytes;  // two of each
  int64_t* offsets = reinterpret_cast<int64_t*>(values + 2 * kKeyBytes);    // [2][kTileKeys]; -1: no such key

  const int64_t index = gridDim.x - 1 - blockIdx.x;  // long rows first
  const int group = tiles.group_of(index), head = blockIdx.y, G = tiles.heads;
  const int64_t row0 = tiles.start[group], count = (tiles.start[group + 1] - row0) * G,
                first = (index - tiles.first_tile(group)) * kWideQueries;
  if (first >= count || !source.runs(group)) return;
  const int warpgroup = threadIdx.x / kWarpgroup, warp = threadIdx.x / kWarp, lane = threadIdx.x % kWarp;
  const KeySpan span = source.keys(group);
  const int pieces = static_cast<int>(s.Dh / 8);  // what is behind them stays zero

  const auto row_of = [&](int64_t query) { return row0 + query / G; };
  const auto place_of = [&](int64_t query) { return (row_of(query) * s.H + int64_t{head} * G + query % G) * s.Dh; };
  const int64_t last = min(count, first + kWideQueries) - 1;
  const int64_t end = min(span.end, source.end(group, row_of(last))), sure = source.end(group, row_of(first));
  const int begin_tile = static_cast<int>(span.begin / kTileKeys),
            end_tile = span.begin < end ? static_cast<int>((end + kTileKeys - 1) / kTileKeys) : begin_tile;

  for (int i = threadIdx.x; i < kWideQueries * kPieces; i += kWideThreads) {
    const int r = i / kPieces, c = i % kPieces;
    const int64_t query = first + r;
    const bool seen = query < count && c < pieces;
    const bf16_t* from = seen ? q[row_of(query)] + (int64_t{head} * G + query % G) * s.Dh + c * 8 : q.data;
    copy_16_async(queries + place_of_piece(kWideQueries, r, c), from, seen);
  }
  const auto find_keys = [&](int tile) {
    if (threadIdx.x >= kTileKeys || tile >= end_tile) return;
    const int64_t i = int64_t{tile} * kTileKeys + threadIdx.x;
    offsets[tile % 2 * kTileKeys + threadIdx.x] = i >= span.begin && i < end ? source.offset(group, head, i) : -1;
  };
  const auto load_tile = [&](int tile) {
    if (tile >= end_tile) return;
    const int64_t* offset_of = offsets + tile % 2 * kTileKeys;
    std::byte *to_keys = keys + tile % 2 * kKeyBytes, *to_values = values + tile % 2 * kKeyBytes;
#pragma unroll
    for (int i = threadIdx.x; i < kTileKeys * kPieces; i += kWideThreads) {
      const int r = i / kPieces, c = i % kPieces;
      const int64_t offset = offset_of[r];
      const bool seen = offset >= 0 && c < pieces;
      const int64_t from = seen ? offset + c * 8 : 0;
      const int place = place_of_piece(kTileKeys, r, c);
      copy_16_async(to_keys + place, source.k() + from, seen);
      copy_16_async(to_values + place, source.v() + from, seen);
    }
  };

  // Of rows g and g + 8 of the warp's 16.
  const int64_t mine[2] = {first + warp * 16 + lane / 4, first + warp * 16 + lane / 4 + 8};
  int64_t ends[2];
#pragma unroll
  for (int r = 0; r < 2; ++r) ends[r] = mine[r] < count ? min(span.end, source.end(group, row_of(mine[r]))) : 0;
  float m[2] = {-INFINITY, -INFINITY}, l[2] = {}, o[kWideDim / 2] = {};
  const float scale = s.scale * 1.44269504f;  // of exponents of 2

  find_keys(begin_tile);
  __syncthreads();
  load_tile(begin_tile);
  find_keys(begin_tile + 1);
  for (int tile = begin_tile; tile < end_tile; ++tile) {
    wait_copies_of_all();
    asm volatile("fence.proxy.async.shared::cta;" ::: "memory");  // before wgmma reads them
    __syncthreads();  // the tile is there, and nobody reads the one before it any more
    load_tile(tile + 1);
    find_keys(tile + 2);
    const std::byte *own_keys = keys + tile % 2 * kKeyBytes, *own_values = values + tile % 2 * kKeyBytes;
    float score[kTileKeys / 2];
    wgmma_begin();
#pragma unroll
    for (int part = 0; part < kWideDim / kTileDepth; ++part) {
      const uint64_t a = describe_tile(queries + part * kQueriesPart + warpgroup * 64 * 128),
                     b = describe_tile(own_keys + part * kKeysPart);
#pragma unroll
      for (int j = 0; j < kTileDepth / 16; ++j) wgmma(score, a + 2 * j, b + 2 * j, part + j);
    }
    wgmma_commit();
    wgmma_wait<0>();
    hold(score);
    const int64_t key0 = int64_t{tile} * kTileKeys;
    if (key0 < span.begin || key0 + kTileKeys > sure) {
#pragma unroll
      for (int i = 0; i < kTileKeys / 2; ++i) {
        const int64_t key = key0 + i / 4 * 8 + lane % 4 * 2 + i % 2;
        if (key < span.begin || key >= ends[i / 2 % 2]) score[i] = -INFINITY;
      }
    }
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      float top = m[r];
#pragma unroll
      for (int i = 2 * r; i < kTileKeys / 2; i += 4) top = fmaxf(top, fmaxf(score[i], score[i + 1]));
      top = fmaxf(top, __shfl_xor_sync(kAllLanes, top, 1));
      top = fmaxf(top, __shfl_xor_sync(kAllLanes, top, 2));
      const float base = top == -INFINITY ? 0 : __fmul_rn(top, scale);         // nothing seen so far: all weights are 0
      const float shrink = m[r] == top ? 1 : exp2f(fmaf(m[r], scale, -base));  // 1 to the bit
      m[r] = top;
      float sum = 0;
#pragma unroll
      for (int i = 2 * r; i < kTileKeys / 2; i += 4)
#pragma unroll
        for (int n = i; n < i + 2; ++n) sum += score[n] = exp2f(fmaf(score[n], scale, -base));
      l[r] = fmaf(l[r], shrink, sum);
#pragma unroll
      for (int i = 2 * r; i < kWideDim / 2; i += 4) o[i] *= shrink, o[i + 1] *= shrink;
    }
    uint32_t weights[kTileKeys / 16][4];
#pragma unroll
    for (int i = 0; i < kTileKeys / 4; ++i) weights[i / 4][i % 4] = bf16_pair(score[2 * i], score[2 * i + 1]);
    hold(o);
    wgmma_begin();
    const uint64_t v = describe_tile_as_stored(own_values, kKeysPart);
#pragma unroll
    for (int k = 0; k < kTileKeys / 16; ++k) wgmma_as_stored(o, weights[k], v + 128 * k);
    wgmma_commit();
    wgmma_wait<0>();
    hold(o);
  }
#pragma unroll
  for (int r = 0; r < 2; ++r) {
    l[r] += __shfl_xor_sync(kAllLanes, l[r], 1);
    l[r] += __shfl_xor_sync(kAllLanes, l[r], 2);
    if (mine[r] >= count) continue;
    const float inverse = l[r] == 0 ? 0 : 1 / l[r];
    bf16_t* to = out + place_of(mine[r]);
#pragma unroll
    for (int i = 2 * r; i < kWideDim / 2; i += 4) {
      const int d = i / 4 * 8 + lane % 4 * 2;
      if (d < s.Dh) *reinterpret_cast<uint32_t*>(to + d) = bf16_pair(o[i] * inverse, o[i + 1] * inverse);
    }
  }
  wait_copies_of_all();
}

template <class Source>
void attend_wide(cudaStream_t stream, const Source& source, const QueryTiles& tiles, const Rows<const bf16_t>& q,
                 int64_t rows, int64_t key_heads, const TileShape& shape, bf16_t* out) {
  const auto kernel = attend_wide_kernel<Source>;
  cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, static_cast<int>(kAttendWideBytes));
  kernel<<<dim3(tiles.numbers(rows), static_cast<unsigned>(key_heads)), kWideThreads, kAttendWideBytes, stream>>>(
      source, tiles, q, shape, out);
}

}  // namespace calandra::cuda

// Softmax attention of sequences with few bf16 rows over their pages on tensor cores: decoding, and the verification of
// drafts, whose rows share one read of the keys.
//
// With many sequences a block has 16 queries of one sequence and key head and walks all its keys: rows with the query
// heads of the key head beside one another. Keys come in ranges of 256 at absolute positions and in tiles of 64 through
// shared memory, the next tile arriving while this one is used; 4 warps have 16 keys each of a tile for all queries,
// and 4 more the same for the other half of the values. Maximum, sum and weighted values of its keys stay in registers
// (online softmax, weights rounded to bf16 for the product); at the end of a range the warps' results are joined in
// order. 210 kB of shared memory for D 256.
//
// With few sequences (attend_part) the 16 keys of each tile that belong to one of the 4 warps have a block of
// their own in each range: it has all its keys under way at once, its warps have parts of the values, and what it
// leaves in memory is joined by join_ranges. It can make its queries, and the keys and values of the step's own rows,
// of what the projections left (device/projected_heads.cuh): older keys are then read before the wait for the kernel in
// front (device/pipeline.cuh), so between two such kernels of the same pages there must be a product, as in every
// layer, or a kernel that is no follower. The block that has a row's first query puts its key and value into their
// page. Both join the warps' keys of a range, the ranges of a span of 4 and then span by span, in order and with the
// same operations, and what other queries see takes part with weight 0: a query's bits depend on its keys alone. Bound
// by the read of keys and values, few keys by latency.
#pragma once

#include <type_traits>

#include "backends/cuda/device/launch.cuh"
#include "backends/cuda/device/mma.cuh"
#include "backends/cuda/device/pipeline.cuh"
#include "backends/cuda/device/projected_heads.cuh"
#include "backends/cuda/device/query_tiles.cuh"

namespace calandra::cuda {

constexpr int kFewQueries = 16, kFewRange = 256;
constexpr int kFewSpan = 4;                // ranges, from multiples of so many
constexpr int kFewParts = kTileKeys / 16;  // of a range

template <int D>
struct FewShared {
  static constexpr int kStride = D + kTilePadding;
  static constexpr int kKeyWarps = kFewParts, kParts = D % 32 == 0 ? 2 : 1;  // of the numbers of a value
  static constexpr int kThreads = kKeyWarps * kParts * kWarp;
  struct Tile {
    bf16_t keys[kTileKeys * kStride], values[kTileKeys * kStride];
  };
  Tile tiles[2];
  bf16_t queries[kFewQueries * kStride];
  float o[kKeyWarps][kFewQueries][D], m[kKeyWarps][kFewQueries], l[kKeyWarps][kFewQueries];
  // Of the ranges of the span so far, and of the spans, in turns.
  float span_m[2][kFewQueries], span_l[2][kFewQueries], total_m[2][kFewQueries], total_l[2][kFewQueries];
  int64_t offsets[2][kTileKeys];  // -1: no such key
};

template <int D>
struct PartShared {
  static constexpr int kStride = D + kTilePadding, kKeys = kFewRange / kFewParts, kWarps = D % 128 == 0 ? 8 : D / 16,
                       kThreads = kWarps * kWarp;
  bf16_t keys[kKeys * kStride], values[kKeys * kStride], queries[kFewQueries * kStride];
  int64_t offsets[kKeys];  // kNoKey, kFresh, or where it is in its pages
};
constexpr int64_t kNoKey = -1, kFresh = -2;  // kFresh: of a row of this step, not in its page yet

// What a block of attend_part makes of projections: its queries and the keys of the step's rows, [fresh, to),
// that are its own. Their values, too, but those before `from`, which nobody sees. A warp has a head.
template <int D, class Source>
__device__ __forceinline__ void bring_heads(const Source& source, const ProjectedHeads<bf16_t>& heads,
                                            const QueryTile& own, int queries, const TileShape& s, int64_t from,
                                            int64_t fresh, int64_t to, int part, PartShared<D>& shared) {
  using Shared = PartShared<D>;
  constexpr int kStride = Shared::kStride, kChunks = D / 8;
  const uint4 zeros{};
  const auto piece = [](bf16_t* at, int c) -> uint4& { return reinterpret_cast<uint4*>(at)[c]; };
  const int warp = threadIdx.x / kWarp, lane = threadIdx.x % kWarp, Dh = static_cast<int>(s.Dh),
            items = queries + 2 * static_cast<int>(max(int64_t{0}, to - fresh));
  for (int i = queries * kChunks + threadIdx.x; i < kFewQueries * kChunks; i += Shared::kThreads)
    piece(shared.queries + i / kChunks * kStride, i % kChunks) = zeros;
  for (int item = warp; item < items; item += Shared::kWarps) {
    if (item < queries) {
      const int64_t query = own.first + item, row = own.row(query);
      bring_head<D>(heads, heads.q[row] + own.head_of(query) * Dh, heads.q_norm, row, Dh, lane,
                    shared.queries + item * kStride);
      continue;
    }
    const int64_t key = fresh + (item - queries) / 2, row = own.row0 + key - source.first_of_step(own.group),
                  first_query = (row - own.row0) * own.heads;
    if (key / 16 % kFewParts != part) continue;
    const bool keeps = first_query >= own.first && first_query < own.first + kFewQueries;
    const int slot = static_cast<int>(key % kFewRange / kTileKeys * 16 + key % 16);
    const int64_t page = source.offset(own.group, own.head, key);
    if ((item - queries) % 2 == 0) {
      bf16_t* to_key = shared.keys + slot * kStride;
      bring_head<D>(heads, heads.k[row] + own.head * Dh, heads.k_norm, row, Dh, lane, to_key);
      if (keeps && lane < Dh / 8) piece(const_cast<bf16_t*>(source.k()) + page, lane) = piece(to_key, lane);
    } else if (lane < kChunks) {
      wait_for_grid();
      const uint4 value = lane < Dh / 8 ? reinterpret_cast<const uint4*>(heads.v[row] + own.head * Dh)[lane] : zeros;
      piece(shared.values + slot * kStride, lane) = key >= from ? value : zeros;
      if (keeps && lane < Dh / 8) piece(const_cast<bf16_t*>(source.v()) + page, lane) = value;
    }
  }
  wait_for_grid();
}

// blockIdx: key head and 16 queries, sequence, range and which 16 keys of each of its tiles. Queries: Rows<const
// bf16_t>, whose keys are in their pages, or ProjectedHeads<bf16_t>.
template <int D, class Source, class Queries>
__global__ void __launch_bounds__(PartShared<D>::kThreads)
    attend_part(const __grid_constant__ Source source, const int32_t* start, int G, int parts,
                const __grid_constant__ Queries q, TileShape s, RangeResults results) {
  constexpr bool kProjected = std::is_same_v<Queries, ProjectedHeads<bf16_t>>;
  extern __shared__ __align__(16) std::byte few_shared[];
  using Shared = PartShared<D>;
  constexpr int kStride = Shared::kStride, kChunks = D / 8, kThreads = Shared::kThreads, kValues = D / Shared::kWarps;
  Shared& shared = *reinterpret_cast<Shared*>(few_shared);
  let_next_grid_begin();
  const int b = blockIdx.y, head = blockIdx.x / parts, range = blockIdx.z / kFewParts, part = blockIdx.z % kFewParts;
  const int lane = threadIdx.x % kWarp, value0 = threadIdx.x / kWarp * kValues;
  const QueryTile own(start, b, head, G, int64_t{blockIdx.x} % parts * kFewQueries);
  if (own.first >= own.count || source.runs(b)) return wait_for_grid();
  const int queries = static_cast<int>(min(own.count - own.first, int64_t{kFewQueries})),
            chunks = static_cast<int>(s.Dh / 8);
  const KeySpan span = source.keys(b);
  const int64_t begin = int64_t{range} * kFewRange, from = max(span.begin, begin),
                to = min(own.end(source, own.first + queries - 1, span.end), begin + kFewRange);
  const int64_t fresh = kProjected ? max(begin, source.first_of_step(b)) : to;  // keys of the step's rows begin here
  if (min(from, fresh) >= to) return wait_for_grid();
  const auto key_of = [&](int i) { return begin + i / 16 * kTileKeys + part * 16 + i % 16; };
  if (threadIdx.x < Shared::kKeys) {
    const int64_t key = key_of(static_cast<int>(threadIdx.x));
    const bool exists = key < to && key >= min(from, fresh);
    shared.offsets[threadIdx.x] = !exists ? kNoKey : key >= fresh ? kFresh : source.offset(b, head, key);
  }
  const auto load_keys = [&] {
    for (int i = threadIdx.x; i < Shared::kKeys * kChunks; i += kThreads) {
      const int r = i / kChunks, c = i % kChunks, at = r * kStride + c * 8;
      const int64_t offset = shared.offsets[r];
      if (offset == kFresh) continue;
      const bool seen = offset >= 0 && c < chunks;
      copy_16_async(shared.keys + at, seen ? source.k() + offset + c * 8 : source.k(), seen);
      copy_16_async(shared.values + at, seen ? source.v() + offset + c * 8 : source.v(), seen);
    }
    end_copy_group();
  };
  if constexpr (kProjected) {
    __syncthreads();
    load_keys();
    bring_heads<D>(source, q, own, queries, s, from, fresh, to, part, shared);
  } else {
    wait_for_grid();
    load_queries<kFewQueries, kChunks, kThreads>(own, q, s.Dh,
                                                 [&](int r, int c) { return shared.queries + r * kStride + c * 8; });
    __syncthreads();
    load_keys();
  }
  // Of queries g and g + 8.
  const int64_t mine = own.first + lane / 4, ends[2] = {own.end(source, mine, to), own.end(source, mine + 8, to)};
  wait_copies<0>();
  __syncthreads();

  const float scale = s.scale * kLog2e;
  TwoQueries<kValues / 8> sums;
  const int begin_tile = static_cast<int>(from / kTileKeys), end_tile = static_cast<int>((to - 1) / kTileKeys) + 1;
#pragma unroll 1
  for (int tile = begin_tile; tile < end_tile; ++tile) {
    const int at = tile % (kFewRange / kTileKeys) * 16;
    float score[2][4] = {};
#pragma unroll
    for (int d = 0; d < D; d += 16) {
      uint32_t a[4], k[4];
      load_a(a, shared.queries, kStride, 0, d, lane);
      load_b(k, shared.keys, kStride, at, d, lane);
      mma_bf16(score[0], a[0], a[1], a[2], a[3], k[0], k[1]);
      mma_bf16(score[1], a[0], a[1], a[2], a[3], k[2], k[3]);
    }
    hide_keys(score, key_of(at), from, ends);
    sums.weigh(score, scale);
    const uint32_t a[4] = {bf16_pair(score[0][0], score[0][1]), bf16_pair(score[0][2], score[0][3]),
                           bf16_pair(score[1][0], score[1][1]), bf16_pair(score[1][2], score[1][3])};
#pragma unroll
    for (int n = 0; n < kValues / 16; ++n) {
      uint32_t v[4];
      load_b_as_stored(v, shared.values, kStride, at, value0 + n * 16, lane);
      mma_bf16(sums.o[2 * n], a[0], a[1], a[2], a[3], v[0], v[1]);
      mma_bf16(sums.o[2 * n + 1], a[0], a[1], a[2], a[3], v[2], v[3]);
    }
  }
  sums.add_lanes();
#pragma unroll
  for (int r = 0; r < 2; ++r) {
    const int i = lane / 4 + 8 * r;
    if (i >= queries) continue;
    const int64_t query = own.first + i, place = results.place(own.row(query), s.H, own.head_of(query), range, part);
    if (lane % 4 == 0 && value0 == 0)
      results.ml[2 * place] = __fmul_rn(sums.m[r], s.scale), results.ml[2 * place + 1] = sums.l[r];
#pragma unroll
    for (int n = 0; n < kValues / 8; ++n)
#pragma unroll
      for (int i = 0; i < 2; ++i)
        if (const int d = value0 + n * 8 + lane % 4 * 2 + i; d < s.Dh)
          results.o[place * s.Dh + d] = sums.o[n][2 * r + i];
  }
}

// Source as for attend_queries. blockIdx: key head and 16 queries, sequence.
template <int D, class Source>
__global__ void __launch_bounds__(FewShared<D>::kThreads, 1)
    attend_few(const __grid_constant__ Source source, const int32_t* start, int G, int parts, Rows<const bf16_t> q,
               TileShape s, bf16_t* out) {
  extern __shared__ __align__(16) std::byte few_shared[];
  using Shared = FewShared<D>;
  constexpr int kStride = Shared::kStride, kChunks = D / 8, kThreads = Shared::kThreads,
                kOwn = kFewQueries * D / kThreads, kValues = D / Shared::kParts;
  Shared& shared = *reinterpret_cast<Shared*>(few_shared);
  begin_as_follower();
  const int b = blockIdx.y, head = blockIdx.x / parts;
  const int warp = threadIdx.x / kWarp % Shared::kKeyWarps, lane = threadIdx.x % kWarp,
            value0 = threadIdx.x / kWarp / Shared::kKeyWarps * kValues;
  const QueryTile own(start, b, head, G, int64_t{blockIdx.x} % parts * kFewQueries);
  if (own.first >= own.count || source.runs(b)) return;  // what attend_queries runs
  const int queries = static_cast<int>(min(own.count - own.first, int64_t{kFewQueries})),
            chunks = static_cast<int>(s.Dh / 8);
  const SeenKeys<kTileKeys> seen(source, own, kFewQueries, source.keys(b));

  const auto find_keys = [&](int tile) {
    if (threadIdx.x >= kTileKeys) return;
    const int64_t i = int64_t{tile} * kTileKeys + threadIdx.x;
    shared.offsets[tile % 2][threadIdx.x] = i >= seen.begin && i < seen.end ? source.offset(b, head, i) : -1;
  };
  const auto load_tile = [&](int tile) {
    auto& place = shared.tiles[tile % 2];
    for (int i = threadIdx.x; i < kTileKeys * kChunks; i += kThreads) {
      const int r = i / kChunks, c = i % kChunks, at = r * kStride + c * 8;
      const int64_t offset = shared.offsets[tile % 2][r];
      const bool exists = offset >= 0 && c < chunks;
      copy_16_async(place.keys + at, exists ? source.k() + offset + c * 8 : source.k(), exists);
      copy_16_async(place.values + at, exists ? source.v() + offset + c * 8 : source.v(), exists);
    }
    end_copy_group();
  };
  load_queries<kFewQueries, kChunks, kThreads>(own, q, s.Dh,
                                               [&](int r, int c) { return shared.queries + r * kStride + c * 8; });
  find_keys(seen.begin_tile), find_keys(seen.begin_tile + 1);
  if (threadIdx.x < kFewQueries) {
    shared.span_m[0][threadIdx.x] = shared.total_m[0][threadIdx.x] = -INFINITY;
    shared.span_l[0][threadIdx.x] = shared.total_l[0][threadIdx.x] = 0;
  }
  __syncthreads();
  if (seen.begin_tile < seen.end_tile) load_tile(seen.begin_tile);

  // Of queries g and g + 8.
  const int64_t mine = own.first + lane / 4,
                ends[2] = {own.end(source, mine, seen.end), own.end(source, mine + 8, seen.end)};
  TwoQueries<kValues / 8> sums;
  // What the thread has of the results: numbers threadIdx.x + i * kThreads of [kFewQueries, D].
  float span[kOwn] = {}, total[kOwn] = {};
  int turn = 0, span_turn = 0;
  const auto end_range = [&](bool ends_span) {
    sums.add_lanes();
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      const int query = lane / 4 + 8 * r;
      if (lane % 4 == 0 && value0 == 0)
        shared.m[warp][query] = __fmul_rn(sums.m[r], s.scale), shared.l[warp][query] = sums.l[r];
#pragma unroll
      for (int n = 0; n < kValues / 8; ++n)
        *reinterpret_cast<float2*>(&shared.o[warp][query][value0 + n * 8 + lane % 4 * 2]) = {sums.o[n][2 * r],
                                                                                             sums.o[n][2 * r + 1]};
    }
    sums = {};
    __syncthreads();
#pragma unroll
    for (int i = 0; i < kOwn; ++i) {
      const int at = threadIdx.x + i * kThreads, query = at / D, d = at % D;
      if (query >= queries) break;
      Softmax<1> part;
#pragma unroll
      for (int w = 0; w < Shared::kKeyWarps; ++w) {
        const float mine[1] = {shared.o[w][query][d]};
        part.join(shared.m[w][query], shared.l[w][query], mine);
      }
      Softmax<1> joined;
      joined.m = shared.span_m[span_turn][query], joined.l = shared.span_l[span_turn][query], joined.o[0] = span[i];
      joined.join(part.m, part.l, part.o);
      if (ends_span) {
        Softmax<1> all;
        all.m = shared.total_m[turn][query], all.l = shared.total_l[turn][query], all.o[0] = total[i];
        all.join(joined.m, joined.l, joined.o);
        total[i] = all.o[0];
        if (d == 0) shared.total_m[turn ^ 1][query] = all.m, shared.total_l[turn ^ 1][query] = all.l;
        joined = {};
      }
      span[i] = joined.o[0];
      if (d == 0) shared.span_m[span_turn ^ 1][query] = joined.m, shared.span_l[span_turn ^ 1][query] = joined.l;
    }
    span_turn ^= 1;
    if (ends_span) turn ^= 1;
    __syncthreads();  // the memory is free for the next range
  };

  const float scale = s.scale * kLog2e;
  for (int tile = seen.begin_tile; tile < seen.end_tile; ++tile) {
    __syncthreads();  // nobody reads the tile before this one
    if (tile + 1 < seen.end_tile)
      load_tile(tile + 1);
    else
      end_copy_group();
    find_keys(tile + 2);
    wait_copies<1>();
    __syncthreads();  // the tile is there
    const auto& place = shared.tiles[tile % 2];
    float score[2][4] = {};
#pragma unroll
    for (int d = 0; d < D; d += 16) {
      uint32_t a[4], k[4];
      load_a(a, shared.queries, kStride, 0, d, lane);
      load_b(k, place.keys, kStride, warp * 16, d, lane);
      mma_bf16(score[0], a[0], a[1], a[2], a[3], k[0], k[1]);
      mma_bf16(score[1], a[0], a[1], a[2], a[3], k[2], k[3]);
    }
    hide_keys(score, int64_t{tile} * kTileKeys + warp * 16, seen.begin, ends);
    sums.weigh(score, scale);
    const uint32_t a[4] = {bf16_pair(score[0][0], score[0][1]), bf16_pair(score[0][2], score[0][3]),
                           bf16_pair(score[1][0], score[1][1]), bf16_pair(score[1][2], score[1][3])};
#pragma unroll
    for (int n = 0; n < kValues / 16; ++n) {
      uint32_t v[4];
      load_b_as_stored(v, place.values, kStride, warp * 16, value0 + n * 16, lane);
      mma_bf16(sums.o[2 * n], a[0], a[1], a[2], a[3], v[0], v[1]);
      mma_bf16(sums.o[2 * n + 1], a[0], a[1], a[2], a[3], v[2], v[3]);
    }
    const bool is_last = tile + 1 == seen.end_tile;
    if (is_last || (tile + 1) * kTileKeys % kFewRange == 0)
      end_range(is_last || (tile + 1) * kTileKeys % (kFewRange * kFewSpan) == 0);
  }
  wait_copies<0>();
#pragma unroll
  for (int i = 0; i < kOwn; ++i) {
    const int at = threadIdx.x + i * kThreads, query = at / D, d = at % D;
    if (query >= queries || d >= s.Dh) continue;
    const float l = shared.total_l[turn][query];
    const int64_t place = own.row(own.first + query) * s.H + own.head_of(own.first + query);
    out[place * s.Dh + d] = from_float<bf16_t>(l == 0 ? 0 : total[i] / l);
  }
}

// A launch of one of the kernels above for sequences of up to `most_rows` rows; `last`: its last argument.
template <auto kKernel, class Source, class Queries, class Last>
void launch_few(cudaStream_t stream, int threads, size_t bytes, int64_t blocks_of_queries, const Source& source,
                const int32_t* start, int64_t sequences, int64_t most_rows, int64_t key_heads, const Queries& q,
                const TileShape& shape, const Last& last) {
  const int64_t G = shape.H / key_heads, parts = (most_rows * G + kFewQueries - 1) / kFewQueries;
  allow_shared<kKernel>(bytes);
  const dim3 grid(static_cast<unsigned>(key_heads * parts), static_cast<unsigned>(sequences),
                  static_cast<unsigned>(blocks_of_queries));
  launch_follower(kKernel, grid, dim3(static_cast<unsigned>(threads)), bytes, stream, source, start,
                  static_cast<int>(G), static_cast<int>(parts), q, shape, last);
}

// Into `out`.
template <int D, class Source>
void run_attend_few(cudaStream_t stream, const Source& source, const int32_t* start, int64_t sequences,
                    int64_t most_rows, int64_t key_heads, const Rows<const bf16_t>& q, const TileShape& shape,
                    bf16_t* out) {
  launch_few<attend_few<D, Source>>(stream, FewShared<D>::kThreads, sizeof(FewShared<D>), 1, source, start, sequences,
                                    most_rows, key_heads, q, shape, out);
}

// Into `results`, for join_ranges.
template <int D, class Source, class Queries>
void run_attend_part(cudaStream_t stream, const Source& source, const int32_t* start, int64_t sequences,
                     int64_t most_rows, int64_t key_heads, const Queries& q, const TileShape& shape,
                     const RangeResults& results) {
  launch_few<attend_part<D, Source, Queries>>(stream, PartShared<D>::kThreads, sizeof(PartShared<D>),
                                              results.ranges * results.parts, source, start, sequences, most_rows,
                                              key_heads, q, shape, results);
}

}  // namespace calandra::cuda

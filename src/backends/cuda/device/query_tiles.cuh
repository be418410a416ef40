// What kernels of attention on tensor cores share: how queries are cut into tiles, and the online softmax of two
// queries a thread. attend_latents.cuh, whose registers are all taken, has its own.
#pragma once

#include <cmath>

#include "backends/cuda/device/attend_rows.cuh"
#include "backends/cuda/device/tiles.cuh"

namespace calandra::cuda {

constexpr int kTileQueries = 64, kTileKeys = 64;
constexpr float kLog2e = 1.44269504f;  // weights are powers of 2

struct TileShape {
  int64_t H, Dh;
  float scale;
};

// Queries of one group (a sequence, a segment) and one key head: rows with the query heads of the key head beside one
// another, `count` in all. A block has those from `first` on.
struct QueryTile {
  __device__ __forceinline__ QueryTile(const int32_t* start, int group_, int head_, int heads_, int64_t first_)
      : group(group_),
        head(head_),
        heads(heads_),
        row0(start[group]),
        count((start[group + 1] - row0) * heads),
        first(first_) {}
  // Of query `query` of the count.
  __device__ __forceinline__ int64_t row(int64_t query) const { return row0 + query / heads; }
  __device__ __forceinline__ int64_t head_of(int64_t query) const { return int64_t{head} * heads + query % heads; }
  // The first key that the query does not see, `before` at most; 0 if there is no such query.
  template <class Source>
  __device__ __forceinline__ int64_t end(const Source& source, int64_t query, int64_t before) const {
    return query < count ? min(before, source.end(group, row(query))) : 0;
  }

  int group, head, heads;
  int64_t row0, count, first;
};

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

// The keys of `span`, its group's, that the `queries` of a tile from its first on see: [begin, end) some of them,
// [begin, sure) all. They are in tiles [begin_tile, end_tile) of kKeys at absolute positions.
template <int kKeys>
struct SeenKeys {
  template <class Source>
  __device__ __forceinline__ SeenKeys(const Source& source, const QueryTile& tile, int queries, const KeySpan& span)
      : begin(span.begin),
        end(tile.end(source, min(tile.count, tile.first + queries) - 1, span.end)),
        sure(source.end(tile.group, tile.row(tile.first))),
        begin_tile(static_cast<int>(begin / kKeys)),
        end_tile(begin < end ? static_cast<int>((end + kKeys - 1) / kKeys) : begin_tile) {}
  // Whether every query sees all keys of the tile that begins at `key`.
  __device__ __forceinline__ bool by_all(int64_t key) const { return key >= begin && key + kKeys <= sure; }

  int64_t begin, end, sure;
  int begin_tile, end_tile;
};

// Copies of the queries [tile.first, tile.first + kQueries) into shared memory: 16 bytes `piece` of query `i` of them
// go to place(i, piece), zeros for what is not there.
template <int kQueries, int kPieces, int kThreads, class Place>
__device__ __forceinline__ void load_queries(const QueryTile& tile, const Rows<const bf16_t>& q, int64_t Dh,
                                             Place place) {
  for (int at = threadIdx.x; at < kQueries * kPieces; at += kThreads) {
    const int i = at / kPieces, piece = at % kPieces;
    const int64_t query = tile.first + i;
    const bool seen = query < tile.count && piece < static_cast<int>(Dh / 8);
    const bf16_t* from = seen ? q[tile.row(query)] + tile.head_of(query) * Dh + piece * 8 : q.data;
    copy_16_async(place(i, piece), from, seen);
  }
}

// A lane has queries lane / 4 and lane / 4 + 8 of its warp's 16; of every 8 keys or values, numbers 2 (lane % 4) and
// the one behind it: four floats, two of each query (mma.cuh). They are one behind the other for wgmma.cuh.
template <int N>
__device__ __forceinline__ float (&flat(float (&x)[N][4]))[4 * N] {
  return reinterpret_cast<float(&)[4 * N]>(x);
}

// Scores of keys from `first` on that the queries do not see, before `begin` or from `ends` on, become -infinity.
template <int N>
__device__ __forceinline__ void hide_keys(float (&score)[N][4], int64_t first, int64_t begin,
                                          const int64_t (&ends)[2]) {
#pragma unroll
  for (int n = 0; n < N; ++n)
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const int64_t key = first + n * 8 + threadIdx.x % 4 * 2 + i % 2;
      if (key < begin || key >= ends[i / 2]) score[n][i] = -INFINITY;
    }
}

// Online softmax: maximum of the scores, sum of the weights and 2 N weighted values of each of two queries.
template <int N>
struct TwoQueries {
  float m[2] = {-INFINITY, -INFINITY}, l[2] = {}, o[N][4] = {};  // l: of the lane's keys until add_lanes

  // Scores become weights 2^(scale (score - m)), with what was before brought to the new maximum.
  template <int kEights>
  __device__ __forceinline__ void weigh(float (&score)[kEights][4], float scale) {
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      float top = m[r];
#pragma unroll
      for (int n = 0; n < kEights; ++n) top = fmaxf(top, fmaxf(score[n][2 * r], score[n][2 * r + 1]));
      top = fmaxf(top, __shfl_xor_sync(kAllLanes, top, 1));
      top = fmaxf(top, __shfl_xor_sync(kAllLanes, top, 2));
      const float base = top == -INFINITY ? 0 : __fmul_rn(top, scale);         // nothing seen so far: all weights are 0
      const float shrink = m[r] == top ? 1 : exp2f(fmaf(m[r], scale, -base));  // 1 to the bit
      m[r] = top;
      float sum = 0;
#pragma unroll
      for (int n = 0; n < kEights; ++n)
#pragma unroll
        for (int i = 2 * r; i < 2 * r + 2; ++i) sum += score[n][i] = exp2f(fmaf(score[n][i], scale, -base));
      l[r] = fmaf(l[r], shrink, sum);
#pragma unroll
      for (int n = 0; n < N; ++n) o[n][2 * r] *= shrink, o[n][2 * r + 1] *= shrink;
    }
  }
  __device__ __forceinline__ void add_lanes() {
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      l[r] += __shfl_xor_sync(kAllLanes, l[r], 1);
      l[r] += __shfl_xor_sync(kAllLanes, l[r], 2);
    }
  }
  // Behind the last keys: the values' mean goes to `out` [T, H, Dh], zeros for a query without keys.
  __device__ __forceinline__ void write(const QueryTile& tile, const int64_t (&queries)[2], const TileShape& s,
                                        bf16_t* out) {
    add_lanes();
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      if (queries[r] >= tile.count) continue;
      const float inverse = l[r] == 0 ? 0 : 1 / l[r];
      bf16_t* to = out + (tile.row(queries[r]) * s.H + tile.head_of(queries[r])) * s.Dh;
#pragma unroll
      for (int n = 0; n < N; ++n) {
        const int d = n * 8 + threadIdx.x % 4 * 2;
        if (d < s.Dh)
          *reinterpret_cast<uint32_t*>(to + d) = bf16_pair(o[n][2 * r] * inverse, o[n][2 * r + 1] * inverse);
      }
    }
  }
};

}  // namespace calandra::cuda

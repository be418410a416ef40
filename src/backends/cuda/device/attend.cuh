// Softmax attention of single queries over keys, for paged, segment and latent attention.
//
// A block of 4 warps has one row and G query heads that read the same keys. Keys come in ranges of 512 at absolute
// positions and in tiles of 4; warp w of the block has the tiles with tile % 4 = w. A lane holds E neighbouring numbers
// of queries, keys and values (16 bytes of bf16 when E is 8), so that a key is one coalesced read that serves all G
// heads; a score is a sum over lanes. Each warp keeps maximum, sum and weighted values of its keys (online softmax); at
// the end of a range the warps' results are joined in order through 4 G (32 E + 2) floats of shared memory.
//
// With few rows each range has a block of its own, which leaves its result in memory for join_ranges; with many, one
// block walks all ranges. Both join range by range in order, with the same operations, so the bits are the same. Sums
// are written with explicit fmaf and __fmul_rn, so that no compilation fuses them differently.
//
// Few rows are bound by the read of the keys and values; many by arithmetic (no tensor cores here).
#pragma once

#include <cmath>

#include "backends/cuda/device/reduce.cuh"
#include "backends/cuda/device/vec.cuh"

namespace calandra::cuda {

constexpr int kAttendWarps = 4;
constexpr int kAttendThreads = kAttendWarps * kWarp;
constexpr int kKeyTile = 4;
constexpr int kKeyRange = 512;

// Maximum, sum and weighted values of some keys for one head; one thread has kOwn of the values.
template <int kOwn>
struct Softmax {
  float m = -INFINITY, l = 0, o[kOwn] = {};

  // Joins the keys behind these. A maximum passes NaN over, a sum does not: only a sum of 0 says that there are no
  // keys.
  __device__ __forceinline__ void join(float m2, float l2, const float (&o2)[kOwn]) {
    if (l2 == 0) return;
    const float top = fmaxf(m, m2), a = expf(m - top), b = expf(m2 - top);
    l = fmaf(l, a, __fmul_rn(l2, b));
#pragma unroll
    for (int i = 0; i < kOwn; ++i) o[i] = fmaf(o[i], a, __fmul_rn(o2[i], b));
    m = top;
  }
};

// One row's queries of G heads; lane d0 = lane * E. X more numbers of a key are read beside its E (rotary part of
// latents; they are no values).
template <int E, int G, int X>
struct Queries {
  float q[G][E];
  float qx[G][X > 0 ? X : 1];
};

// Keys: `const T* key(i)`, `value(i)` and, if X > 0, `extra(i)` give the numbers of key i; kValueIsKey if they are one.
// `own`, `own_x`: how many numbers this lane has; `aligned`: all or none, at multiples of their size.
template <class Keys, int E, int G, int X>
__device__ void attend_tiles(const Queries<E, G, X>& queries, const Keys& keys, int64_t begin, int64_t end, float scale,
                             int warp, int lane, int own, int own_x, bool aligned, Softmax<E> (&state)[G]) {
  const int64_t first = begin / kKeyTile;
  for (int64_t tile = first + (warp - first % kAttendWarps + kAttendWarps) % kAttendWarps; tile * kKeyTile < end;
       tile += kAttendWarps) {
    float score[G][kKeyTile], value[kKeyTile][E];
#pragma unroll
    for (int j = 0; j < kKeyTile; ++j) {
      const int64_t i = tile * kKeyTile + j;
      const bool seen = i >= begin && i < end;
      float key[E] = {}, extra[X > 0 ? X : 1] = {};
      if (seen) load_some(keys.key(i) + lane * E, key, own, aligned);
      if constexpr (X > 0)
        if (seen) load_some(keys.extra(i) + lane * X, extra, own_x, aligned);
#pragma unroll
      for (int e = 0; e < E; ++e) value[j][e] = Keys::kValueIsKey ? key[e] : 0;
      if constexpr (!Keys::kValueIsKey)
        if (seen) load_some(keys.value(i) + lane * E, value[j], own, aligned);
#pragma unroll
      for (int g = 0; g < G; ++g) {
        float dot = 0;
#pragma unroll
        for (int e = 0; e < E; ++e) dot = fmaf(queries.q[g][e], key[e], dot);
        if constexpr (X > 0)
#pragma unroll
          for (int e = 0; e < X; ++e) dot = fmaf(queries.qx[g][e], extra[e], dot);
        dot = warp_sum(dot);
        score[g][j] = seen ? __fmul_rn(dot, scale) : -INFINITY;
      }
    }
#pragma unroll
    for (int g = 0; g < G; ++g) {
      Softmax<E>& s = state[g];
      float top = s.m;
#pragma unroll
      for (int j = 0; j < kKeyTile; ++j) top = fmaxf(top, score[g][j]);
      const float shrink = expf(s.m - top);
      s.m = top;
      s.l = __fmul_rn(s.l, shrink);
#pragma unroll
      for (int e = 0; e < E; ++e) s.o[e] = __fmul_rn(s.o[e], shrink);
#pragma unroll
      for (int j = 0; j < kKeyTile; ++j) {
        const float weight = expf(score[g][j] - top);
        s.l += weight;
#pragma unroll
        for (int e = 0; e < E; ++e) s.o[e] = fmaf(weight, value[j][e], s.o[e]);
      }
    }
  }
}

// What a thread has of the block's G heads of D values after the join: heads one after the other, its values of each at
// threadIdx.x + j * kAttendThreads.
template <int E>
constexpr int kOwnValues = (E * kWarp + kAttendThreads - 1) / kAttendThreads;

// Keys [begin, end) of one range, joined over the block's warps into `joined`.
template <class Keys, int E, int G, int X>
__device__ void attend_range(const Queries<E, G, X>& queries, const Keys& keys, int64_t begin, int64_t end, float scale,
                             int own, int own_x, bool aligned, Softmax<kOwnValues<E>> (&joined)[G]) {
  __shared__ float o[kAttendWarps][G][E * kWarp], m[kAttendWarps][G], l[kAttendWarps][G];
  const int warp = threadIdx.x / kWarp, lane = threadIdx.x % kWarp;
  {
    Softmax<E> state[G];
    attend_tiles(queries, keys, begin, end, scale, warp, lane, own, own_x, aligned, state);
#pragma unroll
    for (int g = 0; g < G; ++g) {
#pragma unroll
      for (int e = 0; e < E; ++e) o[warp][g][lane * E + e] = state[g].o[e];
      if (lane == 0) m[warp][g] = state[g].m, l[warp][g] = state[g].l;
    }
  }
  __syncthreads();
#pragma unroll
  for (int g = 0; g < G; ++g) {
    joined[g] = {};
    for (int w = 0; w < kAttendWarps; ++w) {
      float mine[kOwnValues<E>];
#pragma unroll
      for (int j = 0; j < kOwnValues<E>; ++j) {
        const int d = threadIdx.x + j * kAttendThreads;
        mine[j] = d < E * kWarp ? o[w][g][d] : 0;
      }
      joined[g].join(m[w][g], l[w][g], mine);
    }
  }
  __syncthreads();  // the memory is free for the next range
}

// Results of ranges, for join_ranges: [rows, heads, ranges, parts] of (m, l) and of D values. The parts of a range,
// some of its keys each, are joined first, in order.
struct RangeResults {
  float* ml;
  float* o;
  int64_t ranges;
  int keys;  // of a range
  int parts;
  __device__ __forceinline__ int64_t place(int64_t row, int64_t heads, int64_t head, int64_t range,
                                           int part = 0) const {
    return ((row * heads + head) * ranges + range) * parts + part;
  }
};

}  // namespace calandra::cuda

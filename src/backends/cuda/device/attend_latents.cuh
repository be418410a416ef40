// Attention over latents in bf16 on tensor cores (MLA, absorbed), for latent_attention.cu.
//
// A block of 8 warps has 64 queries, rows of one sequence with all their heads beside one another. A key is a latent of
// 512 numbers with a rotary key of 64 behind it, and its latent is also the value, so that one tile of 32 keys serves
// both products; the next one arrives meanwhile. A warp has 16 queries and makes the scores of half of the keys and
// half of the numbers of the sum: maxima and weights go through shared memory, 157 kB in all. Queries are rounded to
// bf16 as models compute them, weights too; what comes out is f32.
//
// Sequences of many rows go through all keys in one online softmax (attend_queries.cuh). Those of few rows go by ranges
// of 128 keys at absolute positions, which with few sequences have blocks of their own and join_ranges behind them;
// with many, one block walks all ranges and joins them in `out`, with the same operations. Bound by shared memory.
#pragma once

#include "backends/cuda/device/mma.cuh"
#include "backends/cuda/device/query_tiles.cuh"

namespace calandra::cuda {

constexpr int kLatent = 512, kLatentRope = 64, kLatentKeys = 32, kLatentThreads = 256, kLatentRange = 128;
constexpr int kLatentStride = kLatent + kLatentRope + kTilePadding, kWeightStride = kLatentKeys + kTilePadding;

struct LatentShared {
  bf16_t queries[kTileQueries * kLatentStride], tiles[2][kLatentKeys * kLatentStride],
      weights[kTileQueries * kWeightStride];
  float tops[2][kTileQueries], sums[2][kTileQueries];      // of the two halves of the keys
  int64_t latents[2][kLatentKeys], ropes[2][kLatentKeys];  // offsets; -1: no such key
};

// Source: `latents()`, `ropes()` and `latent_offset(group, i)`, `rope_offset(group, i)`; the rest as for
// attend_queries.
// kFew: sequences that the source does not run; blockIdx: 64 queries, sequence, range if `results` has ranges.
template <bool kFew, class Source>
__global__ void __launch_bounds__(kLatentThreads, 1)
    attend_latents(const __grid_constant__ Source source, QueryTiles tiles, Rows<const float> q,
                   Rows<const bf16_t> q_rope, float softmax_scale, RangeResults results, float* out) {
  extern __shared__ __align__(16) std::byte latent_shared[];
  LatentShared& shared = *reinterpret_cast<LatentShared*>(latent_shared);
  constexpr int kHalf = kLatent / 2;
  const int64_t index = gridDim.x - 1 - blockIdx.x;  // long rows first
  const int group = kFew ? static_cast<int>(blockIdx.y) : tiles.group_of(index), H = tiles.heads;
  const int64_t row0 = tiles.start[group], count = (tiles.start[group + 1] - row0) * H,
                first = (kFew ? int64_t{blockIdx.x} : index - tiles.first_tile(group)) * kTileQueries;
  if (first >= count || source.runs(group) == kFew) return;
  const bool split = kFew && results.ranges > 0;
  const int warp = threadIdx.x / kWarp, lane = threadIdx.x % kWarp, query0 = warp % 4 * 16, half = warp / 4;
  const auto row_of = [&](int64_t query) { return row0 + query / H; };
  const int64_t last = min(count, first + kTileQueries) - 1;
  KeySpan span = source.keys(group);
  if (split) {
    span.begin = max(span.begin, int64_t{blockIdx.z} * kLatentRange);
    span.end = min(span.end, int64_t{blockIdx.z + 1} * kLatentRange);
  }
  const int64_t end = min(span.end, source.end(group, row_of(last))), sure = source.end(group, row_of(first));
  if (split && span.begin >= end) return;
  const int begin_tile = static_cast<int>(span.begin / kLatentKeys),
            end_tile = span.begin < end ? static_cast<int>((end + kLatentKeys - 1) / kLatentKeys) : begin_tile;

  const auto find_keys = [&](int tile) {
    if (threadIdx.x >= kLatentKeys) return;
    const int64_t i = int64_t{tile} * kLatentKeys + threadIdx.x;
    const bool seen = i >= span.begin && i < end;
    shared.latents[tile % 2][threadIdx.x] = seen ? source.latent_offset(group, i) : -1;
    shared.ropes[tile % 2][threadIdx.x] = seen ? source.rope_offset(group, i) : -1;
  };
  const auto load_tile = [&](int tile) {
    constexpr int kPieces = (kLatent + kLatentRope) / 8;
    for (int i = threadIdx.x; i < kLatentKeys * kPieces; i += kLatentThreads) {
      const int r = i / kPieces, c = i % kPieces;
      const bool latent = c < kLatent / 8;
      const bf16_t* base = latent ? source.latents() : source.ropes();
      const int64_t offset = latent ? shared.latents[tile % 2][r] : shared.ropes[tile % 2][r];
      copy_16_async(shared.tiles[tile % 2] + r * kLatentStride + c * 8,
                    offset >= 0 ? base + offset + (latent ? c : c - kLatent / 8) * 8 : base, offset >= 0);
    }
    end_copy_group();
  };
  for (int i = threadIdx.x; i < kTileQueries * kLatent / 2; i += kLatentThreads) {
    const int r = i / (kLatent / 2), c = i % (kLatent / 2) * 2;
    const int64_t query = first + r;
    float2 pair{0, 0};
    if (query < count) pair = *reinterpret_cast<const float2*>(q[row_of(query)] + query % H * kLatent + c);
    *reinterpret_cast<uint32_t*>(shared.queries + r * kLatentStride + c) = bf16_pair(pair.x, pair.y);
  }
  for (int i = threadIdx.x; i < kTileQueries * kLatentRope / 8; i += kLatentThreads) {
    const int r = i / (kLatentRope / 8), c = i % (kLatentRope / 8);
    const int64_t query = first + r;
    const bool seen = query < count;
    copy_16_async(shared.queries + r * kLatentStride + kLatent + c * 8,
                  seen ? q_rope[row_of(query)] + query % H * kLatentRope + c * 8 : q_rope.data, seen);
  }
  // Of queries g and g + 8 of the warp's 16.
  const int mine[2] = {query0 + lane / 4, query0 + lane / 4 + 8};
  int64_t ends[2];
#pragma unroll
  for (int r = 0; r < 2; ++r)
    ends[r] = first + mine[r] < count ? min(span.end, source.end(group, row_of(first + mine[r]))) : 0;
  float m[2] = {-INFINITY, -INFINITY}, l[2] = {}, o[kHalf / 8][4] = {};
  const float scale = softmax_scale * kLog2e;
  float total_m[2] = {-INFINITY, -INFINITY}, total_l[2] = {};  // of the ranges so far
  // Sums over both halves of the keys.
  const auto sums_of = [&](float(&sum)[2]) {
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      l[r] += __shfl_xor_sync(kAllLanes, l[r], 1);
      l[r] += __shfl_xor_sync(kAllLanes, l[r], 2);
      if (lane % 4 == 0) shared.sums[half][mine[r]] = l[r];
    }
    __syncthreads();
#pragma unroll
    for (int r = 0; r < 2; ++r) sum[r] = shared.sums[0][mine[r]] + shared.sums[1][mine[r]];
  };
  const auto place_of = [&](int r) {
    const int64_t query = first + mine[r];
    return out + (row_of(query) * H + query % H) * kLatent + half * kHalf + lane % 4 * 2;
  };
  const auto end_range = [&](int range) {
    float sum[2];
    sums_of(sum);
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      const int64_t query = first + mine[r];
      const float top_of_range = __fmul_rn(m[r], softmax_scale);
      if (query < count && split) {
        const int64_t place = results.place(row_of(query), H, query % H, range);
        if (half == 0 && lane % 4 == 0) results.ml[2 * place] = top_of_range, results.ml[2 * place + 1] = sum[r];
        float* to = results.o + place * kLatent + half * kHalf + lane % 4 * 2;
#pragma unroll
        for (int n = 0; n < kHalf / 8; ++n) *reinterpret_cast<float2*>(to + n * 8) = {o[n][2 * r], o[n][2 * r + 1]};
      } else if (query < count && sum[r] != 0) {
        float* to = place_of(r);
        Softmax<2> joined;
#pragma unroll
        for (int n = 0; n < kHalf / 8; ++n) {
          joined.m = total_m[r], joined.l = total_l[r];
          const float2 before = total_l[r] != 0 ? *reinterpret_cast<const float2*>(to + n * 8) : float2{0, 0};
          const float part[2] = {o[n][2 * r], o[n][2 * r + 1]};
          joined.o[0] = before.x, joined.o[1] = before.y;
          joined.join(top_of_range, sum[r], part);
          *reinterpret_cast<float2*>(to + n * 8) = {joined.o[0], joined.o[1]};
        }
        total_m[r] = joined.m, total_l[r] = joined.l;
      }
      m[r] = -INFINITY, l[r] = 0;
    }
#pragma unroll
    for (int n = 0; n < kHalf / 8; ++n)
#pragma unroll
      for (int i = 0; i < 4; ++i) o[n][i] = 0;
  };

  find_keys(begin_tile), find_keys(begin_tile + 1);
  __syncthreads();
  if (begin_tile < end_tile) load_tile(begin_tile);
  for (int tile = begin_tile; tile < end_tile; ++tile) {
    __syncthreads();  // nobody reads the tile before this one
    if (tile + 1 < end_tile)
      load_tile(tile + 1);
    else
      end_copy_group();
    find_keys(tile + 2);
    wait_copies<1>();
    __syncthreads();  // the tile is there
    const bf16_t* keys = shared.tiles[tile % 2];
    float score[2][4] = {};
#pragma unroll 6
    for (int d = 0; d < kLatent + kLatentRope; d += 16) {
      uint32_t a[4], b[4];
      load_a(a, shared.queries, kLatentStride, query0, d, lane);
      load_b(b, keys, kLatentStride, half * 16, d, lane);
      mma_bf16(score[0], a[0], a[1], a[2], a[3], b[0], b[1]);
      mma_bf16(score[1], a[0], a[1], a[2], a[3], b[2], b[3]);
    }
    const int64_t key0 = int64_t{tile} * kLatentKeys;
    const bool whole = key0 >= span.begin && key0 + kLatentKeys <= sure;
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      float top = -INFINITY;
#pragma unroll
      for (int n = 0; n < 2; ++n)
#pragma unroll
        for (int i = 2 * r; i < 2 * r + 2; ++i) {
          const int64_t key = key0 + half * 16 + n * 8 + lane % 4 * 2 + i % 2;
          if (!whole && (key < span.begin || key >= ends[r])) score[n][i] = -INFINITY;
          top = fmaxf(top, score[n][i]);
        }
      top = fmaxf(top, __shfl_xor_sync(kAllLanes, top, 1));
      top = fmaxf(top, __shfl_xor_sync(kAllLanes, top, 2));
      if (lane % 4 == 0) shared.tops[half][mine[r]] = top;
    }
    __syncthreads();
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      const float top = fmaxf(m[r], fmaxf(shared.tops[0][mine[r]], shared.tops[1][mine[r]]));
      const float base = top == -INFINITY ? 0 : __fmul_rn(top, scale);         // nothing seen so far: all weights are 0
      const float shrink = m[r] == top ? 1 : exp2f(fmaf(m[r], scale, -base));  // 1 to the bit
      m[r] = top;
      float sum = 0;
#pragma unroll
      for (int n = 0; n < 2; ++n) {
#pragma unroll
        for (int i = 2 * r; i < 2 * r + 2; ++i) sum += score[n][i] = exp2f(fmaf(score[n][i], scale, -base));
        *reinterpret_cast<uint32_t*>(shared.weights + mine[r] * kWeightStride + half * 16 + n * 8 + lane % 4 * 2) =
            bf16_pair(score[n][2 * r], score[n][2 * r + 1]);
      }
      l[r] = fmaf(l[r], shrink, sum);
#pragma unroll
      for (int n = 0; n < kHalf / 8; ++n) o[n][2 * r] *= shrink, o[n][2 * r + 1] *= shrink;
    }
    __syncthreads();
#pragma unroll
    for (int k = 0; k < kLatentKeys; k += 16) {
      uint32_t a[4];
      load_a(a, shared.weights, kWeightStride, query0, k, lane);
#pragma unroll
      for (int n = 0; n < kHalf / 16; ++n) {
        uint32_t b[4];
        load_b_as_stored(b, keys, kLatentStride, k, half * kHalf + n * 16, lane);
        mma_bf16(o[2 * n], a[0], a[1], a[2], a[3], b[0], b[1]);
        mma_bf16(o[2 * n + 1], a[0], a[1], a[2], a[3], b[2], b[3]);
      }
    }
    if constexpr (kFew)
      if (tile + 1 == end_tile || (tile + 1) * kLatentKeys % kLatentRange == 0)
        end_range(tile * kLatentKeys / kLatentRange);
  }
  wait_copies<0>();
  if (split) return;
  if constexpr (!kFew) sums_of(total_l);
#pragma unroll
  for (int r = 0; r < 2; ++r) {
    if (first + mine[r] >= count) continue;
    float* to = place_of(r);
#pragma unroll
    for (int n = 0; n < kHalf / 8; ++n) {
      float2 sum{o[n][2 * r], o[n][2 * r + 1]};
      if (kFew && total_l[r] != 0) sum = *reinterpret_cast<const float2*>(to + n * 8);
      if (total_l[r] != 0) sum.x /= total_l[r], sum.y /= total_l[r];
      *reinterpret_cast<float2*>(to + n * 8) = sum;
    }
  }
}

template <class Source>
void run_attend_latents(cudaStream_t stream, const Source& source, const QueryTiles& tiles, const Rows<const float>& q,
                        const Rows<const bf16_t>& q_rope, int64_t rows, float scale, float* out) {
  constexpr auto kKernel = attend_latents<false, Source>;
  allow_shared<kKernel>(sizeof(LatentShared));
  kKernel<<<tiles.numbers(rows), kLatentThreads, sizeof(LatentShared), stream>>>(source, tiles, q, q_rope, scale,
                                                                                 RangeResults{}, out);
}

// most_rows: of a sequence of few rows.
template <class Source>
void run_attend_few_latents(cudaStream_t stream, const Source& source, const QueryTiles& tiles,
                            const Rows<const float>& q, const Rows<const bf16_t>& q_rope, int64_t most_rows,
                            float scale, const RangeResults& results, float* out) {
  constexpr auto kKernel = attend_latents<true, Source>;
  allow_shared<kKernel>(sizeof(LatentShared));
  const dim3 grid(blocks_for(most_rows * tiles.heads, kTileQueries), static_cast<unsigned>(tiles.groups),
                  results.ranges > 0 ? static_cast<unsigned>(results.ranges) : 1);
  kKernel<<<grid, kLatentThreads, sizeof(LatentShared), stream>>>(source, tiles, q, q_rope, scale, results, out);
}

}  // namespace calandra::cuda

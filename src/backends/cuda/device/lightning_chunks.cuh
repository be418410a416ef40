// Lightning attention over prompts, 64 rows at a time on tensor cores (arXiv:2401.04658, its blocks).
//
// With G_i = -(i + 1) slope and S the state before a chunk of n rows:
//   o_i = exp(G_i) S^T q_i + sum_{j <= i} P_ij v_j,  P_ij = exp(G_i - G_j) q_i.k_j,  times the scale
//   S <- exp(G_n) S + sum_j exp(G_n - G_j) k_j v_j^T
// One block a sequence, head and 32 columns of S, chunk after chunk; the f32 rows of the next chunk arrive while the
// split ones of this chunk are multiplied; each block of a head makes P again. 203 kB of shared memory. Everything is
// f32, so all products are of split numbers. Bound by the tensor cores and the latency of a chunk.
#pragma once

#include "backends/cuda/device/chunks.cuh"

namespace calandra::cuda {

struct LightningShared {
  float keys[kChunk * kHeadSize], queries[kChunk * kHeadSize], values[kChunk * kColumns];  // as they arrive
  bf16_t k_high[kChunk * kHeadStride], k_low[kChunk * kHeadStride], q_high[kChunk * kHeadStride],
      q_low[kChunk * kHeadStride];
  bf16_t v_high[kChunk * kColumnStride], v_low[kChunk * kColumnStride], kept_high[kChunk * kColumnStride],
      kept_low[kChunk * kColumnStride];
  bf16_t P_high[kChunk * kChunkStride], P_low[kChunk * kChunkStride];
  SplitState state;
};

__global__ void __launch_bounds__(kWalkThreads, 1)
    lightning_walk(const __grid_constant__ SegmentedBatch batch, const __grid_constant__ RecurInputs<float> in,
                   RecurShape s, float* state, float* out) {
  extern __shared__ __align__(16) std::byte walk_shared[];
  LightningShared& shared = *reinterpret_cast<LightningShared*>(walk_shared);
  const int b = blockIdx.x, h = blockIdx.y, c0 = blockIdx.z * kColumns;
  const int warp = threadIdx.x / kWarp, lane = threadIdx.x % kWarp;
  // Of the warp's 16 x 16 results of [64, 32], and of the thread's first.
  const int row0 = warp % 4 * 16, column0 = warp / 4 * 16, row = row0 + lane / 4, column = column0 + lane % 4 * 2;
  if (!batch.runs(b) || !batch.has_many_rows(b)) return;
  const float slope = in.g[h];

  const auto load_rows = [&](float* to, const Rows<const float>& from, const ChunkRows& rows, int first, int columns) {
    const int pieces = columns / 4;
    for (int i = threadIdx.x; i < kChunk * pieces; i += kWalkThreads) {
      const int r = i / pieces, c = i % pieces;
      const bool seen = r < rows.count;
      copy_16_async(to + r * columns + c * 4, seen ? from[rows.begin + r] + first + c * 4 : from.data, seen);
    }
  };
  ChunkCursor next(batch, b);
  const auto load_next = [&] {
    if (next.there(batch, b)) {
      const ChunkRows rows = chunk_rows(next.segment, next.chunk++);
      load_rows(shared.keys, in.k, rows, h * kHeadSize, kHeadSize);
      load_rows(shared.queries, in.q, rows, h * kHeadSize, kHeadSize);
      load_rows(shared.values, in.v, rows, h * s.Dv + c0, kColumns);
    }
    end_copy_group();
  };
  // What has arrived, split; values also with what is left of them at the chunk's end.
  const auto split_rows = [&](const ChunkRows& rows) {
    for (int i = threadIdx.x; i < kChunk * kHeadSize / 2; i += kWalkThreads) {
      const int r = i / (kHeadSize / 2), c = i % (kHeadSize / 2) * 2, from = r * kHeadSize + c,
                at = r * kHeadStride + c;
      store_split(shared.k_high, shared.k_low, at, shared.keys[from], shared.keys[from + 1]);
      store_split(shared.q_high, shared.q_low, at, shared.queries[from], shared.queries[from + 1]);
    }
    for (int i = threadIdx.x; i < kChunk * kColumns / 2; i += kWalkThreads) {
      const int r = i / (kColumns / 2), c = i % (kColumns / 2) * 2, from = r * kColumns + c, at = r * kColumnStride + c;
      const float x = shared.values[from], y = shared.values[from + 1],
                  left = r < rows.count ? expf(-slope * static_cast<float>(rows.count - 1 - r)) : 0;
      store_split(shared.v_high, shared.v_low, at, x, y);
      store_split(shared.kept_high, shared.kept_low, at, __fmul_rn(x, left), __fmul_rn(y, left));
    }
  };

  StateTile S(shared.state, state + int64_t{h} * kHeadSize * s.Dv + c0, int64_t{s.Hv} * kHeadSize * s.Dv, s.Dv);
  load_next();
  for (int number = batch.first(b); batch.belongs(number, b); ++number) {
    const Segment segment = batch.at(number, b);
    const int certain = certain_chunks(segment), all = chunks_of(segment);
    S.load(segment.folded > 0 ? segment.dst : segment.src);  // `recur` has folded it there
    if (certain == 0) S.store(segment.dst);
    for (int chunk = 0; chunk < all; ++chunk) {
      const ChunkRows rows = chunk_rows(segment, chunk);
      wait_copies<0>();
      __syncthreads();  // the rows have arrived, and nobody reads those split before
      split_rows(rows);
      __syncthreads();
      load_next();

      // P: 16 rows of a warp, half of the columns.
#pragma unroll
      for (int part = 0; part < 2; ++part) {
        const int j0 = warp / 4 * 32 + part * 16;
        float p[2][4] = {};
        if (j0 <= row0) {
#pragma unroll
          for (int d = 0; d < kHeadSize; d += 16) {
            uint32_t q[4], q_rest[4], k[4], k_rest[4];
            load_a(q, shared.q_high, kHeadStride, row0, d, lane);
            load_a(q_rest, shared.q_low, kHeadStride, row0, d, lane);
            load_b(k, shared.k_high, kHeadStride, j0, d, lane);
            load_b(k_rest, shared.k_low, kHeadStride, j0, d, lane);
            mma_split(p, q, q_rest, k, k_rest);
          }
        }
#pragma unroll
        for (int n = 0; n < 2; ++n)
#pragma unroll
          for (int half = 0; half < 2; ++half) {
            const int i = row + 8 * half, j = j0 + n * 8 + lane % 4 * 2;
            const auto decayed = [&](float x, int from) {
              return from <= i ? __fmul_rn(x, expf(-slope * static_cast<float>(i - from))) : 0;
            };
            store_split(shared.P_high, shared.P_low, i * kChunkStride + j, decayed(p[n][2 * half], j),
                        decayed(p[n][2 * half + 1], j + 1));
          }
      }
      float o[2][4] = {};
#pragma unroll
      for (int d = 0; d < kHeadSize; d += 16) {
        uint32_t q[4], q_rest[4], high[4], low[4];
        load_a(q, shared.q_high, kHeadStride, row0, d, lane);
        load_a(q_rest, shared.q_low, kHeadStride, row0, d, lane);
        load_b_as_stored(high, shared.state.high, kColumnStride, d, column0, lane);
        load_b_as_stored(low, shared.state.low, kColumnStride, d, column0, lane);
        mma_split(o, q, q_rest, high, low);
      }
#pragma unroll
      for (int n = 0; n < 2; ++n)
#pragma unroll
        for (int i = 0; i < 4; ++i)
          o[n][i] = __fmul_rn(o[n][i], expf(-slope * static_cast<float>(row + i / 2 * 8 + 1)));
      __syncthreads();  // P is there, and nobody reads the split state any more

      if (chunk < certain) {
        S.shrink(expf(-slope * static_cast<float>(rows.count)));
#pragma unroll
        for (int j = 0; j < kChunk; j += 16) {
          uint32_t k[4], k_rest[4];
          load_a_transposed(k, shared.k_high, kHeadStride, j, warp * 16, lane);
          load_a_transposed(k_rest, shared.k_low, kHeadStride, j, warp * 16, lane);
#pragma unroll
          for (int n = 0; n < kColumns / 16; ++n) {
            uint32_t high[4], low[4];
            load_b_as_stored(high, shared.kept_high, kColumnStride, j, n * 16, lane);
            load_b_as_stored(low, shared.kept_low, kColumnStride, j, n * 16, lane);
            mma_split(S.S[n], k, k_rest, high, low);
          }
        }
        S.share();
        if (chunk + 1 == certain) S.store(segment.dst);
      }
#pragma unroll
      for (int j = 0; j < kChunk; j += 16) {
        if (j > row0) continue;
        uint32_t P[4], P_rest[4], high[4], low[4];
        load_a(P, shared.P_high, kChunkStride, row0, j, lane);
        load_a(P_rest, shared.P_low, kChunkStride, row0, j, lane);
        load_b_as_stored(high, shared.v_high, kColumnStride, j, column0, lane);
        load_b_as_stored(low, shared.v_low, kColumnStride, j, column0, lane);
        mma_split(o, P, P_rest, high, low);
      }
#pragma unroll
      for (int n = 0; n < 2; ++n)
#pragma unroll
        for (int half = 0; half < 2; ++half)
          if (const int i = row + 8 * half; i < rows.count)
            *reinterpret_cast<float2*>(out + (int64_t{rows.begin + i} * s.Hv + h) * s.Dv + c0 + column + n * 8) = {
                __fmul_rn(o[n][2 * half], s.scale), __fmul_rn(o[n][2 * half + 1], s.scale)};
    }
  }
  wait_copies<0>();
}

}  // namespace calandra::cuda

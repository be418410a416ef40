// Recurrences over prompts in chunks of 64 rows on tensor cores: how segments are cut into chunks, and 32 columns of a
// state as they are walked from chunk to chunk (delta_chunks.cuh, lightning_chunks.cuh).
//
// Chunks begin at a segment's first row and at its first draft, so that a state does not depend on what came behind it.
// What is f32 is split into two bf16 for the products, which leaves 2^-18 of each number; three products of the parts
// leave out that of the two rests, as small.
#pragma once

#include "backends/cuda/device/mma.cuh"
#include "backends/cuda/device/recur.cuh"
#include "backends/cuda/device/tiles.cuh"

namespace calandra::cuda {

constexpr int kChunk = 64;
constexpr int kHeadSize = 128;  // Dk
constexpr int kHeadStride = kHeadSize + kTilePadding, kChunkStride = kChunk + kTilePadding,
              kColumnStride = kColumns + kTilePadding;
constexpr int kWalkThreads = 256;

struct ChunkRows {
  int begin, count;
};

__device__ __forceinline__ int certain_chunks(const Segment& s) {
  return (s.drafts_begin - s.begin + kChunk - 1) / kChunk;
}
__device__ __forceinline__ int chunks_of(const Segment& s) {
  return certain_chunks(s) + (s.drafts_begin < s.end ? 1 : 0);
}
__device__ __forceinline__ ChunkRows chunk_rows(const Segment& s, int chunk) {
  if (chunk == certain_chunks(s)) return {s.drafts_begin, min(kChunk, s.end - s.drafts_begin)};
  const int begin = s.begin + chunk * kChunk;
  return {begin, min(kChunk, s.drafts_begin - begin)};
}

// The chunks of a sequence's segments in order.
struct ChunkCursor {
  int segment_number, chunk = 0;
  Segment segment;
  __device__ ChunkCursor(const SegmentedBatch& batch, int b)
      : segment_number(batch.first(b)), segment(batch.at(segment_number, b)) {}
  // False behind the last; to be asked before each chunk is read.
  __device__ __forceinline__ bool there(const SegmentedBatch& batch, int b) {
    while (chunk >= chunks_of(segment)) {
      if (!batch.belongs(segment_number + 1, b)) return false;
      segment = batch.at(++segment_number, b);
      chunk = 0;
    }
    return true;
  }
};

// A [.., 2] pair of a result as the two bf16 of each number.
__device__ __forceinline__ void store_split(bf16_t* high, bf16_t* low, int at, float a, float b) {
  *reinterpret_cast<uint32_t*>(high + at) = bf16_pair(a, b);
  *reinterpret_cast<uint32_t*>(low + at) = bf16_pair(rest_of(a), rest_of(b));
}

// D [16, 16] += A B of split numbers, without the product of the rests.
__device__ __forceinline__ void mma_split(float (&d)[2][4], const uint32_t (&a)[4], const uint32_t (&a_rest)[4],
                                          const uint32_t (&b)[4], const uint32_t (&b_rest)[4]) {
#pragma unroll
  for (int n = 0; n < 2; ++n) {
    mma_bf16(d[n], a[0], a[1], a[2], a[3], b[2 * n], b[2 * n + 1]);
    mma_bf16(d[n], a[0], a[1], a[2], a[3], b_rest[2 * n], b_rest[2 * n + 1]);
    mma_bf16(d[n], a_rest[0], a_rest[1], a_rest[2], a_rest[3], b[2 * n], b[2 * n + 1]);
  }
}
// The same of an exact A.
__device__ __forceinline__ void mma_exact(float (&d)[2][4], const uint32_t (&a)[4], const uint32_t (&b)[4],
                                          const uint32_t (&b_rest)[4]) {
#pragma unroll
  for (int n = 0; n < 2; ++n) {
    mma_bf16(d[n], a[0], a[1], a[2], a[3], b[2 * n], b[2 * n + 1]);
    mma_bf16(d[n], a[0], a[1], a[2], a[3], b_rest[2 * n], b_rest[2 * n + 1]);
  }
}

// [kHeadSize, kColumns] of the state of a head: in registers, and split in shared memory.
struct SplitState {
  bf16_t high[kHeadSize * kColumnStride], low[kHeadSize * kColumnStride];
};
struct StateTile {
  SplitState& split;
  float* state;  // [slots, H, kHeadSize, Dv] at the tile's first column of the head
  int64_t slot_stride;
  int Dv, row, column;           // of the thread's first number; another row is 8 below
  float S[kColumns / 16][2][4];  // results of mma: 16 columns each

  __device__ StateTile(SplitState& shared, float* S_of_head, int64_t stride, int columns)
      : split(shared),
        state(S_of_head),
        slot_stride(stride),
        Dv(columns),
        row(static_cast<int>(threadIdx.x) / kWarp * 16 + static_cast<int>(threadIdx.x) % kWarp / 4),
        column(static_cast<int>(threadIdx.x) % 4 * 2) {}

  // Calls f(pair, row, column) for each two neighbouring numbers.
  template <class F>
  __device__ __forceinline__ void each(F f) {
#pragma unroll
    for (int n = 0; n < kColumns / 8; ++n)
#pragma unroll
      for (int half = 0; half < 2; ++half) f(&S[n / 2][n % 2][2 * half], row + 8 * half, column + n * 8);
  }
  __device__ __forceinline__ void load(int slot) {
    each([&](float* pair, int r, int c) {
      const float2 from =
          slot >= 0 ? *reinterpret_cast<const float2*>(state + slot * slot_stride + int64_t{r} * Dv + c) : float2{0, 0};
      pair[0] = from.x, pair[1] = from.y;
    });
    share();
  }
  __device__ __forceinline__ void store(int slot) {
    each([&](const float* pair, int r, int c) {
      *reinterpret_cast<float2*>(state + slot * slot_stride + int64_t{r} * Dv + c) = {pair[0], pair[1]};
    });
  }
  __device__ __forceinline__ void share() {
    each([&](const float* pair, int r, int c) {
      store_split(split.high, split.low, r * kColumnStride + c, pair[0], pair[1]);
    });
  }
  __device__ __forceinline__ void shrink(float decay) {
    each([&](float* pair, int, int) { pair[0] = __fmul_rn(pair[0], decay), pair[1] = __fmul_rn(pair[1], decay); });
  }
};

// Rows of 8-number pieces into a tile; rows from `seen_rows` on become zeros.
__device__ __forceinline__ void copy_rows_async(bf16_t* to, int to_stride, const bf16_t* from, int64_t from_stride,
                                                int rows, int columns, int seen_rows, int threads) {
  const int pieces = columns / 8;
  for (int i = threadIdx.x; i < rows * pieces; i += threads) {
    const int r = i / pieces, c = i % pieces;
    const bool seen = r < seen_rows;
    copy_16_async(to + r * to_stride + c * 8, seen ? from + r * from_stride + c * 8 : from, seen);
  }
}

}  // namespace calandra::cuda

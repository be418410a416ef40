// The gated delta rule over prompts in bf16, 64 rows at a time on tensor cores (the UT form of arXiv:2412.06464).
//
// With G_i the sum of log decays up to row i of a chunk, S the state before it and k, q normalised, the changes u of
// the rows solve (I + A) u = R, and outputs and state follow from them:
//   A_ij = beta_i exp(G_i - G_j) k_i.k_j, j < i      R_i = beta_i (v_i - exp(G_i) S^T k_i)
//   o_i = exp(G_i) S^T q_i + sum_{j <= i} P_ij u_j   P_ij = exp(G_i - G_j) q_i.k_j
//   S <- exp(G_n) S + sum_j exp(G_n - G_j) k_j u_j^T
//
//   delta_prepare   one block a chunk and value head, none waits for another: T = (I + A)^-1 in f32, P, and the
//                   factors of the rows, 34 kB into memory. 53 kB of shared memory.
//   delta_walk      one block a sequence, value head and 32 columns of S, chunk after chunk, the inputs of the next one
//                   arriving meanwhile; 207 kB of shared memory. Bound by the latency of a chunk's four products that
//                   wait for one another.
//
// Precision: products with k or q take the rows as stored, in bf16 and so exact, with their norms as factors of the f32
// result. What is f32 (S, T, P, R, u) is split: with keys alike, u and P are large beside what their sums come to, so
// that one bf16 would not do even for rounded outputs.
//
// Chunks are numbered so that a block of delta_prepare finds its own without a count of those before it; some numbers
// have none.
#pragma once

#include "backends/cuda/device/chunks.cuh"

namespace calandra::cuda {

constexpr int kPrepareThreads = 128;
constexpr int kMatrixStride = kChunk + 4;  // f32

// What delta_prepare leaves of a chunk and head.
struct PreparedChunk {
  bf16_t T_high[kChunk * kChunk], T_low[kChunk * kChunk], P_high[kChunk * kChunk], P_low[kChunk * kChunk];
  float beta[kChunk], of_k[kChunk], of_q[kChunk], to_end[kChunk];  // factors of R, S^T q and u in S
  float decay[4];                                                  // exp(G_n), once
};
static_assert(sizeof(PreparedChunk) % 16 == 0);

struct DeltaChunks {
  SegmentedBatch batch;
  PreparedChunk* prepared;
  __device__ __forceinline__ int first_number(int segment) const {
    return batch.segment_start[segment] / kChunk + 2 * segment;
  }
  static int numbers(int64_t rows, int64_t segments) { return static_cast<int>(rows / kChunk + 2 * segments); }
};

constexpr size_t kPrepareBytes =
    sizeof(bf16_t) * 2 * kChunk * kHeadStride + sizeof(float) * (kChunk * kMatrixStride + 4 * kChunk);

// (I + A)^-1 in place of A, which is below the diagonal; what is above it is lost. Halves by forward substitution, a
// column a thread; between them -T22 A21 T11.
__device__ __forceinline__ void invert_lower(float* A) {
  constexpr int kHalf = kChunk / 2, kPer = kHalf * kHalf / kPrepareThreads, kAcross = kHalf / kPer;
  if (threadIdx.x < kChunk) {
    const int j = threadIdx.x % kHalf;
    float* own = A + threadIdx.x / kHalf * kHalf * (kMatrixStride + 1);
    float column[kHalf];
#pragma unroll
    for (int i = 0; i < kHalf; ++i) {
      float sum[4] = {};
#pragma unroll
      for (int k = 0; k < i; ++k) sum[k % 4] = fmaf(own[i * kMatrixStride + k], column[k], sum[k % 4]);
      column[i] = (i == j ? 1.0f : 0.0f) - ((sum[0] + sum[1]) + (sum[2] + sum[3]));
    }
    __syncwarp();  // the warp has read its half
#pragma unroll
    for (int i = 0; i < kHalf; ++i) own[i * kMatrixStride + j] = column[i];
  }
  __syncthreads();
  float *A21 = A + kHalf * kMatrixStride, *M = A + kHalf, *T22 = A21 + kHalf;  // M: the block above the diagonal
  const int row = threadIdx.x / kAcross, column0 = threadIdx.x % kAcross * kPer;
  const auto product = [&](const float* left, const float* right, float(&sum)[kPer]) {
#pragma unroll 8
    for (int k = 0; k < kHalf; ++k)
#pragma unroll
      for (int c = 0; c < kPer; ++c)
        sum[c] = fmaf(left[row * kMatrixStride + k], right[k * kMatrixStride + column0 + c], sum[c]);
  };
  float sum[kPer] = {};
  product(A21, A, sum);
#pragma unroll
  for (int c = 0; c < kPer; ++c) M[row * kMatrixStride + column0 + c] = sum[c], sum[c] = 0;
  __syncthreads();
  product(T22, M, sum);
#pragma unroll
  for (int c = 0; c < kPer; ++c) A21[row * kMatrixStride + column0 + c] = -sum[c];
  __syncthreads();
}

__global__ void __launch_bounds__(kPrepareThreads)
    delta_prepare(const __grid_constant__ DeltaChunks chunks, const __grid_constant__ RecurInputs<bf16_t> in,
                  RecurShape s) {
  extern __shared__ __align__(16) std::byte prepare_shared[];
  bf16_t* keys = reinterpret_cast<bf16_t*>(prepare_shared);
  bf16_t* queries = keys + kChunk * kHeadStride;
  float *A = reinterpret_cast<float*>(queries + kChunk * kHeadStride), *sums = A + kChunk * kMatrixStride,
        *betas = sums + kChunk, *k_scales = betas + kChunk, *q_scales = k_scales + kChunk;
  const int number = blockIdx.x, h = blockIdx.y, hk = h / (s.Hv / s.Hk);
  const int warp = threadIdx.x / kWarp, lane = threadIdx.x % kWarp;
  const SegmentedBatch& batch = chunks.batch;

  int low = 0, high = batch.segments;
  while (high - low > 1) {
    const int middle = (low + high) / 2;
    (chunks.first_number(middle) <= number ? low : high) = middle;
  }
  const int b = batch.segment_sequence[low];
  if (!batch.runs(b) || !batch.has_many_rows(b)) return;
  const Segment segment = batch.at(low, b);
  const int chunk = number - chunks.first_number(low);
  if (chunk >= chunks_of(segment)) return;
  const ChunkRows rows = chunk_rows(segment, chunk);

  copy_rows_async(keys, kHeadStride, in.k[rows.begin] + hk * kHeadSize, in.k.stride, kChunk, kHeadSize, rows.count,
                  kPrepareThreads);
  copy_rows_async(queries, kHeadStride, in.q[rows.begin] + hk * kHeadSize, in.q.stride, kChunk, kHeadSize, rows.count,
                  kPrepareThreads);
  end_copy_group();
  if (threadIdx.x < kChunk) {
    const int i = threadIdx.x;
    const bool seen = i < rows.count;
    const int64_t at = int64_t{rows.begin + (seen ? i : 0)} * s.Hv + h;
    float sum = seen ? in.g[at] : 0;
#pragma unroll
    for (int step = 1; step < kWarp; step *= 2) {
      const float before = __shfl_up_sync(kAllLanes, sum, step);
      if (lane >= step) sum += before;
    }
    sums[i] = sum;
    betas[i] = seen ? in.beta[at] : 0;
  }
  wait_copies<0>();
  __syncthreads();
  if (warp == 1) sums[kWarp + lane] += sums[kWarp - 1];
  for (int i = warp; i < kChunk; i += kPrepareThreads / kWarp) {
    const float of_k = l2_scale(keys + i * kHeadStride, kHeadSize, lane),
                of_q = l2_scale(queries + i * kHeadStride, kHeadSize, lane);
    if (lane == 0) k_scales[i] = of_k, q_scales[i] = __fmul_rn(of_q, s.scale);
  }
  __syncthreads();

  PreparedChunk& to = chunks.prepared[int64_t{number} * s.Hv + h];
  {
    float kk[kChunk / 8][4] = {}, qk[kChunk / 8][4] = {};
#pragma unroll 2
    for (int d = 0; d < kHeadSize; d += 16) {
      uint32_t k[4], q[4];
      load_a(k, keys, kHeadStride, warp * 16, d, lane);
      load_a(q, queries, kHeadStride, warp * 16, d, lane);
#pragma unroll
      for (int n = 0; n < kChunk / 16; ++n) {
        if (n > warp) continue;  // columns behind the rows
        uint32_t columns[4];
        load_b(columns, keys, kHeadStride, n * 16, d, lane);
        mma_bf16(kk[2 * n], k[0], k[1], k[2], k[3], columns[0], columns[1]);
        mma_bf16(kk[2 * n + 1], k[0], k[1], k[2], k[3], columns[2], columns[3]);
        mma_bf16(qk[2 * n], q[0], q[1], q[2], q[3], columns[0], columns[1]);
        mma_bf16(qk[2 * n + 1], q[0], q[1], q[2], q[3], columns[2], columns[3]);
      }
    }
#pragma unroll
    for (int n = 0; n < kChunk / 8; ++n)
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        const int i = warp * 16 + lane / 4 + 8 * half;
        float p[2];
#pragma unroll
        for (int e = 0; e < 2; ++e) {
          const int j = n * 8 + lane % 4 * 2 + e;
          const float decay = j <= i ? __fmul_rn(expf(sums[i] - sums[j]), k_scales[j]) : 0;
          A[i * kMatrixStride + j] =
              j < i ? __fmul_rn(__fmul_rn(betas[i], k_scales[i]), __fmul_rn(decay, kk[n][2 * half + e])) : 0;
          p[e] = j <= i ? __fmul_rn(__fmul_rn(q_scales[i], decay), qk[n][2 * half + e]) : 0;
        }
        store_split(to.P_high, to.P_low, i * kChunk + n * 8 + lane % 4 * 2, p[0], p[1]);
      }
  }
  __syncthreads();
  invert_lower(A);
  for (int at = threadIdx.x * 2; at < kChunk * kChunk; at += kPrepareThreads * 2) {
    const int i = at / kChunk, j = at % kChunk;
    const float *T = A + i * kMatrixStride + j, a = j <= i ? T[0] : 0, b = j + 1 <= i ? T[1] : 0;
    store_split(to.T_high, to.T_low, at, a, b);
  }
  if (const int i = threadIdx.x; i < kChunk) {
    const float grown = expf(sums[i]), end = sums[kChunk - 1];
    to.beta[i] = betas[i];
    to.of_k[i] = __fmul_rn(grown, k_scales[i]);
    to.of_q[i] = __fmul_rn(grown, q_scales[i]);
    to.to_end[i] = i < rows.count ? __fmul_rn(expf(end - sums[i]), k_scales[i]) : 0;
    if (i < 4) to.decay[i] = expf(end);
  }
}

// Inputs of a chunk in shared memory.
struct DeltaTiles {
  bf16_t keys[kChunk * kHeadStride], queries[kChunk * kHeadStride], values[kChunk * kColumnStride],
      T_high[kChunk * kChunkStride], T_low[kChunk * kChunkStride], P_high[kChunk * kChunkStride],
      P_low[kChunk * kChunkStride];
  float beta[kChunk], of_k[kChunk], of_q[kChunk], to_end[kChunk], decay[4];
};
struct DeltaShared {
  DeltaTiles tiles[2];
  SplitState state;
  bf16_t R_high[kChunk * kColumnStride], R_low[kChunk * kColumnStride];
  bf16_t u_high[kChunk * kColumnStride], u_low[kChunk * kColumnStride], kept_high[kChunk * kColumnStride],
      kept_low[kChunk * kColumnStride];
};

__global__ void __launch_bounds__(kWalkThreads, 1)
    delta_walk(const __grid_constant__ DeltaChunks chunks, const __grid_constant__ RecurInputs<bf16_t> in, RecurShape s,
               float* state, bf16_t* out) {
  extern __shared__ __align__(16) std::byte walk_shared[];
  DeltaShared& shared = *reinterpret_cast<DeltaShared*>(walk_shared);
  const int b = blockIdx.x, h = blockIdx.y, hk = h / (s.Hv / s.Hk), c0 = blockIdx.z * kColumns;
  const int warp = threadIdx.x / kWarp, lane = threadIdx.x % kWarp;
  // Of the warp's 16 x 16 results of [64, 32], and of the thread's first.
  const int row0 = warp % 4 * 16, column0 = warp / 4 * 16, row = row0 + lane / 4, column = column0 + lane % 4 * 2;
  const SegmentedBatch& batch = chunks.batch;
  if (!batch.runs(b) || !batch.has_many_rows(b)) return;

  const auto load_chunk = [&](const ChunkCursor& at, DeltaTiles& to) {
    const ChunkRows rows = chunk_rows(at.segment, at.chunk);
    const PreparedChunk& from = chunks.prepared[int64_t{chunks.first_number(at.segment_number) + at.chunk} * s.Hv + h];
    const auto matrix = [&](bf16_t* to_tile, const bf16_t* from_chunk) {
      copy_rows_async(to_tile, kChunkStride, from_chunk, kChunk, kChunk, kChunk, kChunk, kWalkThreads);
    };
    copy_rows_async(to.keys, kHeadStride, in.k[rows.begin] + hk * kHeadSize, in.k.stride, kChunk, kHeadSize, rows.count,
                    kWalkThreads);
    copy_rows_async(to.queries, kHeadStride, in.q[rows.begin] + hk * kHeadSize, in.q.stride, kChunk, kHeadSize,
                    rows.count, kWalkThreads);
    copy_rows_async(to.values, kColumnStride, in.v[rows.begin] + h * s.Dv + c0, in.v.stride, kChunk, kColumns,
                    rows.count, kWalkThreads);
    matrix(to.T_high, from.T_high), matrix(to.T_low, from.T_low);
    matrix(to.P_high, from.P_high), matrix(to.P_low, from.P_low);
    constexpr int kFactors = kChunk + 1;  // 16 bytes each
    if (threadIdx.x < kFactors) copy_16_async(to.beta + threadIdx.x * 4, from.beta + threadIdx.x * 4, true);
  };

  StateTile S(shared.state, state + int64_t{h} * kHeadSize * s.Dv + c0, int64_t{s.Hv} * kHeadSize * s.Dv, s.Dv);
  ChunkCursor next(batch, b);
  const auto load_next = [&](DeltaTiles& to) {
    if (next.there(batch, b)) load_chunk(next, to), ++next.chunk;
    end_copy_group();
  };
  int place = 0;
  load_next(shared.tiles[place]);
  for (int number = batch.first(b); batch.belongs(number, b); ++number) {
    const Segment segment = batch.at(number, b);
    S.load(segment.folded > 0 ? segment.dst : segment.src);  // `recur` has folded it there
    const int certain = certain_chunks(segment), all = chunks_of(segment);
    if (certain == 0) S.store(segment.dst);
    for (int chunk = 0; chunk < all; ++chunk, place ^= 1) {
      wait_copies<0>();
      __syncthreads();  // the tiles and S are there, and nobody reads the tiles before them
      load_next(shared.tiles[place ^ 1]);
      const DeltaTiles& tiles = shared.tiles[place];
      const ChunkRows rows = chunk_rows(segment, chunk);

      float ks[2][4] = {}, o[2][4] = {};
#pragma unroll
      for (int d = 0; d < kHeadSize; d += 16) {
        uint32_t k[4], q[4], high[4], low[4];
        load_a(k, tiles.keys, kHeadStride, row0, d, lane);
        load_a(q, tiles.queries, kHeadStride, row0, d, lane);
        load_b_as_stored(high, shared.state.high, kColumnStride, d, column0, lane);
        load_b_as_stored(low, shared.state.low, kColumnStride, d, column0, lane);
        mma_exact(ks, k, high, low);
        mma_exact(o, q, high, low);
      }
#pragma unroll
      for (int n = 0; n < 2; ++n)
#pragma unroll
        for (int half = 0; half < 2; ++half) {
          const int i = row + 8 * half, at = i * kColumnStride + column + n * 8;
          const float beta = tiles.beta[i], of_k = tiles.of_k[i];
          store_split(shared.R_high, shared.R_low, at,
                      __fmul_rn(beta, fmaf(-of_k, ks[n][2 * half], to_float(tiles.values[at]))),
                      __fmul_rn(beta, fmaf(-of_k, ks[n][2 * half + 1], to_float(tiles.values[at + 1]))));
        }
      __syncthreads();

      float u[2][4] = {};
#pragma unroll
      for (int j = 0; j < kChunk; j += 16) {
        if (j > row0) continue;
        uint32_t T[4], T_rest[4], high[4], low[4];
        load_a(T, tiles.T_high, kChunkStride, row0, j, lane);
        load_a(T_rest, tiles.T_low, kChunkStride, row0, j, lane);
        load_b_as_stored(high, shared.R_high, kColumnStride, j, column0, lane);
        load_b_as_stored(low, shared.R_low, kColumnStride, j, column0, lane);
        mma_split(u, T, T_rest, high, low);
      }
#pragma unroll
      for (int n = 0; n < 2; ++n)
#pragma unroll
        for (int half = 0; half < 2; ++half) {
          const int i = row + 8 * half, at = i * kColumnStride + column + n * 8;
          const float x = u[n][2 * half], y = u[n][2 * half + 1], to_end = tiles.to_end[i];
          store_split(shared.u_high, shared.u_low, at, x, y);
          store_split(shared.kept_high, shared.kept_low, at, __fmul_rn(x, to_end), __fmul_rn(y, to_end));
        }
      __syncthreads();

      if (chunk < certain) {
        S.shrink(tiles.decay[0]);
#pragma unroll
        for (int j = 0; j < kChunk; j += 16) {
          uint32_t k[4];
          load_a_transposed(k, tiles.keys, kHeadStride, j, warp * 16, lane);
#pragma unroll
          for (int n = 0; n < kColumns / 16; ++n) {
            uint32_t high[4], low[4];
            load_b_as_stored(high, shared.kept_high, kColumnStride, j, n * 16, lane);
            load_b_as_stored(low, shared.kept_low, kColumnStride, j, n * 16, lane);
            mma_exact(S.S[n], k, high, low);
          }
        }
        S.share();
        if (chunk + 1 == certain) S.store(segment.dst);
      }

#pragma unroll
      for (int n = 0; n < 2; ++n)
#pragma unroll
        for (int i = 0; i < 4; ++i) o[n][i] = __fmul_rn(o[n][i], tiles.of_q[row + i / 2 * 8]);
#pragma unroll
      for (int j = 0; j < kChunk; j += 16) {
        if (j > row0) continue;
        uint32_t P[4], P_rest[4], high[4], low[4];
        load_a(P, tiles.P_high, kChunkStride, row0, j, lane);
        load_a(P_rest, tiles.P_low, kChunkStride, row0, j, lane);
        load_b_as_stored(high, shared.u_high, kColumnStride, j, column0, lane);
        load_b_as_stored(low, shared.u_low, kColumnStride, j, column0, lane);
        mma_split(o, P, P_rest, high, low);
      }
#pragma unroll
      for (int n = 0; n < 2; ++n)
#pragma unroll
        for (int half = 0; half < 2; ++half)
          if (const int i = row + 8 * half; i < rows.count)
            *reinterpret_cast<uint32_t*>(out + (int64_t{rows.begin + i} * s.Hv + h) * s.Dv + c0 + column + n * 8) =
                bf16_pair(o[n][2 * half], o[n][2 * half + 1]);
    }
  }
  wait_copies<0>();
}

}  // namespace calandra::cuda

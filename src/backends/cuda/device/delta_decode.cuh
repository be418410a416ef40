// The gated delta rule and the gated norm behind it, for few rows of each sequence. The operations are those of
// device/recur.cuh and norm.cu, and so are the bits.
//
// A block has one sequence and one value head, whose state is in its registers: a thread has four neighbouring columns
// and, as there, every fourth row of them. The state, with what is pending folded in, is read before the wait for the
// kernel in front; then everything that the rows need is staged at once, in 16 (5 kHeadDim + 2) floats of shared
// memory. Bound by the read and write of S, with 55 to 70 % of the memory's speed for 16 to 64 sequences of 9B
// (bench/results/cuda_prefill.md); at batch 1 by latency.
#pragma once

#include "backends/cuda/device/pipeline.cuh"
#include "backends/cuda/device/recur.cuh"

namespace calandra::cuda {

struct NormOfHeads {
  const float* weight;  // [Dv]
  float eps;
  bool silu;
};

constexpr int kMostSteps = kTokens;  // rows of a sequence

// The first segment of sequence b, which runs, and its number. Where sequences have one segment each it is found by
// reads that do not wait for each other.
__device__ __forceinline__ Segment first_segment(const SegmentedBatch& batch, int b, int& number) {
  const int guess = min(b, batch.segments - 1);
  const int* owners = batch.segment_sequence;
  const int owner = owners[guess], before = guess > 0 ? owners[guess - 1] : -1,
            after = guess + 1 < batch.segments ? owners[guess + 1] : -1, drafts = batch.draft_count[b];
  Segment segment;
  segment.begin = batch.segment_start[guess];
  segment.end = batch.segment_start[guess + 1];
  segment.src = batch.state_src[guess];
  segment.dst = batch.state_dst[guess];
  segment.drafts_begin = segment.end - (after == b ? 0 : drafts);
  if (owner == b && before != b) {
    number = guess;
    segment.folded = segment.src >= 0 ? batch.accepted[segment.src] : 0;
    return segment;
  }
  number = batch.first(b);
  return batch.at(number, b);
}

constexpr int kHeadDim = 128;  // of keys and values
constexpr int kTogether = 4;   // columns of a thread
constexpr int kDecodeThreads = kHeadDim / kTogether * kParts;
constexpr size_t kDeltaDecodeBytes = sizeof(float) * kTokens * (5 * kHeadDim + 2);

// Dk and Dv are kHeadDim.
template <class T>
__global__ void __launch_bounds__(kDecodeThreads, 3)
    delta_decode(const __grid_constant__ SegmentedBatch batch, const __grid_constant__ RecurInputs<T> in,
                 const __grid_constant__ RecurShape s, float* state, Rows<const T> z, NormOfHeads norm, T* out) {
  extern __shared__ float shared[];
  constexpr int D = kHeadDim, R = D / kParts;  // R: rows of S of a thread
  float *keys = shared, *queries = keys + kTokens * D, *values = queries + kTokens * D, *gates = values + kTokens * D,
        *head = gates + kTokens * D, *decays = head + kTokens * D, *betas = decays + kTokens;
  const int h = blockIdx.x, b = blockIdx.y, hk = h / (s.Hv / s.Hk);
  const int warp = threadIdx.x / kWarp, lane = threadIdx.x % kWarp, part = lane / 8,
            c = (warp * 8 + lane % 8) * kTogether;
  using Together = float[kTogether];
  let_next_grid_begin();

  const int begin = batch.query_start[b], rows = batch.query_start[b + 1] - begin;
  float S[R][kTogether];
  const auto state_of = [&](int slot) { return state + (int64_t{slot} * s.Hv + h) * D * D + c; };
  const auto sum_of_parts = [](Together& sum) {
#pragma unroll
    for (int e = 0; e < kTogether; ++e) {
      sum[e] += __shfl_xor_sync(kAllLanes, sum[e], 8);
      sum[e] += __shfl_xor_sync(kAllLanes, sum[e], 16);
    }
  };
  const auto update = [&](int token) {
    const float *k = keys + token * D, decay = decays[token];
    Together change{};
#pragma unroll
    for (int r = 0; r < R; ++r) {
      const int i = r * kParts + part;
      const float key = k[i];
#pragma unroll
      for (int e = 0; e < kTogether; ++e) {
        S[r][e] = __fmul_rn(S[r][e], decay);
        change[e] = fmaf(S[r][e], key, change[e]);
      }
    }
    sum_of_parts(change);
    asm volatile("" ::: "memory");  // keys are read again, for want of registers
#pragma unroll
    for (int e = 0; e < kTogether; ++e)
      change[e] = __fmul_rn(betas[token], __fsub_rn(values[token * D + c + e], change[e]));
#pragma unroll
    for (int r = 0; r < R; ++r) {
      const int i = r * kParts + part;
      const float key = k[i];
#pragma unroll
      for (int e = 0; e < kTogether; ++e) S[r][e] = fmaf(key, change[e], S[r][e]);
    }
  };
  const auto read = [&](int token, Together& sum) {
    const float* q = queries + token * D;
#pragma unroll
    for (int r = 0; r < R; ++r) {
      const int i = r * kParts + part;
      const float query = q[i];
#pragma unroll
      for (int e = 0; e < kTogether; ++e) sum[e] = fmaf(S[r][e], query, sum[e]);
    }
    sum_of_parts(sum);
  };

  if (!batch.runs(b)) {
    wait_for_grid();
    for (int i = threadIdx.x; i < rows * D; i += kDecodeThreads)
      head[i] = 0, gates[i] = to_float(z[begin + i / D][h * D + i % D]);
  } else {
    int number;
    Segment segment = first_segment(batch, b, number);
    for (;; segment = batch.at(number, b)) {
      const float* from = segment.src >= 0 ? state_of(segment.src) : nullptr;
#pragma unroll
      for (int r = 0; r < R; ++r) {
        const int i = r * kParts + part;
        if (from != nullptr) {
          load_floats(from + int64_t{i} * D, S[r]);
        } else {
#pragma unroll
          for (int e = 0; e < kTogether; ++e) S[r][e] = 0;
        }
      }
      for (int j0 = 0; j0 < segment.folded; j0 += kTokens) {
        const int count = min(kTokens, segment.folded - j0);
        __syncthreads();
#pragma unroll 1
        for (int i = threadIdx.x; i < count * D; i += kDecodeThreads) {
          const int64_t row = int64_t{segment.src} * s.M + j0 + i / D;
          keys[i] = in.pending_k[(row * s.Hk + hk) * D + i % D];
        }
#pragma unroll 1
        for (int i = threadIdx.x; i < count * D; i += kDecodeThreads) {
          const int64_t row = int64_t{segment.src} * s.M + j0 + i / D;
          values[i] = in.pending_v[(row * s.Hv + h) * D + i % D];
        }
        if (threadIdx.x < count) {
          const int64_t row = (int64_t{segment.src} * s.M + j0 + threadIdx.x) * s.Hv + h;
          decays[threadIdx.x] = expf(in.pending_g[row]);
          betas[threadIdx.x] = in.pending_beta[row];
        }
        __syncthreads();
#pragma unroll 1
        for (int j = 0; j < count; ++j) update(j);
      }
      const auto store_state = [&] {
        float* to = state_of(segment.dst);
#pragma unroll
        for (int r = 0; r < R; ++r) {
          const int i = r * kParts + part;
          store_some(to + int64_t{i} * D, S[r], kTogether, true);
        }
      };
      wait_for_grid();
      if (segment.drafts_begin == segment.begin) store_state();
      const int count = segment.end - segment.begin, at = segment.begin - begin;
      __syncthreads();
      // A warp has a row's key, query, value or gate.
#pragma unroll 1
      for (int i = warp; i < 4 * count; i += kDecodeThreads / kWarp) {
        const int j = i / 4, what = i % 4, t = segment.begin + j;
        const T* from = what == 0   ? in.k[t] + hk * D
                        : what == 1 ? in.q[t] + hk * D
                        : what == 2 ? in.v[t] + h * D
                                    : z[t] + h * D;
        float* to = what == 0   ? keys + j * D
                    : what == 1 ? queries + j * D
                    : what == 2 ? values + j * D
                                : gates + (at + j) * D;
        float x[D / kWarp], squares = 0;
#pragma unroll
        for (int n = 0; n < D / kWarp; ++n) x[n] = to_float(from[n * kWarp + lane]);
#pragma unroll
        for (int n = 0; n < D / kWarp; ++n) squares = fmaf(x[n], x[n], squares);
        const float scale = what < 2 ? 1.0f / sqrtf(warp_sum(squares) + 1e-6f) : 1;
#pragma unroll
        for (int n = 0; n < D / kWarp; ++n) to[n * kWarp + lane] = what < 2 ? __fmul_rn(x[n], scale) : x[n];
      }
      if (threadIdx.x < count) {
        const int64_t row = (int64_t{segment.begin} + threadIdx.x) * s.Hv + h;
        decays[threadIdx.x] = expf(in.g[row]);
        betas[threadIdx.x] = in.beta[row];
      }
      __syncthreads();
#pragma unroll 1
      for (int j = 0; j < count; ++j) {
        update(j);
        Together y{};
        read(j, y);
        if (part == 0)
#pragma unroll
          for (int e = 0; e < kTogether; ++e) head[(at + j) * D + c + e] = rounded<T>(__fmul_rn(y[e], s.scale));
        if (segment.begin + j + 1 == segment.drafts_begin) store_state();  // what follows are drafts
      }
      if (!batch.belongs(++number, b)) break;
    }
  }

  __syncthreads();
  for (int j = warp; j < rows; j += kDecodeThreads / kWarp) {
    const float *y = head + j * D, *gate = gates + j * D;
    float sum = 0;
    for (int i = lane; i < D; i += kWarp) sum = fmaf(y[i], y[i], sum);
    const float scale = 1.0f / sqrtf(warp_sum(sum) / static_cast<float>(D) + norm.eps);
    for (int i = lane; i < D; i += kWarp) {
      const float normed = y[i] * scale * norm.weight[i] * (norm.silu ? silu(gate[i]) : sigmoid(gate[i]));
      out[(int64_t{begin + j} * s.Hv + h) * D + i] = from_float<T>(normed);
    }
  }
}

}  // namespace calandra::cuda

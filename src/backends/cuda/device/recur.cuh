// The recurrent form of linear attention with a state S [Dk, Dv] per head, for the gated delta rule and for lightning
// attention: tokens in order, S in registers.
//
// A block of 4 warps has one sequence, one value head and 32 columns of S; 4 threads share a column, each with every
// fourth row of it (R of them), and add their parts of a sum over Dk by two shuffles. Queries, keys and values of 16
// tokens at a time go through shared memory: 16 (2 Dk + 32 + 2) floats, 18.5 kB for Dk 128. Segments of a sequence are
// walked in order; S is written at each segment's end, before its drafts. Pending inputs are written by kernels of
// their own behind this one, since other blocks still read them here. Decode is bound by the read and write of S; a
// prompt by the latency of one token after the other. Products and sums are explicit, so that folding, decoding and
// verifying are the same operations.
//
// With few_only, sequences of many rows are another kernel's, which begins from what their pending inputs are folded
// into here: the slot that their first segment writes.
#pragma once

#include <algorithm>

#include "backends/cuda/device/launch.cuh"
#include "backends/cuda/device/pipeline.cuh"
#include "backends/cuda/device/reduce.cuh"
#include "backends/cuda/device/rows.cuh"
#include "backends/cuda/device/segments.cuh"
#include "backends/cuda/device/vec.cuh"

namespace calandra::cuda {

constexpr int kRecurThreads = 128;
constexpr int kColumns = 32;  // of S in a block
constexpr int kParts = 4;     // threads of a column
constexpr int kTokens = 16;   // staged at once

// 1 / sqrt(sum(x^2) + 1e-6) of D numbers; every lane of the warp gets it.
template <class T>
__device__ __forceinline__ float l2_scale(const T* x, int D, int lane) {
  float sum = 0;
  for (int i = lane; i < D; i += kWarp) {
    const float v = to_float(x[i]);
    sum = fmaf(v, v, sum);
  }
  return 1.0f / sqrtf(warp_sum(sum) + 1e-6f);
}

struct RecurShape {
  int Hk, Hv, Dk, Dv, M;  // M: pending capacity
  float scale;            // of outputs
};

// Inputs of the rows, and those pending in slots.
template <class T>
struct RecurInputs {
  Rows<const T> q, k, v;                                          // [rows, H, D]
  const float *g, *beta;                                          // [rows, Hv], dense; lightning: g is the slope [Hv]
  const float *pending_k, *pending_v, *pending_g, *pending_beta;  // [slots, M, H, D]
};

template <class T, int R, bool kDelta>
__global__ void __launch_bounds__(kRecurThreads)
    recur(SegmentedBatch batch, RecurInputs<T> in, RecurShape s, bool few_only, float* state, T* out) {
  extern __shared__ float shared[];
  float *keys = shared, *queries = keys + kTokens * s.Dk, *values = queries + kTokens * s.Dk,
        *decays = values + kTokens * kColumns, *betas = decays + kTokens;
  const int b = blockIdx.x, h = blockIdx.y, hk = h / (s.Hv / s.Hk), c0 = blockIdx.z * kColumns;
  const int warp = threadIdx.x / kWarp, lane = threadIdx.x % kWarp, part = lane / 8, column = warp * 8 + lane % 8,
            c = c0 + column;
  const bool own = c < s.Dv;

  if (!batch.runs(b)) {
    for (int t = batch.query_start[b]; t < batch.query_start[b + 1]; ++t)
      if (part == 0 && own) out[(int64_t{t} * s.Hv + h) * s.Dv + c] = from_float<T>(0);
    return;
  }
  const bool fold_only = few_only && batch.has_many_rows(b);
  if (fold_only && batch.at(batch.first(b), b).folded == 0) return;
  float S[R];
  const auto state_of = [&](int slot) { return state + (int64_t{slot} * s.Hv + h) * s.Dk * s.Dv; };
  // One token out of shared memory; its output when wanted.
  const auto update = [&](int token) {
    const float *k = keys + token * s.Dk, decay = decays[token], v = values[token * kColumns + column];
    float change = v;
    if constexpr (kDelta) {
      float seen = 0;
#pragma unroll
      for (int r = 0; r < R; ++r) {
        S[r] = __fmul_rn(S[r], decay);
        const int i = r * kParts + part;
        if (i < s.Dk) seen = fmaf(S[r], k[i], seen);
      }
      seen += __shfl_xor_sync(kAllLanes, seen, 8);
      seen += __shfl_xor_sync(kAllLanes, seen, 16);
      change = __fmul_rn(betas[token], __fsub_rn(v, seen));
    } else {
#pragma unroll
      for (int r = 0; r < R; ++r) S[r] = __fmul_rn(S[r], decay);
    }
#pragma unroll
    for (int r = 0; r < R; ++r) {
      const int i = r * kParts + part;
      if (i < s.Dk) S[r] = fmaf(k[i], change, S[r]);
    }
  };
  const auto read = [&](int token) {
    const float* q = queries + token * s.Dk;
    float sum = 0;
#pragma unroll
    for (int r = 0; r < R; ++r) {
      const int i = r * kParts + part;
      if (i < s.Dk) sum = fmaf(S[r], q[i], sum);
    }
    sum += __shfl_xor_sync(kAllLanes, sum, 8);
    sum += __shfl_xor_sync(kAllLanes, sum, 16);
    return __fmul_rn(sum, s.scale);
  };

  for (int segment_number = batch.first(b); batch.belongs(segment_number, b); ++segment_number) {
    const Segment segment = batch.at(segment_number, b);
    {
      const float* from = segment.src >= 0 ? state_of(segment.src) : nullptr;
#pragma unroll
      for (int r = 0; r < R; ++r) {
        const int i = r * kParts + part;
        S[r] = from != nullptr && own && i < s.Dk ? from[int64_t{i} * s.Dv + c] : 0;
      }
    }
    for (int j0 = 0; j0 < segment.folded; j0 += kTokens) {
      const int count = min(kTokens, segment.folded - j0);
      __syncthreads();
      for (int i = threadIdx.x; i < count * s.Dk; i += kRecurThreads) {
        const int64_t row = int64_t{segment.src} * s.M + j0 + i / s.Dk;
        keys[i] = in.pending_k[(row * s.Hk + hk) * s.Dk + i % s.Dk];
      }
      for (int i = threadIdx.x; i < count * kColumns; i += kRecurThreads) {
        const int64_t row = int64_t{segment.src} * s.M + j0 + i / kColumns;
        const int d = c0 + i % kColumns;
        values[i] = d < s.Dv ? in.pending_v[(row * s.Hv + h) * s.Dv + d] : 0;
      }
      if (threadIdx.x < count) {
        const int64_t row = int64_t{segment.src} * s.M + j0 + threadIdx.x;
        decays[threadIdx.x] = expf(kDelta ? in.pending_g[row * s.Hv + h] : -in.g[h]);
        if constexpr (kDelta) betas[threadIdx.x] = in.pending_beta[row * s.Hv + h];
      }
      __syncthreads();
      for (int j = 0; j < count; ++j) update(j);
    }
    const auto store_state = [&] {
      float* to = state_of(segment.dst);
#pragma unroll
      for (int r = 0; r < R; ++r) {
        const int i = r * kParts + part;
        if (own && i < s.Dk) to[int64_t{i} * s.Dv + c] = S[r];
      }
    };
    if (segment.drafts_begin == segment.begin || fold_only) store_state();
    if (fold_only) return;
    for (int t0 = segment.begin; t0 < segment.end; t0 += kTokens) {
      const int count = min(kTokens, segment.end - t0);
      __syncthreads();
      for (int j = warp; j < count; j += kRecurThreads / kWarp) {
        const T *k = in.k[t0 + j] + hk * s.Dk, *q = in.q[t0 + j] + hk * s.Dk;
        const float k_scale = kDelta ? l2_scale(k, s.Dk, lane) : 1, q_scale = kDelta ? l2_scale(q, s.Dk, lane) : 1;
        for (int i = lane; i < s.Dk; i += kWarp) {
          keys[j * s.Dk + i] = __fmul_rn(to_float(k[i]), k_scale);
          queries[j * s.Dk + i] = __fmul_rn(to_float(q[i]), q_scale);
        }
        const int d = c0 + lane;
        values[j * kColumns + lane] = d < s.Dv ? to_float(in.v[t0 + j][h * s.Dv + d]) : 0;
      }
      if (threadIdx.x < count) {
        const int64_t row = t0 + static_cast<int>(threadIdx.x);
        decays[threadIdx.x] = expf(kDelta ? in.g[row * s.Hv + h] : -in.g[h]);
        if constexpr (kDelta) betas[threadIdx.x] = in.beta[row * s.Hv + h];
      }
      __syncthreads();
      for (int j = 0; j < count; ++j) {
        update(j);
        const float y = read(j);
        if (part == 0 && own) out[(int64_t{t0 + j} * s.Hv + h) * s.Dv + c] = from_float<T>(y);
        if (t0 + j + 1 == segment.drafts_begin) store_state();  // what follows are drafts
      }
    }
  }
}

// The draft rows' inputs become pending in the slot that the sequence's last segment wrote. One block per sequence and
// draft.
template <class T, bool kDelta>
__global__ void __launch_bounds__(kRecurThreads)
    keep_pending(SegmentedBatch batch, RecurInputs<T> in, RecurShape s, float* pending_k, float* pending_v,
                 float* pending_g, float* pending_beta) {
  const int b = blockIdx.x, j = blockIdx.y;
  begin_as_follower();
  if (!batch.runs(b) || j >= batch.draft_count[b]) return;
  const Segment segment = batch.last(b);
  const int t = segment.drafts_begin + j, warp = threadIdx.x / kWarp, lane = threadIdx.x % kWarp;
  const int64_t row = int64_t{segment.dst} * s.M + j;
  for (int h = warp; h < s.Hk; h += kRecurThreads / kWarp) {
    const T* k = in.k[t] + h * s.Dk;
    const float scale = kDelta ? l2_scale(k, s.Dk, lane) : 1;
    for (int i = lane; i < s.Dk; i += kWarp) pending_k[(row * s.Hk + h) * s.Dk + i] = __fmul_rn(to_float(k[i]), scale);
  }
  for (int i = threadIdx.x; i < s.Hv * s.Dv; i += kRecurThreads)
    pending_v[row * s.Hv * s.Dv + i] = to_float(in.v[t][i]);
  if constexpr (kDelta)
    for (int h = threadIdx.x; h < s.Hv; h += kRecurThreads) {
      pending_g[row * s.Hv + h] = in.g[int64_t{t} * s.Hv + h];
      pending_beta[row * s.Hv + h] = in.beta[int64_t{t} * s.Hv + h];
    }
}

// Behind the rule, which reads the pending inputs that these replace. False: nothing is launched, as there are no
// drafts.
template <class T, bool kDelta>
bool run_keep_pending(cudaStream_t stream, const SegmentedBatch& segments, const Batch& batch, const RecurInputs<T>& in,
                      const RecurShape& s, float* pending_k, float* pending_v, float* pending_g, float* pending_beta) {
  const int64_t drafts = std::min<int64_t>(s.M, batch.max_drafts);
  if (drafts == 0) return false;
  launch_follower(keep_pending<T, kDelta>,
                  dim3(static_cast<unsigned>(batch.sequences()), static_cast<unsigned>(drafts)), dim3(kRecurThreads), 0,
                  stream, segments, in, s, pending_k, pending_v, pending_g, pending_beta);
  return true;
}

template <class T, bool kDelta>
void run_recurrence(cudaStream_t stream, const SegmentedBatch& batch, int sequences, const RecurInputs<T>& in,
                    const RecurShape& s, bool few_only, float* S, T* out) {
  const dim3 grid(sequences, s.Hv, blocks_for(s.Dv, kColumns));
  const size_t bytes = sizeof(float) * kTokens * (2 * s.Dk + kColumns + 2);
  if (s.Dk <= 8 * kParts)
    recur<T, 8, kDelta><<<grid, kRecurThreads, bytes, stream>>>(batch, in, s, few_only, S, out);
  else
    recur<T, 32, kDelta><<<grid, kRecurThreads, bytes, stream>>>(batch, in, s, few_only, S, out);
}

}  // namespace calandra::cuda

// The gated delta rule and the gated norm behind it, for few rows of each sequence. The operations are those of
// device/recur.cuh and norm.cu, and so are the bits.
//
// A block has one sequence, one value head and 32 columns of its state; the blocks of a head are a cluster. Everything
// that the rows need is staged at once. A head's outputs, which its norm wants whole, go through the shared memory of
// the cluster: rows (2 Dk + 32 + Dv) + 16 more floats. Bound by the read and write of S, at batch 1 by latency.
#pragma once

#include <cooperative_groups.h>

#include <utility>

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

constexpr size_t delta_decode_bytes(int Dk, int Dv) {
  return sizeof(float) * kTokens * static_cast<size_t>(2 * Dk + 2 * kColumns + Dv + 2);
}

template <class T, int R>
__global__ void __launch_bounds__(kRecurThreads)
    delta_decode(const __grid_constant__ SegmentedBatch batch, const __grid_constant__ RecurInputs<T> in,
                 const __grid_constant__ RecurShape s, float* state, Rows<const T> z, NormOfHeads norm, T* out) {
  namespace cg = cooperative_groups;
  extern __shared__ float shared[];
  float *keys = shared, *queries = keys + kTokens * s.Dk, *values = queries + kTokens * s.Dk,
        *mine = values + kTokens * kColumns, *whole = mine + kTokens * kColumns, *decays = whole + kTokens * s.Dv,
        *betas = decays + kTokens;
  const int b = blockIdx.x, h = blockIdx.y, hk = h / (s.Hv / s.Hk), c0 = blockIdx.z * kColumns;
  const int warp = threadIdx.x / kWarp, lane = threadIdx.x % kWarp, part = lane / 8, column = warp * 8 + lane % 8,
            c = c0 + column;
  const bool own = c < s.Dv;
  cg::cluster_group cluster = cg::this_cluster();
  begin_as_follower();
  auto all_blocks_run = cluster.barrier_arrive();

  const int begin = batch.query_start[b], rows = batch.query_start[b + 1] - begin;
  float S[R];
  const auto state_of = [&](int slot) { return state + (int64_t{slot} * s.Hv + h) * s.Dk * s.Dv; };
  const auto sum_of_parts = [](float sum) {
    sum += __shfl_xor_sync(kAllLanes, sum, 8);
    return sum + __shfl_xor_sync(kAllLanes, sum, 16);
  };
  const auto update = [&](int token) {
    const float *k = keys + token * s.Dk, decay = decays[token], v = values[token * kColumns + column];
    float seen = 0;
#pragma unroll
    for (int r = 0; r < R; ++r) {
      S[r] = __fmul_rn(S[r], decay);
      const int i = r * kParts + part;
      if (i < s.Dk) seen = fmaf(S[r], k[i], seen);
    }
    const float change = __fmul_rn(betas[token], __fsub_rn(v, sum_of_parts(seen)));
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
    return __fmul_rn(sum_of_parts(sum), s.scale);
  };

  if (!batch.runs(b)) {
    for (int i = threadIdx.x; i < rows * kColumns; i += kRecurThreads) mine[i] = 0;
  } else {
    int number;
    Segment segment = first_segment(batch, b, number);
    for (;; segment = batch.at(number, b)) {
      const float* from = segment.src >= 0 ? state_of(segment.src) : nullptr;
#pragma unroll
      for (int r = 0; r < R; ++r) {
        const int i = r * kParts + part;
        S[r] = from != nullptr && own && i < s.Dk ? from[int64_t{i} * s.Dv + c] : 0;
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
          const int64_t row = (int64_t{segment.src} * s.M + j0 + threadIdx.x) * s.Hv + h;
          decays[threadIdx.x] = expf(in.pending_g[row]);
          betas[threadIdx.x] = in.pending_beta[row];
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
      if (segment.drafts_begin == segment.begin) store_state();
      const int count = segment.end - segment.begin, at = segment.begin - begin;
      __syncthreads();
      for (int j = warp; j < count; j += kRecurThreads / kWarp) {
        const int t = segment.begin + j;
        const T *k = in.k[t] + hk * s.Dk, *q = in.q[t] + hk * s.Dk;
        const float k_scale = l2_scale(k, s.Dk, lane), q_scale = l2_scale(q, s.Dk, lane);
        for (int i = lane; i < s.Dk; i += kWarp) {
          keys[j * s.Dk + i] = __fmul_rn(to_float(k[i]), k_scale);
          queries[j * s.Dk + i] = __fmul_rn(to_float(q[i]), q_scale);
        }
        const int d = c0 + lane;
        values[j * kColumns + lane] = d < s.Dv ? to_float(in.v[t][h * s.Dv + d]) : 0;
      }
      if (threadIdx.x < count) {
        const int64_t row = (int64_t{segment.begin} + threadIdx.x) * s.Hv + h;
        decays[threadIdx.x] = expf(in.g[row]);
        betas[threadIdx.x] = in.beta[row];
      }
      __syncthreads();
      for (int j = 0; j < count; ++j) {
        update(j);
        const float y = read(j);
        if (part == 0) mine[(at + j) * kColumns + column] = rounded<T>(y);
        if (segment.begin + j + 1 == segment.drafts_begin) store_state();  // what follows are drafts
      }
      if (!batch.belongs(++number, b)) break;
    }
  }

  cluster.barrier_wait(std::move(all_blocks_run));
  __syncthreads();  // `mine` is written
  for (int i = threadIdx.x; i < rows * kColumns; i += kRecurThreads) {
    const int d = c0 + i % kColumns;
    if (d >= s.Dv) continue;
    for (unsigned rank = 0; rank < cluster.num_blocks(); ++rank)
      *cluster.map_shared_rank(whole + i / kColumns * s.Dv + d, rank) = mine[i];
  }
  cluster.sync();
  for (int j = warp; j < rows; j += kRecurThreads / kWarp) {
    const float* head = whole + j * s.Dv;
    float sum = 0;
    for (int i = lane; i < s.Dv; i += kWarp) sum = fmaf(head[i], head[i], sum);
    const float scale = 1.0f / sqrtf(warp_sum(sum) / static_cast<float>(s.Dv) + norm.eps);
    const int d = c0 + lane;
    if (d >= s.Dv) continue;
    const float gate = to_float(z[begin + j][h * s.Dv + d]);
    const float y = head[d] * scale * norm.weight[d] * (norm.silu ? silu(gate) : sigmoid(gate));
    out[(int64_t{begin + j} * s.Hv + h) * s.Dv + d] = from_float<T>(y);
  }
}

}  // namespace calandra::cuda

// Causal convolution and the gated delta rule (ops/recurrence.h). No shared memory but in device/recur.cuh.
//   causal_conv1d_silu   four neighbouring channels a thread, 16 to 64 rows in order; then one channel of a sequence a
//                        thread for the windows and pending inputs, behind the rows, which read the old ones. Bound by
//                        memory, with 30 % of its speed in prompts of 9B (bench/results/cuda_prefill.md).
//   log_decay, l2_norm   one number a thread, one head of a row a warp; bound by memory
//   gated_delta_rule     device/recur.cuh; prompts in bf16: delta_chunks.h
//   commit_slots         one block a sequence for its slots, behind those one a row for the rings; a follower. Bound by
//                        latency.
#include <algorithm>

#include "backends/cuda/delta_chunks.h"
#include "backends/cuda/device/conv.cuh"
#include "backends/cuda/device/launch.cuh"
#include "backends/cuda/device/pipeline.cuh"
#include "backends/cuda/device/recur.cuh"
#include "backends/cuda/device/types.cuh"
#include "backends/cuda/scratch.h"

namespace calandra {
namespace cuda {
namespace {

constexpr int kThreads = 256;
constexpr int kConvAhead = 8;  // rows that are asked for at once

// N channels and rows_of_block rows a thread; N > 1: rows begin at multiples of 16 bytes, and N divides C. kTaps >= W.
template <class T, int N, int kTaps>
__global__ void __launch_bounds__(kThreads)
    convolve(SegmentedBatch batch, const int32_t* row_sequence, Rows<const T> x, const float* weight,
             ConvSlots<T> slots, int rows, int rows_of_block, T* out) {
  const int begin = blockIdx.x * rows_of_block, end = min(begin + rows_of_block, rows),
            c = (blockIdx.y * kThreads + threadIdx.x) * N, C = slots.C, W = slots.W;
  if (c >= C) return;
  float taps[kTaps][N], last[kTaps - 1][N];  // the W - 1 inputs before the row, oldest first
#pragma unroll
  for (int i = 0; i < N; ++i) {
    float own[kTaps];
    load_some(weight + (c + i) * W, own, W, N > 1);
#pragma unroll
    for (int j = 0; j < kTaps; ++j) taps[j][i] = own[j];
  }
  for (int t0 = begin; t0 < end;) {
    const int b = row_sequence[t0], first_row = batch.query_start[b], stop = min(end, batch.query_start[b + 1]);
    const bool active = batch.active[b];
    Segment first{};
    if (active && t0 - (W - 1) < first_row) first = batch.at(batch.first(b), b);
#pragma unroll
    for (int j = 0; j < kTaps - 1; ++j) {
      if (!active || j >= W - 1) continue;
      const int row = t0 - (W - 1) + j;
      if (row >= first_row) {
        load_floats(x[row] + c, last[j]);
      } else {
#pragma unroll
        for (int i = 0; i < N; ++i) last[j][i] = slots.before(first.src, first.folded, first_row - row, c + i);
      }
    }
    Vec<T, N> own[kConvAhead], next[kConvAhead];
    const auto load_rows = [&](int from) {
#pragma unroll
      for (int n = 0; n < kConvAhead; ++n)
        if (from + n < stop) next[n] = *reinterpret_cast<const Vec<T, N>*>(x[from + n] + c);
    };
    load_rows(t0);
    for (; t0 < stop; t0 += kConvAhead) {
#pragma unroll
      for (int n = 0; n < kConvAhead; ++n) own[n] = next[n];
      load_rows(t0 + kConvAhead);
#pragma unroll
      for (int n = 0; n < kConvAhead; ++n) {
        if (t0 + n >= stop) break;
        Vec<T, N> y;
#pragma unroll
        for (int i = 0; i < N; ++i) {
          const float v = to_float(own[n].at[i]);
          float sum = 0;
#pragma unroll
          for (int j = 0; j < kTaps; ++j)
            if (j < W) sum = fmaf(taps[j][i], j < W - 1 ? last[min(j, kTaps - 2)][i] : v, sum);
          y.at[i] = from_float<T>(active ? silu(sum) : 0.0f);
#pragma unroll
          for (int j = 0; j < kTaps - 1; ++j)
            if (j < W - 1) last[j][i] = j + 1 < W - 1 ? last[min(j + 1, kTaps - 2)][i] : v;
        }
        *reinterpret_cast<Vec<T, N>*>(out + int64_t{t0 + n} * C + c) = y;
      }
    }
    t0 = stop;
  }
}

template <class T>
__global__ void __launch_bounds__(kThreads) keep_windows(SegmentedBatch batch, Rows<const T> x, ConvSlots<T> slots) {
  const int b = blockIdx.x, c = blockIdx.y * kThreads + threadIdx.x, C = slots.C, W = slots.W;
  if (c >= C || !batch.runs(b)) return;
  const int first_segment = batch.first(b);
  const Segment first = batch.at(first_segment, b);
  float old[kMostTaps - 1];  // the W - 1 inputs before the first row, oldest first: read before anything is written
#pragma unroll
  for (int j = 0; j < kMostTaps - 1; ++j) old[j] = j < W - 1 ? slots.before(first.src, first.folded, W - 1 - j, c) : 0;
  for (int s = first_segment; batch.belongs(s, b); ++s) {
    const Segment segment = batch.at(s, b);
#pragma unroll
    for (int j = 0; j < kMostTaps - 1; ++j) {
      if (j >= W - 1) break;
      const int row = segment.drafts_begin - (W - 1) + j;
      float v = 0;
      if (row >= first.begin) {
        v = to_float(x[row][c]);
      } else {
#pragma unroll
        for (int i = 0; i < kMostTaps - 1; ++i)
          if (i == W - 1 - (first.begin - row)) v = old[i];
      }
      slots.window[(int64_t{segment.dst} * (W - 1) + j) * C + c] = from_float<T>(v);
    }
    for (int t = segment.drafts_begin; t < segment.end && t - segment.drafts_begin < slots.M; ++t)
      slots.pending[(int64_t{segment.dst} * slots.M + t - segment.drafts_begin) * C + c] = x[t][c];
  }
}

template <class T>
__global__ void __launch_bounds__(kThreads)
    decay_of(Rows<const T> a, const float* A_log, const float* dt_bias, int64_t T_, int64_t Hv, float* out) {
  const int64_t i = int64_t{blockIdx.x} * kThreads + threadIdx.x;
  if (i >= T_ * Hv) return;
  const int64_t h = i % Hv;
  out[i] = log_decay_of(to_float(a[i / Hv][h]), A_log[h], dt_bias[h]);
}

template <class T>
__global__ void __launch_bounds__(kThreads) l2_normed(Rows<const T> x, int64_t T_, int64_t H, int D, float* out) {
  const int64_t head = int64_t{blockIdx.x} * (kThreads / kWarp) + threadIdx.x / kWarp;
  if (head >= T_ * H) return;
  const int lane = threadIdx.x % kWarp;
  const T* in = x[head / H] + head % H * D;
  const float scale = l2_scale(in, D, lane);
  for (int i = lane; i < D; i += kWarp) out[head * D + i] = __fmul_rn(to_float(in[i]), scale);
}

// from == nullptr: zeros. Several numbers are on their way at once, since the rows may be the same one.
template <class T>
__device__ __forceinline__ void copy_row(T* to, const T* from, int64_t D) {
  constexpr int kTogether = 8;
  for (int64_t i = threadIdx.x; i < D; i += kThreads * kTogether) {
    T x[kTogether];
#pragma unroll
    for (int j = 0; j < kTogether; ++j)
      x[j] = from != nullptr && i + j * kThreads < D ? from[i + j * kThreads] : from_float<T>(0);
#pragma unroll
    for (int j = 0; j < kTogether; ++j)
      if (i + j * kThreads < D) to[i + j * kThreads] = x[j];
  }
}

template <class T>
struct Rings {
  T* data;
  int64_t lane_stride;
  int R;
  const int32_t *token_index, *row_sequence, *seq_len, *lane;
};

template <class T>
__device__ void keep_in_ring(const SegmentedBatch& batch, const T* row, int t, const Rings<T>& ring, int64_t D) {
  const int b = ring.row_sequence[t], index = ring.token_index[t];
  if (batch.active[b] && index >= ring.seq_len[b] - ring.R)
    copy_row(ring.data + ring.lane[b] * ring.lane_stride + index % ring.R * D, row, D);
}

template <class T>
__global__ void __launch_bounds__(kThreads)
    commit(SegmentedBatch batch, int sequences, Rows<const T> hidden, int32_t* N, int32_t* accepted, T* kept, int M1,
           int64_t D, const __grid_constant__ Rings<T> ring) {
  begin_as_follower();
  const int b = blockIdx.x;
  if (b >= sequences) return keep_in_ring(batch, hidden[b - sequences], b - sequences, ring, D);
  if (!batch.runs(b)) return;
  const auto row_of = [&](int slot, int row) { return kept + (int64_t{slot} * M1 + row) * D; };
  for (int s = batch.first(b); batch.belongs(s, b); ++s) {
    const Segment segment = batch.at(s, b);
    const int certain = segment.drafts_begin - segment.begin, before = segment.src >= 0 ? N[segment.src] : 0;
    const T* last = certain > 0        ? hidden[segment.drafts_begin - 1]
                    : segment.src >= 0 ? row_of(segment.src, segment.folded)
                                       : nullptr;
    copy_row(row_of(segment.dst, 0), last, D);
    for (int t = segment.drafts_begin; t < segment.end && 1 + t - segment.drafts_begin < M1; ++t)
      copy_row(row_of(segment.dst, 1 + t - segment.drafts_begin), hidden[t], D);
    __syncthreads();  // N and accepted of src, which may be dst, have been read
    if (threadIdx.x == 0) {
      N[segment.dst] = before + segment.folded + certain;
      accepted[segment.dst] = 0;
    }
    __syncthreads();
  }
}

}  // namespace
}  // namespace cuda

using namespace cuda;

void CudaBackend::causal_conv1d_silu(ExecContext& ctx, const Tensor& x, const Tensor& weight, ConvState& state,
                                     const Tensor& accepted, const Batch& batch, Tensor& out) {
  const int C = static_cast<int>(x.size(1)), W = static_cast<int>(weight.size(1)),
            M = static_cast<int>(state.pending.size(1));
  CHECK_LE(W, kMostTaps);
  const SegmentedBatch segments(batch, accepted);
  on_type(x.dtype(), [&]<class T>(T) {
    const ConvSlots<T> slots{static_cast<T*>(state.window.data()), static_cast<T*>(state.pending.data()), C, W, M};
    const int64_t rows_of_block = std::clamp<int64_t>(x.size(0) / 64, 16, 64);
    const auto launch = [&](auto kernel, int64_t channels) {
      kernel<<<dim3(blocks_for(x.size(0), rows_of_block), blocks_for(C, kThreads * channels)), kThreads, 0,
               stream_of(ctx)>>>(segments, batch.row_sequence.as<int32_t>(), rows_of<T>(x), weight.as<float>(), slots,
                                 static_cast<int>(x.size(0)), static_cast<int>(rows_of_block),
                                 static_cast<T*>(out.data()));
    };
    constexpr int kTogether = 4;
    if (W == 4 && C % kTogether == 0 && rows_aligned(x, 16) && rows_aligned(out, 16))
      launch(convolve<T, kTogether, 4>, kTogether);
    else
      launch(convolve<T, 1, kMostTaps>, 1);
    launched(ctx, "causal_conv1d_silu");
    keep_windows<T>
        <<<dim3(static_cast<unsigned>(batch.sequences()), blocks_for(C, kThreads)), kThreads, 0, stream_of(ctx)>>>(
            segments, rows_of<T>(x), slots);
    launched(ctx, "causal_conv1d_silu windows");
  });
}

void CudaBackend::log_decay(ExecContext& ctx, const Tensor& a, const Tensor& A_log, const Tensor& dt_bias,
                            Tensor& out) {
  on_type(a.dtype(), [&]<class T>(T) {
    decay_of<T><<<blocks_for(a.numel(), kThreads), kThreads, 0, stream_of(ctx)>>>(
        rows_of<T>(a), A_log.as<float>(), dt_bias.as<float>(), a.size(0), a.size(1), out.as<float>());
  });
  launched(ctx, "log_decay");
}

void CudaBackend::l2_norm(ExecContext& ctx, const Tensor& x, Tensor& out) {
  on_type(x.dtype(), [&]<class T>(T) {
    l2_normed<T><<<blocks_for(x.size(0) * x.size(1), kThreads / kWarp), kThreads, 0, stream_of(ctx)>>>(
        rows_of<T>(x), x.size(0), x.size(1), static_cast<int>(x.size(2)), out.as<float>());
  });
  launched(ctx, "l2_norm");
}

void CudaBackend::gated_delta_rule(ExecContext& ctx, const Tensor& q, const Tensor& k, const Tensor& v, const Tensor& g,
                                   const Tensor& beta, DeltaState& state, const Tensor& accepted, const Batch& batch,
                                   Tensor& out) {
  const RecurShape shape{static_cast<int>(q.size(1)),
                         static_cast<int>(v.size(1)),
                         static_cast<int>(q.size(2)),
                         static_cast<int>(v.size(2)),
                         static_cast<int>(state.pending_k.size(1)),
                         static_cast<float>(1 / std::sqrt(static_cast<double>(q.size(2))))};
  CHECK_LE(shape.Dk, 128);
  const bool chunked = !options_.deterministic && chunks_serve(q, k, v, shape, batch);
  const Scratch scratch(ctx.workspace);
  const Tensor memory = chunked ? chunk_memory(ctx, shape, batch) : Tensor();
  if (ctx.dry_run) return;
  const SegmentedBatch segments(batch, accepted);
  const int B = static_cast<int>(batch.sequences());
  on_type(q.dtype(), [&]<class T>(T) {
    const RecurInputs<T> in{rows_of<T>(q),
                            rows_of<T>(k),
                            rows_of<T>(v),
                            g.as<float>(),
                            beta.as<float>(),
                            state.pending_k.as<float>(),
                            state.pending_v.as<float>(),
                            state.pending_g.as<float>(),
                            state.pending_beta.as<float>()};
    run_recurrence<T, true>(stream_of(ctx), segments, B, in, shape, chunked, state.S.as<float>(),
                            static_cast<T*>(out.data()));
    launched(ctx, "gated_delta_rule");
    if constexpr (std::is_same_v<T, bf16_t>) {
      if (chunked) {
        prepare_chunks(stream_of(ctx), segments, batch, in, shape, memory);
        launched(ctx, "gated_delta_rule prepare");
        walk_chunks(stream_of(ctx), segments, batch, in, shape, memory, state.S.as<float>(),
                    static_cast<bf16_t*>(out.data()));
        launched(ctx, "gated_delta_rule walk");
      }
    }
    if (run_keep_pending<T, true>(stream_of(ctx), segments, batch, in, shape, state.pending_k.as<float>(),
                                  state.pending_v.as<float>(), state.pending_g.as<float>(),
                                  state.pending_beta.as<float>()))
      launched(ctx, "gated_delta_rule pending");
  });
}

void CudaBackend::commit_slots(ExecContext& ctx, const Tensor& hidden, SlotCounts& slots, Tensor& ring,
                               const Batch& batch) {
  const SegmentedBatch segments(batch, slots.accepted);
  const int64_t B = batch.sequences();
  on_type(hidden.dtype(), [&]<class T>(T) {
    Rings<T> rings{};
    if (!ring.empty())
      rings = {static_cast<T*>(ring.data()),     ring.stride(0),
               static_cast<int>(ring.size(1)),   batch.token_index.as<int32_t>(),
               batch.row_sequence.as<int32_t>(), batch.seq_len.as<int32_t>(),
               batch.lane.as<int32_t>()};
    launch_follower(commit<T>, dim3(static_cast<unsigned>(B + (ring.empty() ? 0 : hidden.size(0)))), dim3(kThreads), 0,
                    stream_of(ctx), segments, static_cast<int>(B), rows_of<T>(hidden), slots.N.as<int32_t>(),
                    slots.accepted.as<int32_t>(), static_cast<T*>(slots.hidden.data()),
                    static_cast<int>(slots.hidden.size(1)), hidden.size(1), rings);
  });
  launched(ctx, "commit_slots");
}

}  // namespace calandra

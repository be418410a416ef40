// The mixer of a gated delta net for few rows of each sequence (ops/recurrence.h, gated_delta_mixer): what stands
// before the delta rule as one kernel, with the operations of its parts in recurrence.cu, then the rule with its norm.
//   conv_and_gates   one channel of a sequence a thread: its window, its rows in order, then the windows and pending
//                    inputs of the slots that its segments write; behind the channels' blocks one for the gates of the
//                    sequence's rows. No shared memory. Bound by latency.
//   delta_decode     device/delta_decode.cuh
// Both read slots before they wait for the kernel in front (device/pipeline.cuh): between two mixers of the same slots
// there must be a product, as in every layer, or a kernel that is no follower.
#include "backends/cuda/device/conv.cuh"
#include "backends/cuda/device/delta_decode.cuh"
#include "backends/cuda/device/launch.cuh"
#include "backends/cuda/device/pipeline.cuh"
#include "backends/cuda/device/types.cuh"
#include "backends/cuda/scratch.h"

namespace calandra {
namespace cuda {
namespace {

constexpr int kThreads = 128;

template <class T>
struct ConvAndGates {
  Rows<const T> x, a, b;
  const float *conv, *A_log, *dt_bias;
  ConvSlots<T> slots;
  int Hv;
  T* out;           // [T, C]
  float *g, *beta;  // [T, Hv]
};

template <class T>
__device__ void convolve_channel(const SegmentedBatch& batch, const ConvAndGates<T>& in, int b, int c) {
  const ConvSlots<T>& slots = in.slots;
  const int C = slots.C, W = slots.W;
  if (!batch.runs(b)) {
    wait_for_grid();
    for (int t = batch.query_start[b]; t < batch.query_start[b + 1]; ++t) in.out[int64_t{t} * C + c] = from_float<T>(0);
    return;
  }
  float weight[kMostTaps], last[kMostTaps - 1];  // the W - 1 inputs before the row, oldest first
  int number;
  const Segment first = first_segment(batch, b, number);
#pragma unroll
  for (int j = 0; j < kMostTaps; ++j) weight[j] = j < W ? in.conv[c * W + j] : 0;
#pragma unroll
  for (int j = 0; j < kMostTaps - 1; ++j) last[j] = j < W - 1 ? slots.before(first.src, first.folded, W - 1 - j, c) : 0;
  wait_for_grid();
  for (Segment segment = first;; segment = batch.at(number, b)) {
    const auto keep_window = [&] {
#pragma unroll
      for (int j = 0; j < kMostTaps - 1; ++j)
        if (j < W - 1) slots.window[(int64_t{segment.dst} * (W - 1) + j) * C + c] = from_float<T>(last[j]);
    };
    if (segment.drafts_begin == segment.begin) keep_window();
    for (int t = segment.begin; t < segment.end; ++t) {
      const T own = in.x[t][c];
      const float v = to_float(own);
      float sum = 0;
#pragma unroll
      for (int j = 0; j < kMostTaps; ++j)
        if (j < W) sum = fmaf(weight[j], j < W - 1 ? last[j] : v, sum);
      in.out[int64_t{t} * C + c] = from_float<T>(silu(sum));
#pragma unroll
      for (int j = 0; j < kMostTaps - 1; ++j)
        if (j < W - 1) last[j] = j + 1 < W - 1 ? last[j + 1] : v;
      if (const int draft = t - segment.drafts_begin; draft >= 0 && draft < slots.M)
        slots.pending[(int64_t{segment.dst} * slots.M + draft) * C + c] = own;
      if (t + 1 == segment.drafts_begin) keep_window();
    }
    if (!batch.belongs(++number, b)) return;
  }
}

template <class T>
__global__ void __launch_bounds__(kThreads)
    conv_and_gates(const __grid_constant__ SegmentedBatch batch, const __grid_constant__ ConvAndGates<T> in) {
  const int b = blockIdx.x, c = blockIdx.y * kThreads + threadIdx.x;
  let_next_grid_begin();
  if (blockIdx.y + 1 < gridDim.y) {
    if (c < in.slots.C)
      convolve_channel(batch, in, b, c);
    else
      wait_for_grid();
    return;
  }
  wait_for_grid();
  const int begin = batch.query_start[b], rows = batch.query_start[b + 1] - begin;
  for (int i = threadIdx.x; i < rows * in.Hv; i += kThreads) {
    const int t = begin + i / in.Hv, h = i % in.Hv;
    in.g[int64_t{t} * in.Hv + h] = log_decay_of(to_float(in.a[t][h]), in.A_log[h], in.dt_bias[h]);
    in.beta[int64_t{t} * in.Hv + h] = sigmoid(to_float(in.b[t][h]));
  }
}

}  // namespace
}  // namespace cuda

using namespace cuda;

void CudaBackend::gated_delta_mixer(ExecContext& ctx, const Tensor& qkv, const Tensor& z, const Tensor& b,
                                    const Tensor& a, const ops::GatedDeltaWeights& weights, ConvState& conv,
                                    DeltaState& delta, const Tensor& accepted, const Batch& batch, Tensor& out) {
  // A dry run measures the parts, which take as much.
  if (ctx.dry_run || ctx.taps != nullptr || batch.max_query_len > kMostSteps || delta.S.size(2) != kHeadDim ||
      delta.S.size(3) != kHeadDim)
    return Backend::gated_delta_mixer(ctx, qkv, z, b, a, weights, conv, delta, accepted, batch, out);
  const int64_t rows = qkv.size(0), C = qkv.size(1), W = weights.conv1d.size(1), Hk = delta.pending_k.size(2),
                Dk = delta.S.size(2), Hv = delta.S.size(1), Dv = delta.S.size(3);
  CHECK_LE(W, kMostTaps);
  const Scratch scratch(ctx.workspace);
  const Tensor x = ctx.workspace.alloc(qkv.dtype(), {rows, C}), g = ctx.workspace.alloc(DType::kF32, {rows, Hv}),
               beta = ctx.workspace.alloc(DType::kF32, {rows, Hv});
  on_type(qkv.dtype(), [&]<class T>(T) {
    const ConvAndGates<T> in{rows_of<T>(qkv),
                             rows_of<T>(a),
                             rows_of<T>(b),
                             weights.conv1d.as<float>(),
                             weights.A_log.as<float>(),
                             weights.dt_bias.as<float>(),
                             {static_cast<T*>(conv.window.data()), static_cast<T*>(conv.pending.data()),
                              static_cast<int>(C), static_cast<int>(W), static_cast<int>(conv.pending.size(1))},
                             static_cast<int>(Hv),
                             static_cast<T*>(x.data()),
                             g.as<float>(),
                             beta.as<float>()};
    launch_follower(conv_and_gates<T>, dim3(static_cast<unsigned>(batch.sequences()), blocks_for(C, kThreads) + 1),
                    dim3(kThreads), 0, stream_of(ctx), SegmentedBatch(batch, accepted), in);
  });
  launched(ctx, "conv_and_gates");
  const Tensor q = x.slice(1, 0, Hk * Dk).view({rows, Hk, Dk}),
               k = x.slice(1, Hk * Dk, 2 * Hk * Dk).view({rows, Hk, Dk}),
               v = x.slice(1, 2 * Hk * Dk, C).view({rows, Hv, Dv}), heads = z.view({rows, Hv, Dv});
  const RecurShape shape{static_cast<int>(Hk),
                         static_cast<int>(Hv),
                         static_cast<int>(Dk),
                         static_cast<int>(Dv),
                         static_cast<int>(delta.pending_k.size(1)),
                         static_cast<float>(1 / std::sqrt(static_cast<double>(Dk)))};
  const NormOfHeads norm{weights.norm.as<float>(), weights.eps, weights.gate == ops::GateActivation::kSilu};
  on_type(qkv.dtype(), [&]<class T>(T) {
    const RecurInputs<T> in{rows_of<T>(q),
                            rows_of<T>(k),
                            rows_of<T>(v),
                            g.as<float>(),
                            beta.as<float>(),
                            delta.pending_k.as<float>(),
                            delta.pending_v.as<float>(),
                            delta.pending_g.as<float>(),
                            delta.pending_beta.as<float>()};
    const SegmentedBatch segments(batch, accepted);
    const unsigned B = static_cast<unsigned>(batch.sequences());
    launch_follower(delta_decode<T>, dim3(static_cast<unsigned>(Hv), B), dim3(kDecodeThreads), kDeltaDecodeBytes,
                    stream_of(ctx), segments, in, shape, delta.S.as<float>(), rows_of<T>(heads), norm,
                    static_cast<T*>(out.data()));
    launched(ctx, "gated_delta_rule and norm");
    if (run_keep_pending<T, true>(stream_of(ctx), segments, batch, in, shape, delta.pending_k.as<float>(),
                                  delta.pending_v.as<float>(), delta.pending_g.as<float>(),
                                  delta.pending_beta.as<float>()))
      launched(ctx, "gated_delta_rule pending");
  });
}

}  // namespace calandra

// Mixture of experts (ops/moe.h) but its products, which are in linear.cu.
//   route         one warp a row, its scores in shared memory (device/route.cuh)
//   moe_combine   one number a thread; no shared memory; bound by memory
//   sparse_moe    few rows. What reads x is one launch (router, shared gate and up, shared gate); then route and the
//                 experts' gate and up, of up to four tokens in one launch whose blocks each route for themselves; then
//                 all products with D outputs and every sum, of up to eight tokens in one launch
//                 (device/experts_down.cuh), else in two.
//                 Many rows: choices are sorted by expert once (moe_gemm.cu), and what lies between the products stays
//                 in that order.
//   join_outputs  the sums of sparse_moe: four numbers a thread; no shared memory; few rows are bound by latency, many
//                 by memory, with three quarters of its speed (bench/results/cuda_prefill.md)
#include "backends/cuda/device/experts_down.cuh"
#include "backends/cuda/device/launch.cuh"
#include "backends/cuda/device/pipeline.cuh"
#include "backends/cuda/device/reduce.cuh"
#include "backends/cuda/device/route.cuh"
#include "backends/cuda/device/types.cuh"
#include "backends/cuda/linear_few_rows.h"
#include "backends/cuda/moe_gemm.h"
#include "backends/cuda/packed_rows.h"
#include "backends/cuda/scratch.h"

namespace calandra {
namespace cuda {
namespace {

constexpr int kThreads = 256;

__global__ void __launch_bounds__(kWarp) route_rows(const __grid_constant__ RouteArgs a) {
  extern __shared__ float words[];
  begin_as_follower();
  route_row(a, blockIdx.x, words, a.top_k - 1, true, threadIdx.x);
}

template <class T>
__global__ void __launch_bounds__(kThreads)
    combine(Rows<const T> y, Rows<const float> weights, int64_t T_, int k, int64_t D, T* out) {
  const int64_t i = int64_t{blockIdx.x} * kThreads + threadIdx.x;
  if (i >= T_ * D) return;
  const int64_t t = i / D, d = i % D;
  float sum = 0;
  for (int j = 0; j < k; ++j) sum = fmaf(weights[t][j], to_float(y[t][j * D + d]), sum);
  out[i] = from_float<T>(sum);
}

// What sparse_moe does behind its products, each step rounded as its parts are.
struct Join {
  Rows<const bf16_t> residual;
  const bf16_t *y, *shared, *open;  // [T, k, D], [T, D], [T]; null: none
  const float* weights;             // [T, k]
  int T, k, D;
  bool aligned;  // rows begin at multiples of 8 bytes and have a multiple of 4 numbers
  bf16_t* out;
};
constexpr int kJoined = 4;

__global__ void __launch_bounds__(kThreads) join_outputs(const __grid_constant__ Join a) {
  const int per_row = (a.D + kJoined - 1) / kJoined, i = blockIdx.x * kThreads + threadIdx.x, t = i / per_row,
            d = i % per_row * kJoined, own = min(kJoined, a.D - d);
  begin_as_follower();
  if (t >= a.T) return;
  float sum[kJoined] = {}, v[kJoined];
#pragma unroll 8
  for (int j = 0; j < a.k; ++j) {
    const int64_t choice = int64_t{t} * a.k + j;
    load_some(a.y + choice * a.D + d, v, own, a.aligned);
#pragma unroll
    for (int n = 0; n < kJoined; ++n) sum[n] = fmaf(a.weights[choice], v[n], sum[n]);
  }
#pragma unroll
  for (int n = 0; n < kJoined; ++n) sum[n] = rounded<bf16_t>(sum[n]);
  if (a.shared != nullptr) {
    load_some(a.shared + int64_t{t} * a.D + d, v, own, a.aligned);
    const float open = a.open != nullptr ? rounded<bf16_t>(sigmoid(to_float(a.open[t]))) : 1;
#pragma unroll
    for (int n = 0; n < kJoined; ++n) sum[n] = rounded<bf16_t>(sum[n] + rounded<bf16_t>(v[n] * open));
  }
  load_some(a.residual[t] + d, v, own, a.aligned);
#pragma unroll
  for (int n = 0; n < kJoined; ++n) sum[n] = v[n] + sum[n];
  store_some(a.out + int64_t{t} * a.D + d, sum, own, a.aligned);
}

RouteArgs route_args(const Tensor& logits, const Tensor& bias, const ops::RouterOptions& options, ops::Routing& out) {
  return {rows_of<float>(logits),
          bias.rank() > 0 ? bias.as<float>() : nullptr,
          static_cast<int>(logits.size(1)),
          static_cast<int>(options.top_k),
          static_cast<int>(options.n_group),
          static_cast<int>(options.topk_group),
          options.score == ops::RouterScore::kSigmoid,
          options.norm_topk_prob,
          options.routed_scaling_factor,
          out.experts.as<int32_t>(),
          out.weights.as<float>()};
}

DownWeight down_weight(const PackedWeight& weight, int64_t expert_bytes) {
  return {weight.packed.bytes_at(0), expert_bytes, static_cast<int>(packed_row(weight.dtype, weight.K, weight.block_k)),
          static_cast<int>(padded_values(weight.dtype, weight.K)), static_cast<int>(weight.K)};
}

// Whether experts_down has the end of the mixture. For more tokens experts are shared by several of them.
constexpr int64_t kDownRows = 8;
bool has_experts_down(int64_t T, int64_t top_k, const ops::SparseMoeWeights& w) {
  return T <= kDownRows && top_k < kMostDownWarps && w.down.K % 8 == 0 && w.shared_down.K % 8 == 0 &&
         (w.shared_down.N == 0 || (w.shared_down.dtype == w.down.dtype && !w.shared_down.bias));
}

// Whether few rows go through one mixture in few launches.
bool mixture_has_few_rows(DType x, const ops::SparseMoeWeights& w, int64_t top_k) {
  if (top_k * kMostRows > kMostChoices || !has_swiglu(x, w.gate.expert(0), w.up.expert(0)) ||
      w.gate.packed.stride(0) != w.up.packed.stride(0) || !has_few_rows(x, w.down.expert(0)))
    return false;
  if (w.shared_gate.N > 0 && !has_few_rows(x, w.shared_gate)) return false;
  return w.shared_down.N == 0 ||
         (has_few_rows(x, w.shared_down) && has_swiglu(x, w.shared_gate_up.parts()[0], w.shared_gate_up.parts()[1]));
}

// Whether many rows go through one mixture sorted once.
bool mixture_has_many_rows(const Tensor& x, const ops::SparseMoeWeights& w) {
  return has_grouped_gemm(x, w.gate) && has_grouped_gemm(x, w.up) && w.gate.dtype == w.up.dtype &&
         has_grouped_gemm(x, w.down);
}

}  // namespace
}  // namespace cuda

using namespace cuda;

void CudaBackend::route(ExecContext& ctx, const Tensor& logits, const Tensor& bias, const ops::RouterOptions& options,
                        ops::Routing& out) {
  if (ctx.dry_run) return;
  const RouteArgs args = route_args(logits, bias, options, out);
  const size_t bytes = static_cast<size_t>(args.words()) * sizeof(float);
  CHECK_LE(bytes, size_t{48 << 10});
  launch_follower(route_rows, dim3(static_cast<unsigned>(logits.size(0))), dim3(kWarp), bytes, stream_of(ctx), args);
  launched(ctx, "route");
}

void CudaBackend::moe_combine(ExecContext& ctx, const Tensor& y, const Tensor& weights, Tensor& out) {
  on_type(y.dtype(), [&]<class T>(T) {
    combine<T><<<blocks_for(out.numel(), kThreads), kThreads, 0, stream_of(ctx)>>>(
        rows_of<T>(y), rows_of<float>(weights), y.size(0), static_cast<int>(y.size(1)), y.size(2),
        static_cast<T*>(out.data()));
  });
  launched(ctx, "moe_combine");
}

void CudaBackend::sparse_moe(ExecContext& ctx, const Tensor& x, const ops::SparseMoeWeights& weights,
                             const ops::RouterOptions& options, const Tensor& residual, Tensor& out) {
  const int64_t T = x.size(0);
  if (ctx.dry_run && T >= kGemmExpertRows) {  // fewer rows go other ways, which may need more memory
    const Scratch scratch(ctx.workspace);
    const int64_t fewer = kGemmExpertRows - 1;
    Tensor of_fewer = out.slice(0, 0, fewer);
    Backend::sparse_moe(ctx, x.slice(0, 0, fewer), weights, options, residual.slice(0, 0, fewer), of_fewer);
  }
  if (ctx.taps == nullptr && (T <= kMostRows || options_.deterministic) &&
      mixture_has_few_rows(x.dtype(), weights, options.top_k))
    return mixture_of_few_rows(ctx, x, weights, options, residual, out);
  if (ctx.taps == nullptr && !options_.deterministic && mixture_has_many_rows(x, weights))
    return mixture_of_many_rows(ctx, x, weights, options, residual, out);
  Backend::sparse_moe(ctx, x, weights, options, residual, out);
}

void CudaBackend::mixture_of_few_rows(ExecContext& ctx, const Tensor& x, const ops::SparseMoeWeights& weights,
                                      const ops::RouterOptions& options, const Tensor& residual, Tensor& out) {
  const int64_t T = x.size(0), k = options.top_k, D = x.size(1), F = weights.down.K, Fs = weights.shared_down.K;
  const bool shared_expert = weights.shared_down.N > 0, gated = weights.shared_gate.N > 0;
  const Scratch scratch(ctx.workspace);
  Tensor logits = ctx.workspace.alloc(DType::kF32, {T, weights.router.N});
  ops::Routing routing{ctx.workspace.alloc(DType::kI32, {T, k}), ctx.workspace.alloc(DType::kF32, {T, k})};
  const Tensor h = ctx.workspace.alloc(x.dtype(), {T, k, F}), y = ctx.workspace.alloc(x.dtype(), {T, k, D});
  Tensor shared_h, shared, open;
  if (shared_expert) {
    shared_h = ctx.workspace.alloc(x.dtype(), {T, Fs});
    shared = ctx.workspace.alloc(x.dtype(), {T, D});
  }
  if (gated) open = ctx.workspace.alloc(x.dtype(), {T, 1});
  if (ctx.dry_run) return;
  FewRowsLaunch of_x(T);
  if (has_few_rows(x.dtype(), weights.router))
    of_x.add(x, weights.router, logits);
  else
    linear(ctx, x, LinearPack{weights.router}, logits);
  if (gated) of_x.add(x, weights.shared_gate, open);
  if (shared_expert) of_x.swiglu(x, weights.shared_gate_up.parts()[0], weights.shared_gate_up.parts()[1], shared_h);
  if (!of_x.empty()) {
    of_x.run(stream_of(ctx));
    launched(ctx, "router and shared expert");
  }
  const RouteArgs routes = route_args(logits, weights.bias, options, routing);
  const bool routed = FewRowsLaunch::can_route(T, routes);
  if (!routed) route(ctx, logits, weights.bias, options, routing);
  FewRowsLaunch up(T);
  up.swiglu_experts(x, weights.gate, weights.up, routing.experts, h);
  if (routed) up.route(routes);
  up.run(stream_of(ctx));
  launched(ctx, "experts' gate and up");
  const auto numbers = [](const Tensor& t) { return t ? static_cast<const bf16_t*>(t.data()) : nullptr; };
  if (has_experts_down(T, k, weights)) {
    const ExpertsDownArgs args{down_weight(weights.down.expert(0), weights.down.packed.stride(0)),
                               shared_expert ? down_weight(weights.shared_down, 0) : DownWeight{},
                               numbers(h),
                               numbers(shared_h),
                               numbers(open),
                               routing.experts.as<int32_t>(),
                               routing.weights.as<float>(),
                               rows_of<bf16_t>(residual),
                               static_cast<bf16_t*>(out.data()),
                               static_cast<int>(k),
                               static_cast<int>(weights.down.E),
                               static_cast<int>(D)};
    const auto kernel = weights.down.dtype == DType::kF8E4M3 ? experts_down<true> : experts_down<false>;
    launch_follower(kernel, dim3(blocks_for(D, kTile), static_cast<unsigned>(T)),
                    dim3(static_cast<unsigned>(k + shared_expert) * kWarp), 0, stream_of(ctx), args);
    return launched(ctx, "experts' down and sums");
  }
  FewRowsLaunch down(T);
  if (shared_expert) down.add(shared_h, weights.shared_down, shared);
  down.experts(h, weights.down, routing.experts, y);
  down.run(stream_of(ctx));
  launched(ctx, "experts' down");

  join(ctx, y, routing.weights, shared, open, residual, out);
}

void CudaBackend::mixture_of_many_rows(ExecContext& ctx, const Tensor& x, const ops::SparseMoeWeights& weights,
                                       const ops::RouterOptions& options, const Tensor& residual, Tensor& out) {
  const Scratch scratch(ctx.workspace);
  const int64_t T = x.size(0), k = options.top_k, D = x.size(1), F = weights.down.K;
  const cudaStream_t stream = stream_of(ctx);
  const Tensor logits = ops::linear(ctx, x, weights.router, DType::kF32);
  const ops::Routing routing = ops::route(ctx, logits, weights.bias, options);  // every choice is an expert
  const ExpertOrder order(ctx, routing.experts, weights.gate.E);
  Tensor h = ctx.workspace.alloc(x.dtype(), {T * k, F});
  {
    const Scratch inputs(ctx.workspace);
    const Tensor sorted = ctx.workspace.alloc(x.dtype(), {T * k, D});
    const Tensor gate = ctx.workspace.alloc(x.dtype(), {T * k, F}), up = ctx.workspace.alloc(x.dtype(), {T * k, F});
    if (!ctx.dry_run) {
      order.sort(stream);
      launched(ctx, "experts' order");
      order.gather(stream, x, sorted);
      launched(ctx, "experts' rows");
      GemmLaunch gemm(sorted, order.sorted());
      gemm.experts(weights.gate, gate);
      gemm.experts(weights.up, up);
      gemm.run(stream);
      launched(ctx, "experts' gate and up");
      silu_mul(ctx, gate, up, h);
    }
  }
  const Tensor y = ctx.workspace.alloc(x.dtype(), {T, k, D});
  if (!ctx.dry_run) {
    GemmLaunch gemm(h, order.scattered());
    gemm.experts(weights.down, y);
    gemm.run(stream);
    launched(ctx, "experts' down");
  }
  Tensor shared, open;
  if (weights.shared_down.N > 0) {
    const auto [gate, up, unused_2, unused_3] = ops::linear(ctx, x, weights.shared_gate_up);
    shared = ops::linear(ctx, ops::silu_mul(ctx, gate, up), weights.shared_down, x.dtype());
  }
  if (weights.shared_gate.N > 0) open = ops::linear(ctx, x, weights.shared_gate, x.dtype());
  if (!ctx.dry_run) join(ctx, y, routing.weights, shared, open, residual, out);
}

void CudaBackend::join(ExecContext& ctx, const Tensor& y, const Tensor& expert_weights, const Tensor& shared,
                       const Tensor& open, const Tensor& residual, Tensor& out) {
  const int64_t T = y.size(0), k = y.size(1), D = y.size(2);
  const auto numbers = [](const Tensor& t) { return t ? static_cast<const bf16_t*>(t.data()) : nullptr; };
  const Join join{rows_of<bf16_t>(residual),
                  numbers(y),
                  numbers(shared),
                  numbers(open),
                  expert_weights.as<float>(),
                  static_cast<int>(T),
                  static_cast<int>(k),
                  static_cast<int>(D),
                  D % kJoined == 0 && rows_aligned(residual, 8),
                  static_cast<bf16_t*>(out.data())};
  launch_follower(join_outputs, dim3(blocks_for(T * ((D + kJoined - 1) / kJoined), kThreads)), dim3(kThreads), 0,
                  stream_of(ctx), join);
  launched(ctx, "moe outputs");
}

}  // namespace calandra

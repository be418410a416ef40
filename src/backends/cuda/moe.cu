// Mixture of experts (ops/moe.h) but its products, which are in linear.cu.
//   route         one warp a row, its scores in 2 E floats of shared memory (and one flag a group). Every pick is a
//                 maximum over the warp, the lowest index of equals. Bound by latency: top_k picks of E / 32 steps.
//   moe_combine   one number a thread; bound by memory
//   sparse_moe    few rows: five launches. What reads x is one (router, shared gate and up, shared gate), then route,
//                 the experts' gate and up, then all products with D outputs, then every sum (join_outputs: four
//                 numbers a thread, bound by latency). Many rows: choices are sorted by expert once (moe_gemm.cu), and
//                 what lies between the products stays in that order.
#include "backends/cuda/device/launch.cuh"
#include "backends/cuda/device/pipeline.cuh"
#include "backends/cuda/device/reduce.cuh"
#include "backends/cuda/device/types.cuh"
#include "backends/cuda/linear_few_rows.h"
#include "backends/cuda/moe_gemm.h"
#include "backends/cuda/scratch.h"

namespace calandra {
namespace cuda {
namespace {

constexpr int kThreads = 256;

__device__ __forceinline__ float or_lowest(float x) { return isnan(x) ? -INFINITY : x; }

// Bits whose order as numbers is that of x, which is no NaN; -0 is 0.
__device__ __forceinline__ uint32_t ordered(float x) {
  const uint32_t bits = __float_as_uint(x == 0 ? 0.0f : x);
  return bits & 0x80000000u ? ~bits : bits | 0x80000000u;
}

// The index of the largest candidate, the lowest of equal ones; NaN is no candidate. -1: there is none.
__device__ __forceinline__ int best_of(const float* candidates, int count, int lane) {
  uint32_t value = 0;  // below every number
  unsigned best = ~0u;
#pragma unroll 8
  for (int i = lane; i < count; i += kWarp) {
    const float c = candidates[i];
    const uint32_t key = isnan(c) ? 0 : ordered(c);
    if (key > value) value = key, best = static_cast<unsigned>(i);
  }
  const uint32_t top = __reduce_max_sync(kAllLanes, value);
  return static_cast<int>(__reduce_min_sync(kAllLanes, value == top ? best : ~0u));
}

__global__ void __launch_bounds__(kWarp)
    route_rows(Rows<const float> logits, const float* bias, int E, int top_k, int n_group, int topk_group,
               bool sigmoids, bool norm, float factor, int32_t* experts, float* weights) {
  extern __shared__ float shared[];
  float *scores = shared, *choice = scores + E, *groups = choice + E;
  const int lane = threadIdx.x;
  const int64_t t = blockIdx.x;
  const float* row = logits[t];
  begin_as_follower();
  if (sigmoids) {
    for (int e = lane; e < E; e += kWarp) scores[e] = sigmoid(row[e]);
  } else {
    float top = -INFINITY, sum = 0;
#pragma unroll 8
    for (int e = lane; e < E; e += kWarp) top = fmaxf(top, scores[e] = row[e]);  // NaN is passed over
    top = warp_max(top);
    for (int e = lane; e < E; e += kWarp) sum += scores[e] = expf(scores[e] - top);
    sum = warp_sum(sum);
    for (int e = lane; e < E; e += kWarp) scores[e] /= sum;
  }
  for (int e = lane; e < E; e += kWarp) choice[e] = or_lowest(scores[e] + (bias != nullptr ? bias[e] : 0.0f));
  __syncwarp();

  if (n_group > 1) {
    const int size = E / n_group;
    for (int g = lane; g < n_group; g += kWarp) {
      float first = -INFINITY, second = -INFINITY;
      for (int i = g * size; i < (g + 1) * size; ++i) {
        if (choice[i] > first)
          second = first, first = choice[i];
        else if (choice[i] > second)
          second = choice[i];
      }
      groups[g] = !sigmoids || size == 1 ? first : or_lowest(first + second);
    }
    __syncwarp();
    for (int i = 0; i < topk_group; ++i) {
      const int g = best_of(groups, n_group, lane);
      __syncwarp();
      if (lane == 0 && g >= 0) groups[g] = NAN;
      __syncwarp();
    }
    for (int e = lane; e < E; e += kWarp)
      if (!isnan(groups[e / size])) choice[e] = NAN;  // its group was not taken
    __syncwarp();
  }

  float sum = 0, mine = 0;  // lane j has the weight of pick j, and of pick j + 32 and so on
  for (int j0 = 0; j0 < top_k; j0 += kWarp) {
    const int picks = min(kWarp, top_k - j0);
    int expert = 0;
    for (int j = 0; j < picks; ++j) {
      const int e = best_of(choice, E, lane);
      if (lane == j) expert = e, mine = scores[e];
      sum += scores[e];
      __syncwarp();
      if (lane == e % kWarp) choice[e] = NAN;
      __syncwarp();
    }
    if (lane < picks) {
      experts[t * top_k + j0 + lane] = expert;
      weights[t * top_k + j0 + lane] = mine;
    }
  }
  __syncwarp();
  for (int j = lane; j < top_k; j += kWarp) {
    float weight = top_k <= kWarp ? mine : weights[t * top_k + j];
    if (norm) weight /= sum + 1e-20f;
    weights[t * top_k + j] = weight * factor;
  }
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

// Products of one input, in a launch for each format.
class LaunchByFormat {
 public:
  explicit LaunchByFormat(int64_t T) : launches_{FewRowsLaunch(T), FewRowsLaunch(T)} {}
  FewRowsLaunch& of(DType stored) { return launches_[stored == DType::kBF16 ? 0 : 1]; }
  // Returns how many there were.
  int run(cudaStream_t stream) {
    int count = 0;
    for (FewRowsLaunch& launch : launches_)
      if (!launch.empty()) launch.run(stream), ++count;
    return count;
  }

 private:
  std::array<FewRowsLaunch, 2> launches_;
};

// Whether few rows go through one mixture in five launches.
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
  const int64_t E = logits.size(1);
  const size_t bytes = static_cast<size_t>(2 * E + options.n_group) * sizeof(float);
  CHECK_LE(bytes, size_t{48 << 10});
  launch_follower(route_rows, dim3(static_cast<unsigned>(logits.size(0))), dim3(kWarp), bytes, stream_of(ctx),
                  rows_of<float>(logits), bias.rank() > 0 ? bias.as<float>() : nullptr, static_cast<int>(E),
                  static_cast<int>(options.top_k), static_cast<int>(options.n_group),
                  static_cast<int>(options.topk_group), options.score == ops::RouterScore::kSigmoid,
                  options.norm_topk_prob, options.routed_scaling_factor, out.experts.as<int32_t>(),
                  out.weights.as<float>());
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
  const auto count = [&](int launches, const char* name) {
    for (int i = 0; i < launches; ++i) launched(ctx, name);
  };

  LaunchByFormat of_x(T);
  if (has_few_rows(x.dtype(), weights.router))
    of_x.of(weights.router.dtype).add(x, weights.router, logits);
  else
    linear(ctx, x, LinearPack{weights.router}, logits);
  if (gated) of_x.of(weights.shared_gate.dtype).add(x, weights.shared_gate, open);
  if (shared_expert) {
    const PackedWeight &gate = weights.shared_gate_up.parts()[0], &up = weights.shared_gate_up.parts()[1];
    of_x.of(gate.dtype).swiglu(x, gate, up, shared_h);
  }
  count(of_x.run(stream_of(ctx)), "router and shared expert");
  route(ctx, logits, weights.bias, options, routing);
  FewRowsLaunch up(T);
  up.swiglu_experts(x, weights.gate, weights.up, routing.experts, h);
  up.run(stream_of(ctx));
  launched(ctx, "experts' gate and up");
  LaunchByFormat down(T);
  if (shared_expert) down.of(weights.shared_down.dtype).add(shared_h, weights.shared_down, shared);
  down.of(weights.down.dtype).experts(h, weights.down, routing.experts, y);
  count(down.run(stream_of(ctx)), "experts' down");

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

// Mixture of experts (ops/moe.h) but its products, which are in linear.cu.
//   route         one warp a row, its scores in 2 E floats of shared memory (and one flag a group). Every pick is a
//                 maximum over the warp, the lowest index of equals. Bound by latency: top_k picks of E / 32 steps.
//   moe_combine   one number a thread; bound by memory
#include "backends/cuda/device/reduce.cuh"
#include "backends/cuda/device/types.cuh"

namespace calandra {
namespace cuda {
namespace {

constexpr int kThreads = 256;

__device__ __forceinline__ float or_lowest(float x) { return isnan(x) ? -INFINITY : x; }

// The index of the largest candidate, the lowest of equal ones; NaN is no candidate. -1: there is none.
__device__ int best_of(const float* candidates, int count, int lane) {
  float value = -INFINITY;
  int best = -1;
  for (int i = lane; i < count; i += kWarp) {
    const float c = candidates[i];
    if (!isnan(c) && (best < 0 || c > value)) value = c, best = i;
  }
#pragma unroll
  for (int other = kWarp / 2; other > 0; other /= 2) {
    const float v = __shfl_xor_sync(kAllLanes, value, other);
    const int i = __shfl_xor_sync(kAllLanes, best, other);
    if (i >= 0 && (best < 0 || v > value || (v == value && i < best))) value = v, best = i;
  }
  return best;
}

__global__ void __launch_bounds__(kWarp)
    route_rows(Rows<const float> logits, const float* bias, int E, int top_k, int n_group, int topk_group,
               bool sigmoids, bool norm, float factor, int32_t* experts, float* weights) {
  extern __shared__ float shared[];
  float *scores = shared, *choice = scores + E, *groups = choice + E;
  const int lane = threadIdx.x;
  const int64_t t = blockIdx.x;
  const float* row = logits[t];
  if (sigmoids) {
    for (int e = lane; e < E; e += kWarp) scores[e] = sigmoid(row[e]);
  } else {
    float top = -INFINITY, sum = 0;
    for (int e = lane; e < E; e += kWarp) top = fmaxf(top, row[e]);  // NaN is passed over
    top = warp_max(top);
    for (int e = lane; e < E; e += kWarp) sum += expf(row[e] - top);
    sum = warp_sum(sum);
    for (int e = lane; e < E; e += kWarp) scores[e] = expf(row[e] - top) / sum;
  }
  for (int e = lane; e < E; e += kWarp) choice[e] = or_lowest(scores[e] + (bias != nullptr ? bias[e] : 0.0f));
  __syncwarp();

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

  float sum = 0;
  for (int j = 0; j < top_k; ++j) {
    const int e = best_of(choice, E, lane);
    __syncwarp();
    const float weight = scores[e];
    sum += weight;
    if (lane == 0) {
      experts[t * top_k + j] = e;
      weights[t * top_k + j] = weight;
      choice[e] = NAN;
    }
    __syncwarp();
  }
  if (lane == 0)
    for (int j = 0; j < top_k; ++j) {
      float weight = weights[t * top_k + j];
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

}  // namespace
}  // namespace cuda

using namespace cuda;

void CudaBackend::route(ExecContext& ctx, const Tensor& logits, const Tensor& bias, const ops::RouterOptions& options,
                        ops::Routing& out) {
  if (ctx.dry_run) return;
  const int64_t E = logits.size(1);
  const size_t bytes = static_cast<size_t>(2 * E + options.n_group) * sizeof(float);
  CHECK_LE(bytes, size_t{48 << 10});
  route_rows<<<static_cast<unsigned>(logits.size(0)), kWarp, bytes, stream_of(ctx)>>>(
      rows_of<float>(logits), bias.rank() > 0 ? bias.as<float>() : nullptr, static_cast<int>(E),
      static_cast<int>(options.top_k), static_cast<int>(options.n_group), static_cast<int>(options.topk_group),
      options.score == ops::RouterScore::kSigmoid, options.norm_topk_prob, options.routed_scaling_factor,
      out.experts.as<int32_t>(), out.weights.as<float>());
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

}  // namespace calandra

// The mixer around lightning attention (ops/lightning.h, lightning_mixer): what stands before the recurrence as one
// kernel, with the operations of its parts. A warp has a head of q, k or v of a row: silu, norm, rotation. D floats of
// shared memory a warp; few rows are bound by latency.
#include "backends/cuda/device/heads.cuh"
#include "backends/cuda/device/launch.cuh"
#include "backends/cuda/device/pipeline.cuh"
#include "backends/cuda/device/types.cuh"
#include "backends/cuda/scratch.h"

namespace calandra {
namespace cuda {
namespace {

constexpr int kWarps = 4;

struct LightningHeads {
  Rows<const float> qkv;         // heads of q, then of k, then of v
  const float *q_norm, *k_norm;  // null: no norm
  const float *cosines, *sines;  // [T, half]; half 0: no rotation
  float eps;
  bool silu;
  int64_t T;
  int H, D, half;
  float* out;  // as qkv, dense
};

__global__ void __launch_bounds__(kWarps* kWarp) lightning_heads(const __grid_constant__ LightningHeads a) {
  extern __shared__ float memory[];
  const int warp = threadIdx.x / kWarp, lane = threadIdx.x % kWarp, heads = 3 * a.H;
  const int64_t item = int64_t{blockIdx.x} * kWarps + warp, t = item / heads;
  const int h = static_cast<int>(item % heads);
  float* head = memory + warp * a.D;
  begin_as_follower();
  if (t >= a.T) return;
  const float* in = a.qkv[t] + h * a.D;
  for (int i = lane; i < a.D; i += kWarp) head[i] = a.silu ? in[i] * sigmoid(in[i]) : in[i];
  const float* norm = h < a.H ? a.q_norm : h < 2 * a.H ? a.k_norm : nullptr;
  if (norm != nullptr) norm_head<float>(head, norm, a.eps, 0, a.D, lane);
  __syncwarp();
  rotate_and_store(head, a.cosines + t * a.half, a.sines + t * a.half, h < 2 * a.H ? a.half : 0, a.D, lane,
                   a.out + item * a.D);
}

}  // namespace
}  // namespace cuda

using namespace cuda;

void CudaBackend::lightning_mixer(ExecContext& ctx, const Tensor& qkv, const Tensor& gate,
                                  const ops::LightningWeights& weights, const Tensor& table, LightningState& state,
                                  const Tensor& accepted, const Batch& batch, Tensor& out) {
  const int64_t T = qkv.size(0), H = state.S.size(1), D = state.S.size(2), G = weights.norm_groups, W = H * D / G;
  if (ctx.taps != nullptr || D > kMostOfHead)
    return Backend::lightning_mixer(ctx, qkv, gate, weights, table, state, accepted, batch, out);
  const Scratch scratch(ctx.workspace);
  const Tensor x = ctx.workspace.alloc(DType::kF32, {T, 3 * H * D});
  if (!ctx.dry_run) {
    const bool norm = weights.q_norm.rank() != 0;
    const LightningHeads args{rows_of<float>(qkv),
                              norm ? weights.q_norm.as<float>() : nullptr,
                              norm ? weights.k_norm.as<float>() : nullptr,
                              weights.rope ? table[0].as<float>() : nullptr,
                              weights.rope ? table[1].as<float>() : nullptr,
                              weights.eps,
                              weights.silu,
                              T,
                              static_cast<int>(H),
                              static_cast<int>(D),
                              weights.rope ? static_cast<int>(table.size(2)) : 0,
                              x.as<float>()};
    launch_follower(lightning_heads, dim3(blocks_for(T * 3 * H, kWarps)), dim3(kWarps * kWarp),
                    static_cast<size_t>(kWarps * D) * sizeof(float), stream_of(ctx), args);
    launched(ctx, "lightning heads");
  }
  const auto heads = [&](int64_t part) { return x.slice(1, part * H * D, (part + 1) * H * D).view({T, H, D}); };
  const Tensor o =
      ops::lightning_attention(ctx, heads(0), heads(1), heads(2), weights.slope, state, accepted, batch, out.dtype());
  if (ctx.dry_run) return;
  Tensor gated = out.view({T, G, W});
  gated_rms_norm(ctx, o.view({T, G, W}), gate.view({T, G, W}), weights.g_norm.view({G, W}), weights.eps,
                 ops::GateActivation::kSigmoid, gated);
}

}  // namespace calandra

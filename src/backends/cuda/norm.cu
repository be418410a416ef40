// Normalisations (ops/norm.h). A group of threads has one head (a row of a matrix has one): the head's sum of squares,
// then the products, the second read out of the caches. Heads of up to 1024 numbers have a warp, others a block. Bound
// by memory; no shared memory but for the block's sum.
#include "backends/cuda/device/reduce.cuh"
#include "backends/cuda/device/types.cuh"

namespace calandra {
namespace cuda {
namespace {

constexpr int kBlock = 256;

struct NormShape {
  int64_t T, H, D;
  float eps;
  int64_t weight_stride;  // D: a weight for each head; 0: one for all
};

// y = x rsqrt(mean(x^2) + eps) (offset + weight), or with a gate: ... weight act(z).
template <class T, int kGroup, bool kGated>
__global__ void __launch_bounds__(kBlock) norm_heads(Rows<const T> x, Rows<const T> z, const float* weight,
                                                     float offset, bool gate_silu, NormShape s, Output out) {
  const int64_t head = int64_t{blockIdx.x} * (kBlock / kGroup) + threadIdx.x / kGroup;
  if (head >= s.T * s.H) return;  // all threads of a group, and of its block when the group is the block
  const int64_t t = head / s.H, h = head % s.H;
  const T *in = x[t] + h * s.D, *gate = kGated ? z[t] + h * s.D : nullptr;
  const float* w = weight + h * s.weight_stride;
  const int lane = threadIdx.x % kGroup;
  float sum = 0;
  for (int64_t i = lane; i < s.D; i += kGroup) {
    const float v = to_float(in[i]);
    sum = fmaf(v, v, sum);
  }
  sum = group_sum<kGroup>(sum);
  const float scale = 1.0f / sqrtf(sum / static_cast<float>(s.D) + s.eps);
  for (int64_t i = lane; i < s.D; i += kGroup) {
    float y = to_float(in[i]) * scale * (offset + w[i]);
    if constexpr (kGated) {
      const float g = to_float(gate[i]);
      y *= gate_silu ? silu(g) : sigmoid(g);
    }
    out.store(head * s.D + i, y);
  }
}

template <bool kGated>
void run_norm(cudaStream_t stream, const Tensor& x, const Tensor& z, const Tensor& weight, float eps, float offset,
              bool gate_silu, Tensor& out) {
  const int64_t D = x.size(-1), H = x.rank() == 3 ? x.size(1) : 1;
  const NormShape shape{x.size(0), H, D, eps, weight.rank() == 2 ? D : 0};
  on_type(x.dtype(), [&]<class T>(T) {
    const auto launch = [&](auto kernel, int64_t group) {
      kernel<<<blocks_for(shape.T * H, kBlock / group), kBlock, 0, stream>>>(
          rows_of<T>(x), rows_of<T>(z), weight.as<float>(), offset, gate_silu, shape, output_of(out));
    };
    if (D <= 1024)
      launch(norm_heads<T, kWarp, kGated>, kWarp);
    else
      launch(norm_heads<T, kBlock, kGated>, kBlock);
  });
}

}  // namespace
}  // namespace cuda

using namespace cuda;

void CudaBackend::rms_norm(ExecContext& ctx, const Tensor& x, const Tensor& weight, float eps, float weight_offset,
                           Tensor& out) {
  run_norm<false>(stream_of(ctx), x, x, weight, eps, weight_offset, false, out);
  launched(ctx, "rms_norm");
}

void CudaBackend::gated_rms_norm(ExecContext& ctx, const Tensor& x, const Tensor& z, const Tensor& weight, float eps,
                                 ops::GateActivation act, Tensor& out) {
  run_norm<true>(stream_of(ctx), x, z, weight, eps, 0, act == ops::GateActivation::kSilu, out);
  launched(ctx, "gated_rms_norm");
}

}  // namespace calandra

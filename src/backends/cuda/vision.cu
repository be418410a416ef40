// Ops of vision towers (ops/vision.h) but attention, which is in attention.cu.
//   layer_norm      one block a row: mean, then the sum of squared differences, then the products; 32 bytes of shared
//                   memory for the sums of its 8 warps
//   gelu            one number a thread
//   weighted_rows   one number a thread, J reads of table rows
// No shared memory elsewhere. Bound by memory.
#include "backends/cuda/device/reduce.cuh"
#include "backends/cuda/device/types.cuh"

namespace calandra {
namespace cuda {
namespace {

constexpr int kThreads = 256;

template <class T>
__global__ void __launch_bounds__(kThreads)
    layer_norm_rows(Rows<const T> x, const float* weight, const float* bias, int64_t D, float eps, Output out) {
  const T* in = x[blockIdx.x];
  float sum = 0;
  for (int64_t i = threadIdx.x; i < D; i += kThreads) sum += to_float(in[i]);
  const float mean = group_sum<kThreads>(sum) / static_cast<float>(D);
  float squares = 0;
  for (int64_t i = threadIdx.x; i < D; i += kThreads) {
    const float d = to_float(in[i]) - mean;
    squares = fmaf(d, d, squares);
  }
  const float scale = 1.0f / sqrtf(group_sum<kThreads>(squares) / static_cast<float>(D) + eps);
  for (int64_t i = threadIdx.x; i < D; i += kThreads)
    out.store(blockIdx.x * D + i, fmaf((to_float(in[i]) - mean) * scale, weight[i], bias[i]));
}

// The inner polynomial in f64: its size multiplies the error of the exponent.
__device__ float gelu_of(float x, bool erf_form) {
  if (erf_form) return 0.5f * x * erfcf(-x * 0.70710678f);
  const double v = x, inner = 1.5957691216057308 * (v + 0.044715 * v * v * v);  // 2 sqrt(2 / pi)
  return x / (1.0f + expf(static_cast<float>(-inner)));
}

template <class T>
__global__ void __launch_bounds__(kThreads)
    gelu_numbers(Rows<const T> x, int64_t P, int64_t D, bool erf_form, Output out) {
  const int64_t i = int64_t{blockIdx.x} * kThreads + threadIdx.x;
  if (i < P * D) out.store(i, gelu_of(to_float(x[i / D][i % D]), erf_form));
}

__global__ void __launch_bounds__(kThreads)
    weighted_table_rows(Rows<const float> table, Rows<const int32_t> index, Rows<const float> weight, int64_t N,
                        int64_t P, int64_t J, int64_t D, Output out) {
  const int64_t i = int64_t{blockIdx.x} * kThreads + threadIdx.x;
  if (i >= P * D) return;
  const int64_t p = i / D, column = i % D;
  float sum = 0;
  for (int64_t j = 0; j < J; ++j) {
    const int32_t n = index[p][j];
    if (n >= 0 && n < N) sum = fmaf(weight[p][j], table[n][column], sum);
  }
  out.store(i, sum);
}

}  // namespace
}  // namespace cuda

using namespace cuda;

void CudaBackend::layer_norm(ExecContext& ctx, const Tensor& x, const Tensor& weight, const Tensor& bias, float eps,
                             Tensor& out) {
  on_type(x.dtype(), [&]<class T>(T) {
    layer_norm_rows<T><<<blocks_for(x.size(0), 1), kThreads, 0, stream_of(ctx)>>>(
        rows_of<T>(x), weight.as<float>(), bias.as<float>(), x.size(1), eps, output_of(out));
  });
  launched(ctx, "layer_norm");
}

void CudaBackend::gelu(ExecContext& ctx, const Tensor& x, ops::GeluForm form, Tensor& out) {
  on_type(x.dtype(), [&]<class T>(T) {
    gelu_numbers<T><<<blocks_for(out.numel(), kThreads), kThreads, 0, stream_of(ctx)>>>(
        rows_of<T>(x), x.size(0), x.size(1), form == ops::GeluForm::kErf, output_of(out));
  });
  launched(ctx, "gelu");
}

void CudaBackend::weighted_rows(ExecContext& ctx, const Tensor& table, const Tensor& index, const Tensor& weight,
                                Tensor& out) {
  weighted_table_rows<<<blocks_for(out.numel(), kThreads), kThreads, 0, stream_of(ctx)>>>(
      rows_of<float>(table), rows_of<int32_t>(index), rows_of<float>(weight), table.size(0), out.size(0), index.size(1),
      out.size(1), output_of(out));
  launched(ctx, "weighted_rows");
}

}  // namespace calandra

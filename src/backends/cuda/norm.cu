// Normalisations (ops/norm.h).
//   norm_row     rows of a matrix, after a sum of two or not: one block a row, 16 bytes a thread and turn, which stay
//   in
//                registers
//   norm_heads   heads: a group of threads has one, its sum of squares, then the products, the second read out of the
//                caches. Heads of up to kMostOfHead numbers have a warp, others a block.
// Bound by memory, few rows by latency; no shared memory but for the block's sum.
#include "backends/cuda/device/heads.cuh"
#include "backends/cuda/device/launch.cuh"
#include "backends/cuda/device/pipeline.cuh"
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
  begin_as_follower();
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

constexpr int kNumbers = 8;    // of a thread, neighbours
constexpr int kMostTurns = 4;  // of norm_row

template <class T>
struct RowNorm {
  Rows<const T> x, y;  // y: what is added first
  const float* weight;
  int D;
  float eps, offset;
  bool aligned;  // rows and weight begin at multiples of 16 bytes and D is a multiple of 8
  T *sum, *norm;
};

template <class T, int kTurns, bool kAdd>
__global__ void __launch_bounds__(kBlock) norm_row(const __grid_constant__ RowNorm<T> a) {
  const int64_t row = blockIdx.x;
  const auto first_of = [](int turn) { return (turn * kBlock + static_cast<int>(threadIdx.x)) * kNumbers; };
  const auto own_of = [&](int turn) { return min(max(a.D - first_of(turn), 0), kNumbers); };
  float v[kTurns][kNumbers], weight[kTurns][kNumbers], squares = 0;
  let_next_grid_begin();
#pragma unroll
  for (int turn = 0; turn < kTurns; ++turn) load_some(a.weight + first_of(turn), weight[turn], own_of(turn), a.aligned);
  wait_for_grid();
#pragma unroll
  for (int turn = 0; turn < kTurns; ++turn) {
    const int begin = first_of(turn), own = own_of(turn);
    load_some(a.x[row] + begin, v[turn], own, a.aligned);
    if constexpr (kAdd) {
      float other[kNumbers];
      load_some(a.y[row] + begin, other, own, a.aligned);
#pragma unroll
      for (int i = 0; i < kNumbers; ++i) v[turn][i] = rounded<T>(v[turn][i] + other[i]);
      store_some(a.sum + row * a.D + begin, v[turn], own, a.aligned);
    }
#pragma unroll
    for (int i = 0; i < kNumbers; ++i) squares = fmaf(v[turn][i], v[turn][i], squares);
  }
  const float scale = 1.0f / sqrtf(group_sum<kBlock>(squares) / static_cast<float>(a.D) + a.eps);
#pragma unroll
  for (int turn = 0; turn < kTurns; ++turn) {
#pragma unroll
    for (int i = 0; i < kNumbers; ++i) v[turn][i] = v[turn][i] * scale * (a.offset + weight[turn][i]);
    store_some(a.norm + row * a.D + first_of(turn), v[turn], own_of(turn), a.aligned);
  }
}

template <class T, bool kAdd>
void run_norm_row(cudaStream_t stream, int64_t rows, const RowNorm<T>& norm) {
  const auto launch = [&](auto kernel) {
    launch_follower(kernel, dim3(static_cast<unsigned>(rows)), dim3(kBlock), 0, stream, norm);
  };
  if (norm.D <= kBlock * kNumbers)
    launch(norm_row<T, 1, kAdd>);
  else if (norm.D <= 2 * kBlock * kNumbers)
    launch(norm_row<T, 2, kAdd>);
  else
    launch(norm_row<T, kMostTurns, kAdd>);
}

// Whether norm_row has the rows of x.
bool rows_of_norm(const Tensor& x) {
  return x.rank() == 2 && x.size(1) >= kWarp * kNumbers && x.size(1) <= kMostTurns * kBlock * kNumbers;
}

template <class T>
RowNorm<T> row_norm(const Tensor& x, const Tensor& y, const Tensor& weight, float eps, float offset, Tensor& norm) {
  return {rows_of<T>(x),
          rows_of<T>(y),
          weight.as<float>(),
          static_cast<int>(x.size(1)),
          eps,
          offset,
          x.size(1) % kNumbers == 0 && rows_aligned(x, 16) && rows_aligned(y, 16) && rows_aligned(weight, 16),
          nullptr,
          static_cast<T*>(norm.data())};
}

template <bool kGated>
void run_norm(cudaStream_t stream, const Tensor& x, const Tensor& z, const Tensor& weight, float eps, float offset,
              bool gate_silu, Tensor& out) {
  const int64_t D = x.size(-1), H = x.rank() == 3 ? x.size(1) : 1;
  const NormShape shape{x.size(0), H, D, eps, weight.rank() == 2 ? D : 0};
  on_type(x.dtype(), [&]<class T>(T) {
    const auto launch = [&](auto kernel, int64_t group) {
      launch_follower(kernel, dim3(blocks_for(shape.T * H, kBlock / group)), dim3(kBlock), 0, stream, rows_of<T>(x),
                      rows_of<T>(z), weight.as<float>(), offset, gate_silu, shape, output_of(out));
    };
    if (D <= kMostOfHead)
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
  if (rows_of_norm(x))
    on_type(x.dtype(), [&]<class T>(T) {
      run_norm_row<T, false>(stream_of(ctx), x.size(0), row_norm<T>(x, x, weight, eps, weight_offset, out));
    });
  else
    run_norm<false>(stream_of(ctx), x, x, weight, eps, weight_offset, false, out);
  launched(ctx, "rms_norm");
}

void CudaBackend::add_rms_norm(ExecContext& ctx, const Tensor& x, const Tensor& y, const Tensor& weight, float eps,
                               float weight_offset, Tensor& sum, Tensor& norm) {
  if (ctx.dry_run) return;
  if (!rows_of_norm(x)) return Backend::add_rms_norm(ctx, x, y, weight, eps, weight_offset, sum, norm);
  on_type(x.dtype(), [&]<class T>(T) {
    RowNorm<T> args = row_norm<T>(x, y, weight, eps, weight_offset, norm);
    args.sum = static_cast<T*>(sum.data());
    run_norm_row<T, true>(stream_of(ctx), x.size(0), args);
  });
  launched(ctx, "add_rms_norm");
}

void CudaBackend::gated_rms_norm(ExecContext& ctx, const Tensor& x, const Tensor& z, const Tensor& weight, float eps,
                                 ops::GateActivation act, Tensor& out) {
  run_norm<true>(stream_of(ctx), x, z, weight, eps, 0, act == ops::GateActivation::kSilu, out);
  launched(ctx, "gated_rms_norm");
}

}  // namespace calandra

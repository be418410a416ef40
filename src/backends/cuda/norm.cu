// Normalisations (ops/norm.h).
//   norm_row     rows of a matrix, after a sum of two or not: a block has rows in turn, whose weights stay in its
//                registers, as does a row, 16 bytes a thread and turn
//   norm_heads   heads of up to kMostOfHead numbers: a warp has one after the other; longer ones have a block
// Bound by memory, few rows by latency; no shared memory but for the block's sum.
#include <algorithm>

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
__device__ __forceinline__ float normed(float x, float scale, float weight, float gate, bool gated, bool gate_silu) {
  const float y = x * scale * weight;
  return !gated ? y : y * (gate_silu ? silu(gate) : sigmoid(gate));
}

// Heads of at most kTurns kWarp numbers.
template <class T, int kTurns, bool kGated>
__global__ void __launch_bounds__(kBlock) norm_heads(Rows<const T> x, Rows<const T> z, const float* weight,
                                                     float offset, bool gate_silu, NormShape s, Output out) {
  constexpr int kWarps = kBlock / kWarp;
  const int64_t first = int64_t{blockIdx.x} * kWarps + threadIdx.x / kWarp, heads = s.T * s.H,
                step = int64_t{gridDim.x} * kWarps;
  const int lane = threadIdx.x % kWarp;
  T own[kTurns], gates[kTurns];  // of the next head
  const auto load_head = [&](int64_t head) {
    const T *in = x[head / s.H] + head % s.H * s.D, *gate = kGated ? z[head / s.H] + head % s.H * s.D : nullptr;
#pragma unroll
    for (int turn = 0; turn < kTurns; ++turn) {
      const int i = turn * kWarp + lane;
      if (i >= s.D) continue;
      own[turn] = in[i];
      if constexpr (kGated) gates[turn] = gate[i];
    }
  };
  begin_as_follower();
  if (first < heads) load_head(first);
  for (int64_t head = first; head < heads; head += step) {
    const float* w = weight + head % s.H * s.weight_stride;
    float v[kTurns], gate[kTurns], sum = 0;
#pragma unroll
    for (int turn = 0; turn < kTurns; ++turn) {
      if (turn * kWarp + lane >= s.D) continue;
      v[turn] = to_float(own[turn]);
      sum = fmaf(v[turn], v[turn], sum);
      if constexpr (kGated) gate[turn] = to_float(gates[turn]);
    }
    if (head + step < heads) load_head(head + step);
    const float scale = 1.0f / sqrtf(warp_sum(sum) / static_cast<float>(s.D) + s.eps);
#pragma unroll
    for (int turn = 0; turn < kTurns; ++turn) {
      const int i = turn * kWarp + lane;
      if (i < s.D)
        out.store(head * s.D + i, normed(v[turn], scale, offset + w[i], kGated ? gate[turn] : 0, kGated, gate_silu));
    }
  }
}

// Longer heads: a block each, the second reads out of the caches.
template <class T, bool kGated>
__global__ void __launch_bounds__(kBlock) norm_long_heads(Rows<const T> x, Rows<const T> z, const float* weight,
                                                          float offset, bool gate_silu, NormShape s, Output out) {
  const int64_t head = blockIdx.x, t = head / s.H, h = head % s.H;
  begin_as_follower();
  const T *in = x[t] + h * s.D, *gate = kGated ? z[t] + h * s.D : nullptr;
  const float* w = weight + h * s.weight_stride;
  float sum = 0;
  for (int64_t i = threadIdx.x; i < s.D; i += kBlock) {
    const float v = to_float(in[i]);
    sum = fmaf(v, v, sum);
  }
  const float scale = 1.0f / sqrtf(group_sum<kBlock>(sum) / static_cast<float>(s.D) + s.eps);
  for (int64_t i = threadIdx.x; i < s.D; i += kBlock)
    out.store(head * s.D + i,
              normed(to_float(in[i]), scale, offset + w[i], kGated ? to_float(gate[i]) : 0, kGated, gate_silu));
}

constexpr int kNumbers = 8;    // of a thread, neighbours
constexpr int kMostTurns = 4;  // of norm_row
template <class T>
struct RowNorm {
  Rows<const T> x, y;  // y: what is added first
  const float* weight;
  int rows, D;
  float eps, offset;
  bool aligned;  // rows and weight begin at multiples of 16 bytes and D is a multiple of 8
  T *sum, *norm;
};

template <class T, int kTurns, bool kAdd>
__global__ void __launch_bounds__(kBlock) norm_row(const __grid_constant__ RowNorm<T> a) {
  const auto first_of = [](int turn) { return (turn * kBlock + static_cast<int>(threadIdx.x)) * kNumbers; };
  const auto own_of = [&](int turn) { return min(max(a.D - first_of(turn), 0), kNumbers); };
  float v[kTurns][kNumbers], weight[kTurns][kNumbers];
  Vec<T, kNumbers> x[kTurns], y[kTurns];  // of the next row
  const auto load_row = [&](int64_t row) {
#pragma unroll
    for (int turn = 0; turn < kTurns; ++turn) {
      copy_some(a.x[row] + first_of(turn), x[turn], own_of(turn), a.aligned);
      if constexpr (kAdd) copy_some(a.y[row] + first_of(turn), y[turn], own_of(turn), a.aligned);
    }
  };
  let_next_grid_begin();
#pragma unroll
  for (int turn = 0; turn < kTurns; ++turn) load_some(a.weight + first_of(turn), weight[turn], own_of(turn), a.aligned);
  wait_for_grid();
  load_row(blockIdx.x);
  for (int64_t row = blockIdx.x; row < a.rows; row += gridDim.x) {
    float squares = 0;
#pragma unroll
    for (int turn = 0; turn < kTurns; ++turn) {
#pragma unroll
      for (int i = 0; i < kNumbers; ++i) {
        v[turn][i] = to_float(x[turn].at[i]);
        if constexpr (kAdd) v[turn][i] = rounded<T>(v[turn][i] + to_float(y[turn].at[i]));
        squares = fmaf(v[turn][i], v[turn][i], squares);
      }
      if constexpr (kAdd) store_some(a.sum + row * a.D + first_of(turn), v[turn], own_of(turn), a.aligned);
    }
    if (row + gridDim.x < a.rows) load_row(row + gridDim.x);
    const float scale = 1.0f / sqrtf(group_sum<kBlock>(squares) / static_cast<float>(a.D) + a.eps);
#pragma unroll
    for (int turn = 0; turn < kTurns; ++turn) {
#pragma unroll
      for (int i = 0; i < kNumbers; ++i) v[turn][i] = v[turn][i] * scale * (a.offset + weight[turn][i]);
      store_some(a.norm + row * a.D + first_of(turn), v[turn], own_of(turn), a.aligned);
    }
  }
}

template <class T, int kTurns, bool kAdd>
void run_norm_row(cudaStream_t stream, const RowNorm<T>& norm) {
  if constexpr (kTurns < kMostTurns)
    if (norm.D > kTurns * kBlock * kNumbers) return run_norm_row<T, kTurns + 1, kAdd>(stream, norm);
  constexpr auto kKernel = norm_row<T, kTurns, kAdd>;
  launch_follower(kKernel, dim3(static_cast<unsigned>(std::min<int64_t>(norm.rows, resident_blocks<kKernel>(kBlock)))),
                  dim3(kBlock), 0, stream, norm);
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
          static_cast<int>(x.size(0)),
          static_cast<int>(x.size(1)),
          eps,
          offset,
          x.size(1) % kNumbers == 0 && rows_aligned(x, 16) && rows_aligned(y, 16) &&
              reinterpret_cast<uintptr_t>(weight.data()) % 16 == 0,
          nullptr,
          static_cast<T*>(norm.data())};
}

template <bool kGated>
void run_norm(cudaStream_t stream, const Tensor& x, const Tensor& z, const Tensor& weight, float eps, float offset,
              bool gate_silu, Tensor& out) {
  const int64_t D = x.size(-1), H = x.rank() == 3 ? x.size(1) : 1;
  const NormShape shape{x.size(0), H, D, eps, weight.rank() == 2 ? D : 0};
  on_type(x.dtype(), [&]<class T>(T) {
    const auto launch = [&](auto kernel, int64_t blocks) {
      launch_follower(kernel, dim3(static_cast<unsigned>(blocks)), dim3(kBlock), 0, stream, rows_of<T>(x),
                      rows_of<T>(z), weight.as<float>(), offset, gate_silu, shape, output_of(out));
    };
    const int64_t heads = shape.T * H;
    const auto launch_warps = [&]<int kTurns>() {
      constexpr auto kKernel = norm_heads<T, kTurns, kGated>;
      launch(kKernel, std::min<int64_t>(blocks_for(heads, kBlock / kWarp), resident_blocks<kKernel>(kBlock)));
    };
    if (D <= 4 * kWarp)
      launch_warps.template operator()<4>();
    else if (D <= kMostOfHead)
      launch_warps.template operator()<kMostOfHead / kWarp>();
    else
      launch(norm_long_heads<T, kGated>, heads);
  });
}

}  // namespace
}  // namespace cuda

using namespace cuda;

void CudaBackend::rms_norm(ExecContext& ctx, const Tensor& x, const Tensor& weight, float eps, float weight_offset,
                           Tensor& out) {
  if (rows_of_norm(x))
    on_type(x.dtype(), [&]<class T>(T) {
      run_norm_row<T, 1, false>(stream_of(ctx), row_norm<T>(x, x, weight, eps, weight_offset, out));
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
    run_norm_row<T, 1, true>(stream_of(ctx), args);
  });
  launched(ctx, "add_rms_norm");
}

void CudaBackend::gated_rms_norm(ExecContext& ctx, const Tensor& x, const Tensor& z, const Tensor& weight, float eps,
                                 ops::GateActivation act, Tensor& out) {
  run_norm<true>(stream_of(ctx), x, z, weight, eps, 0, act == ops::GateActivation::kSilu, out);
  launched(ctx, "gated_rms_norm");
}

}  // namespace calandra

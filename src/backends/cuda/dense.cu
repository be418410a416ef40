// Elementwise products and moves of rows (ops/dense.h). All are bound by memory: one pass, 16 bytes a thread where rows
// are aligned to that, one number a thread otherwise. No shared memory. Expected: nine tenths of the memory's speed in
// prompts (silu and product of 9B, bench/results/cuda_prefill.md); few rows are bound by latency.
#include "backends/cuda/device/launch.cuh"
#include "backends/cuda/device/pipeline.cuh"
#include "backends/cuda/device/types.cuh"
#include "backends/cuda/packed_rows.h"

namespace calandra {
namespace cuda {
namespace {

constexpr int kThreads = 256;

// out[t, i] = f(a[t, i], b[t, i]); b may have one number per row. One vector of kVec numbers a thread.
template <class T, class O, int kVec, class F>
__global__ void __launch_bounds__(kThreads)
    elementwise(Rows<const T> a, Rows<const T> b, bool b_per_row, O* out, int64_t T_, int64_t D, F f) {
  const int64_t vectors = D / kVec, i = int64_t{blockIdx.x} * kThreads + threadIdx.x;
  begin_as_follower();
  if (i >= T_ * vectors) return;
  const int64_t t = i / vectors, column = i % vectors * kVec;
  float x[kVec], y[kVec];
  load_floats(a[t] + column, x);
  if (b_per_row) {
    const float one = to_float(b[t][0]);
#pragma unroll
    for (int j = 0; j < kVec; ++j) y[j] = one;
  } else {
    load_floats(b[t] + column, y);
  }
  Vec<O, kVec> result;
#pragma unroll
  for (int j = 0; j < kVec; ++j) result.at[j] = from_float<O>(f(x[j], y[j]));
  *reinterpret_cast<Vec<O, kVec>*>(out + t * D + column) = result;
}

// silu and sigmoid are rounded to T before the product, as HF does.
template <class T>
struct SiluMul {
  __device__ float operator()(float gate, float up) const { return rounded<T>(silu(gate)) * up; }
};
template <class T>
struct SigmoidMul {
  __device__ float operator()(float x, float gate) const { return x * rounded<T>(sigmoid(gate)); }
};
struct Sigmoid {
  __device__ float operator()(float x, float) const { return sigmoid(x); }
};
struct Add {
  __device__ float operator()(float a, float b) const { return a + b; }
};

template <class T, class O, class F>
void run_elementwise(cudaStream_t stream, const Tensor& a, const Tensor& b, Tensor& out, F f) {
  const int64_t rows = out.size(0), D = out.size(1);
  constexpr int kVec = 16 / sizeof(T);
  const bool b_per_row = b.size(1) == 1 && D != 1;
  const bool aligned = D % kVec == 0 && rows_aligned(a, 16) && (b_per_row || rows_aligned(b, 16));
  const auto launch = [&](auto kernel, int64_t width) {
    launch_follower(kernel, dim3(blocks_for(rows * (D / width), kThreads)), dim3(kThreads), 0, stream, rows_of<T>(a),
                    rows_of<T>(b), b_per_row, static_cast<O*>(out.data()), rows, D, f);
  };
  if (aligned)
    launch(elementwise<T, O, kVec, F>, kVec);
  else
    launch(elementwise<T, O, 1, F>, 1);
}

// One number a thread.
template <class W>
__global__ void __launch_bounds__(kThreads)
    embedding_rows(const int32_t* ids, const std::byte* weight, int64_t row_bytes, int64_t N, int64_t K,
                   int64_t values_bytes, int64_t block_k, Output out, int64_t T_) {
  const int64_t i = int64_t{blockIdx.x} * kThreads + threadIdx.x;
  begin_as_follower();
  if (i >= T_ * K) return;
  const int64_t t = i / K, k = i % K, id = ids[t];
  float value = 0;
  if (id >= 0 && id < N) {
    const std::byte* row = weight + id * row_bytes;
    value = to_float(reinterpret_cast<const W*>(row)[k]);
    if constexpr (sizeof(W) == 1) value *= reinterpret_cast<const float*>(row + values_bytes)[k / block_k];
  }
  out.store(i, value);
}

// to[to_rows[i]] = from[from_rows[i]], rows of `bytes` bytes in units of U; a list that is null counts.
template <class U>
__global__ void __launch_bounds__(kThreads) move_rows(Rows<const U> from, const int32_t* from_rows, Rows<U> to,
                                                      const int32_t* to_rows, int64_t count, int64_t width) {
  const int64_t i = int64_t{blockIdx.x} * kThreads + threadIdx.x;
  begin_as_follower();
  if (i >= count * width) return;
  const int64_t row = i / width, column = i % width;
  to[to_rows != nullptr ? to_rows[row] : row][column] = from[from_rows != nullptr ? from_rows[row] : row][column];
}

void run_move(cudaStream_t stream, const Tensor& from, const int32_t* from_rows, Tensor& to, const int32_t* to_rows,
              int64_t count, int64_t columns) {
  const int64_t bytes = columns * static_cast<int64_t>(size_of(to.dtype()));
  const auto as = [&](auto unit) {
    using U = decltype(unit);
    const int64_t width = bytes / static_cast<int64_t>(sizeof(U));
    const auto stride = [](const Tensor& x) {
      return x.stride(0) * static_cast<int64_t>(size_of(x.dtype())) / static_cast<int64_t>(sizeof(U));
    };
    launch_follower(move_rows<U>, dim3(blocks_for(count * width, kThreads)), dim3(kThreads), 0, stream,
                    Rows<const U>{static_cast<const U*>(from.data()), stride(from)}, from_rows,
                    Rows<U>{static_cast<U*>(to.data()), stride(to)}, to_rows, count, width);
  };
  if (bytes % 16 == 0 && rows_aligned(from, 16) && rows_aligned(to, 16))
    as(uint4{});
  else
    as(uint16_t{});
}

}  // namespace
}  // namespace cuda

using namespace cuda;

void CudaBackend::silu_mul(ExecContext& ctx, const Tensor& gate, const Tensor& up, Tensor& out) {
  on_type(out.dtype(), [&]<class T>(T) { run_elementwise<T, T>(stream_of(ctx), gate, up, out, SiluMul<T>{}); });
  launched(ctx, "silu_mul");
}

void CudaBackend::sigmoid_mul(ExecContext& ctx, const Tensor& x, const Tensor& gate, Tensor& out) {
  on_type(out.dtype(), [&]<class T>(T) { run_elementwise<T, T>(stream_of(ctx), x, gate, out, SigmoidMul<T>{}); });
  launched(ctx, "sigmoid_mul");
}

void CudaBackend::sigmoid(ExecContext& ctx, const Tensor& x, Tensor& out) {
  on_type(x.dtype(), [&]<class T>(T) { run_elementwise<T, float>(stream_of(ctx), x, x, out, Sigmoid{}); });
  launched(ctx, "sigmoid");
}

void CudaBackend::add(ExecContext& ctx, const Tensor& a, const Tensor& b, Tensor& out) {
  on_type(out.dtype(), [&]<class T>(T) { run_elementwise<T, T>(stream_of(ctx), a, b, out, Add{}); });
  launched(ctx, "add");
}

void CudaBackend::embedding(ExecContext& ctx, const Tensor& ids, const PackedWeight& weight, Tensor& out) {
  on_stored_type(weight.dtype, [&]<class W>(W) {
    launch_follower(embedding_rows<W>, dim3(blocks_for(out.numel(), kThreads)), dim3(kThreads), 0, stream_of(ctx),
                    ids.as<int32_t>(), weight.packed.bytes_at(0), packed_row(weight.dtype, weight.K, weight.block_k),
                    weight.N, weight.K, padded_values(weight.dtype, weight.K), weight.block_k, output_of(out),
                    ids.size(0));
  });
  launched(ctx, "embedding");
}

void CudaBackend::gather_rows(ExecContext& ctx, const Tensor& x, const Tensor& rows, Tensor& out) {
  run_move(stream_of(ctx), x, rows.as<int32_t>(), out, nullptr, rows.size(0), out.size(1));
  launched(ctx, "gather_rows");
}

void CudaBackend::scatter_rows(ExecContext& ctx, Tensor& x, const Tensor& rows, const Tensor& values) {
  run_move(stream_of(ctx), values, nullptr, x, rows.as<int32_t>(), rows.size(0), x.size(1));
  launched(ctx, "scatter_rows");
}

void CudaBackend::concat_columns(ExecContext& ctx, const Tensor& a, const Tensor& b, Tensor& out) {
  Tensor left = out.slice(1, 0, a.size(1)), right = out.slice(1, a.size(1), out.size(1));
  if (a.size(1) > 0) run_move(stream_of(ctx), a, nullptr, left, nullptr, out.size(0), a.size(1));
  launched(ctx, "concat_columns");
  if (b.size(1) > 0) run_move(stream_of(ctx), b, nullptr, right, nullptr, out.size(0), b.size(1));
  launched(ctx, "concat_columns");
}

}  // namespace calandra

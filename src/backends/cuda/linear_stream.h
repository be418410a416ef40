// The launch of device/sm90_stream_f8.cuh: products that share it are one launch.
#pragma once

#include "backends/cuda/cuda_backend.h"
#include "backends/cuda/device/sm90_stream_f8.cuh"

namespace calandra::cuda {

// Whether stream_f8 has the product of rows x and is faster; the others are few_rows' or gemm_f8's. The borders are
// measured on an H100: see bench/results/cuda_small_kernels.md.
constexpr int64_t kStreamRows = 17;
bool has_stream(const Tensor& x, const PackedWeight& weight);

// Collects up to four products of one x with weights of f8 and launches them.
class StreamLaunch {
 public:
  explicit StreamLaunch(const Tensor& x);  // [T, K] bf16

  // y = x W^T + bias into the columns of `out` from `column` on, to which `residual` is added if there is one
  void add(const PackedWeight& weight, const Tensor& out, int64_t column = 0, const Tensor& residual = {});
  // silu(gate) * up
  void swiglu(const PackedWeight& gate, const PackedWeight& up, const Tensor& out);

  void run(cudaStream_t stream);

 private:
  StreamPart& part(const PackedWeight& first, const PackedWeight& second, const Tensor& out, After after);
  template <int kRows>
  void launch(cudaStream_t stream);

  const Tensor& x_;
  StreamArgs args_{};
  int tiles_ = 0;
  int64_t outputs_ = 0;
};

}  // namespace calandra::cuda

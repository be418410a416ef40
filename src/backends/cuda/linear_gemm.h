// The launch of device/sm90_gemm.cuh: products that share it are one launch.
#pragma once

#include <array>

#include "backends/cuda/cuda_backend.h"
#include "backends/cuda/device/sm90_gemm.cuh"

namespace calandra::cuda {

// Whether gemm has the product and is faster; the others are few_rows' or the plain kernel's. The borders, in rows, are
// measured on an H100: see bench/results/cuda_gemm.md.
constexpr int64_t kGemmRows = 17, kGemmF8Rows = 33, kGemmExpertRows = 33;
bool has_gemm(const Tensor& x, const PackedWeight& weight);

// Rows of x in an order in which each expert's follow each other, on the device.
struct SortedRows {
  int tile;            // rows of a tile: 64 or 128
  int64_t most_tiles;  // no list is longer
  const int32_t* tile_count;
  const GemmRows* tiles;
  const int32_t* out_rows;
};

// Collects up to four products of weights of one format with one x and launches them.
class GemmLaunch {
 public:
  explicit GemmLaunch(const Tensor& x);  // [T, K] bf16
  GemmLaunch(const Tensor& x, const SortedRows& sorted);

  // y = x W^T + bias into the columns of `out` from `column` on, to which `residual` is added if there is one
  void add(const PackedWeight& weight, const Tensor& out, int64_t column = 0, const Tensor& residual = {});
  // The experts' products of sorted rows.   out [rows, N], each to its row
  void experts(const GroupedWeight& weight, const Tensor& out);

  // `tile`: which of kTiles; for benches. -1: lets it choose.
  void run(cudaStream_t stream, int tile = -1);

 private:
  GemmPart& part(const PackedWeight& weight, int64_t experts, int64_t expert_bytes, const Tensor& out);

  // A block for each tile, at most one for each multiprocessor.
  template <int kRows, int kColumns, auto kKernel>
  void launch(int threads, cudaStream_t stream);

  const Tensor& x_;
  int sorted_tile_ = 0;  // rows; 0: not sorted
  GemmArgs args_{};
  DType stored_{};
  std::array<int64_t, GemmArgs::kMostParts> experts_{};
};

}  // namespace calandra::cuda

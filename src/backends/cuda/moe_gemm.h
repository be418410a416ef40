// Products of many rows with their experts, by device/sm90_gemm.cuh.
#pragma once

#include "backends/cuda/cuda_backend.h"
#include "backends/cuda/linear_gemm.h"

namespace calandra::cuda {

// Whether grouped_gemm has the product; the others are few_rows' or the plain kernel's.
bool has_grouped_gemm(const Tensor& x, const GroupedWeight& weight);

// The choices [T, k] of experts in an order in which those of each expert follow each other, on the device.
class ExpertOrder {
 public:
  // Memory in the workspace; in a dry run, too.
  ExpertOrder(ExecContext& ctx, const Tensor& experts, int64_t E);
  void sort(cudaStream_t stream) const;
  // Rows of x, [T, K] or [T, k, K], in that order; zeros in `out` [T, k, N] for a choice of no expert, unless it is
  // absent.    sorted [T k, K]
  void gather(cudaStream_t stream, const Tensor& x, const Tensor& sorted, const Tensor& out = {}) const;
  // For products of sorted rows, whose results stay in that order.
  SortedRows sorted() const;
  // The same, but that results go to their choices' places.
  SortedRows scattered() const;

 private:
  const Tensor experts_;
  const int64_t choices_, E_;
  const int tile_;  // rows
  const Tensor place_, count_, tiles_;
};

// ops::grouped_linear. Allocates its scratch in a dry run, too. Returns the launches: sort, gather, product.
int grouped_gemm(ExecContext& ctx, const Tensor& x, const GroupedWeight& weight, const Tensor& experts, Tensor& out);

}  // namespace calandra::cuda

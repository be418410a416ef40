// Products of many rows with their experts, by device/gemm.cuh.
#pragma once

#include "backends/cuda/cuda_backend.h"

namespace calandra::cuda {

// Whether grouped_gemm has the product; the others are few_rows' or the plain kernel's.
bool has_grouped_gemm(const Tensor& x, const GroupedWeight& weight);

// ops::grouped_linear. Allocates its scratch in a dry run, too. Returns the launches: sort, gather, product.
int grouped_gemm(ExecContext& ctx, const Tensor& x, const GroupedWeight& weight, const Tensor& experts, Tensor& out);

}  // namespace calandra::cuda

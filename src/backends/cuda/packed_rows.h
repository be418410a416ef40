// How a weight [N, K] lies in device memory: row by row, K values padded with zeros to a multiple of 32, so that
// kernels read whole steps of their sums with 16 bytes a thread; of f8_e4m3, the row's scales behind them. A block of
// scales that has a NaN has a NaN as its scale, since kernels need not convert NaNs: an embedding's row has more NaNs
// then than were stored, sums have the same.
#pragma once

#include <cuda_runtime.h>

#include <cstddef>

#include "tensor/dtype.h"

namespace calandra::cuda {

constexpr int64_t kStep = 32;  // inputs of one step of a sum

constexpr int64_t padded(int64_t n, int64_t unit) { return (n + unit - 1) / unit * unit; }

// Bytes of a row's values.
constexpr int64_t padded_values(DType dtype, int64_t K) {
  return padded(K, kStep) * static_cast<int64_t>(size_of(dtype));
}

// Bytes from row to row.
constexpr int64_t packed_row(DType dtype, int64_t K, int64_t block_k) {
  const int64_t values = padded_values(dtype, K);
  return dtype == DType::kF8E4M3 ? padded(values + (K + block_k - 1) / block_k * 4, 16) : values;
}

// Puts NaNs into the scales of blocks that have some.   packed: N rows of f8_e4m3 as above
void scale_nans(cudaStream_t stream, std::byte* packed, int64_t N, int64_t K, int64_t block_k);

}  // namespace calandra::cuda

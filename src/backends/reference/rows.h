// Rows of tensors as f32 vectors, and of packed weights. A row is everything behind the first axis, which is dense.
#pragma once

#include <span>
#include <vector>

#include "tensor/tensor.h"

namespace calandra::reference {

// Numbers in a row.
int64_t row_size(const Tensor& tensor);

// `count` numbers of type `dtype` at `from`, as f32.
std::vector<float> load(const void* from, DType dtype, int64_t count);
void store(std::span<const float> values, void* to, DType dtype);

inline std::vector<float> load_row(const Tensor& tensor, int64_t row) {
  return load(tensor.bytes_at(row * tensor.stride(0)), tensor.dtype(), row_size(tensor));
}
inline void store_row(std::span<const float> values, Tensor& tensor, int64_t row) {
  store(values, tensor.bytes_at(row * tensor.stride(0)), tensor.dtype());
}
// Bytes of a row copied between tensors of one row shape and type; the rows may be the same one.
void copy_row(const Tensor& from, int64_t from_row, Tensor& to, int64_t to_row);
void zero_row(Tensor& tensor, int64_t row);

// Bytes of a row of a packed weight: K values; of f8_e4m3, padded to four bytes and with a scale behind them for every
// block_k of them.
size_t packed_row(DType dtype, int64_t K, int64_t block_k);

// The value rounded to `dtype` (f32 | bf16).
inline float rounded(float value, DType dtype) {
  return dtype == DType::kBF16 ? static_cast<float>(bf16(value)) : value;
}

double silu(double x);
double sigmoid(double x);

}  // namespace calandra::reference

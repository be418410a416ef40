#include "backends/reference/rows.h"

#include <cmath>
#include <cstring>

namespace calandra::reference {
namespace {

template <class T>
void load_as(const void* from, std::vector<float>& values) {
  const T* typed = static_cast<const T*>(from);
  for (size_t i = 0; i < values.size(); ++i) values[i] = static_cast<float>(typed[i]);
}

template <class T>
void store_as(std::span<const float> values, void* to) {
  T* typed = static_cast<T*>(to);
  for (size_t i = 0; i < values.size(); ++i) typed[i] = T(values[i]);
}

}  // namespace

int64_t row_size(const Tensor& tensor) {
  int64_t size = 1;
  for (int axis = 1; axis < tensor.rank(); ++axis) size *= tensor.size(axis);
  return size;
}

std::vector<float> load(const void* from, DType dtype, int64_t count) {
  std::vector<float> values(static_cast<size_t>(count));
  switch (dtype) {
    case DType::kF32:
      load_as<float>(from, values);
      break;
    case DType::kBF16:
      load_as<bf16>(from, values);
      break;
    case DType::kF16:
      load_as<f16>(from, values);
      break;
    case DType::kF8E4M3:
      load_as<f8_e4m3>(from, values);
      break;
    default:
      CHECK_MSG(false, std::string(name_of(dtype)));
  }
  return values;
}

void store(std::span<const float> values, void* to, DType dtype) {
  switch (dtype) {
    case DType::kF32:
      store_as<float>(values, to);
      break;
    case DType::kBF16:
      store_as<bf16>(values, to);
      break;
    default:
      CHECK_MSG(false, std::string(name_of(dtype)));
  }
}

size_t packed_row(DType dtype, int64_t K, int64_t block_k) {
  const auto values = static_cast<size_t>(K) * size_of(dtype);
  if (dtype != DType::kF8E4M3) return values;
  return (values + 3) / 4 * 4 + static_cast<size_t>((K + block_k - 1) / block_k) * sizeof(float);
}

void copy_row(const Tensor& from, int64_t from_row, Tensor& to, int64_t to_row) {
  const size_t bytes = static_cast<size_t>(row_size(to)) * size_of(to.dtype());
  if (bytes > 0) std::memmove(to.bytes_at(to_row * to.stride(0)), from.bytes_at(from_row * from.stride(0)), bytes);
}

void zero_row(Tensor& tensor, int64_t row) {
  const size_t bytes = static_cast<size_t>(row_size(tensor)) * size_of(tensor.dtype());
  if (bytes > 0) std::memset(tensor.bytes_at(row * tensor.stride(0)), 0, bytes);
}

double silu(double x) { return x * sigmoid(x); }
double sigmoid(double x) { return 1 / (1 + std::exp(-x)); }

}  // namespace calandra::reference

// Elements of a tensor as f32, whatever their type: the reference pays a branch per element for plain loops.
#pragma once

#include "tensor/tensor.h"

namespace calandra::reference {

inline float load(const void* data, DType dtype, int64_t i) {
  switch (dtype) {
    case DType::kBF16:
      return static_cast<float>(static_cast<const bf16*>(data)[i]);
    case DType::kF16:
      return static_cast<float>(static_cast<const f16*>(data)[i]);
    default:
      return static_cast<const float*>(data)[i];
  }
}

inline void store(void* data, DType dtype, int64_t i, float value) {
  if (dtype == DType::kBF16) {
    static_cast<bf16*>(data)[i] = bf16(value);
  } else {
    static_cast<float*>(data)[i] = value;
  }
}

// `value` as it would be stored: one rounding to the type.
inline float rounded(float value, DType dtype) {
  return dtype == DType::kBF16 ? static_cast<float>(bf16(value)) : value;
}

// A row of a tensor whose last axis is contiguous: x(i) reads, set(i) writes.
struct Row {
  void* data;
  DType dtype;
  float operator()(int64_t i) const { return load(data, dtype, i); }
  void set(int64_t i, float value) const { store(data, dtype, i, value); }
};
inline Row row(const Tensor& t, int64_t i) { return {t.bytes_at(i * t.stride(0)), t.dtype()}; }
inline Row row(const Tensor& t, int64_t i, int64_t j) {
  return {t.bytes_at(i * t.stride(0) + j * t.stride(1)), t.dtype()};
}

}  // namespace calandra::reference

// Rows of tensors in kernels: the first axis may have a stride, the rest is dense.
#pragma once

#include <cstdint>

#include "tensor/tensor.h"

namespace calandra::cuda {

template <class T>
struct Rows {
  T* data;
  int64_t stride;  // elements from row to row
  __device__ __forceinline__ T* operator[](int64_t row) const { return data + row * stride; }
};

template <class T>
Rows<const T> rows_of(const Tensor& x) {
  return {static_cast<const T*>(x.data()), x.stride(0)};
}
template <class T>
Rows<T> rows_of(Tensor& x) {
  return {static_cast<T*>(x.data()), x.stride(0)};
}

// True if rows begin at multiples of `bytes`.
inline bool rows_aligned(const Tensor& x, size_t bytes) {
  return reinterpret_cast<uintptr_t>(x.data()) % bytes == 0 &&
         static_cast<size_t>(x.stride(0)) * size_of(x.dtype()) % bytes == 0;
}

constexpr unsigned blocks_for(int64_t n, int64_t per_block) {
  return static_cast<unsigned>((n + per_block - 1) / per_block);
}

}  // namespace calandra::cuda

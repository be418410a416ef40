// Numbers in kernels: loads, stores and conversions. Everything is computed in f32.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_fp8.h>

#include <cstdint>

namespace calandra::cuda {

using bf16_t = __nv_bfloat16;

__device__ __forceinline__ float to_float(float x) { return x; }
__device__ __forceinline__ float to_float(bf16_t x) { return __bfloat162float(x); }
__device__ __forceinline__ float to_float(__half x) { return __half2float(x); }
__device__ __forceinline__ float to_float(__nv_fp8_e4m3 x) { return static_cast<float>(x); }

template <class T>
__device__ __forceinline__ T from_float(float x);
template <>
__device__ __forceinline__ float from_float<float>(float x) {
  return x;
}
template <>
__device__ __forceinline__ bf16_t from_float<bf16_t>(float x) {
  return __float2bfloat16_rn(x);
}

// The value rounded to T.
template <class T>
__device__ __forceinline__ float rounded(float x) {
  return to_float(from_float<T>(x));
}

template <class T, int N>
struct alignas(sizeof(T) * N < 16 ? sizeof(T) * N : 16) Vec {
  T at[N];
};

// N numbers at `from`, a multiple of their size or of 16 bytes.
template <class T, int N>
__device__ __forceinline__ void load_floats(const T* from, float (&to)[N]) {
  const Vec<T, N> v = *reinterpret_cast<const Vec<T, N>*>(from);
#pragma unroll
  for (int i = 0; i < N; ++i) to[i] = to_float(v.at[i]);
}

// The first `count` numbers at `from`, zeros behind them; aligned: all or none of them, at a multiple of their size.
template <class T, int N>
__device__ __forceinline__ void load_some(const T* from, float (&to)[N], int count, bool aligned) {
  if (aligned && count == N) {
    load_floats(from, to);
  } else {
#pragma unroll
    for (int i = 0; i < N; ++i) to[i] = i < count ? to_float(from[i]) : 0.0f;
  }
}

// The same as they are stored.
template <class T, int N>
__device__ __forceinline__ void copy_some(const T* from, Vec<T, N>& to, int count, bool aligned) {
  if (aligned && count == N) {
    to = *reinterpret_cast<const Vec<T, N>*>(from);
  } else {
#pragma unroll
    for (int i = 0; i < N; ++i) to.at[i] = i < count ? from[i] : T(0.0f);
  }
}

// Stores the first `count` numbers; aligned as above.
template <class T, int N>
__device__ __forceinline__ void store_some(T* to, const float (&from)[N], int count, bool aligned) {
  if (aligned && count == N) {
    Vec<T, N> v;
#pragma unroll
    for (int i = 0; i < N; ++i) v.at[i] = from_float<T>(from[i]);
    *reinterpret_cast<Vec<T, N>*>(to) = v;
  } else {
#pragma unroll
    for (int i = 0; i < N; ++i)
      if (i < count) to[i] = from_float<T>(from[i]);
  }
}

// A result whose type is known at run time.
struct Output {
  void* data;
  bool is_bf16;
  __device__ __forceinline__ void store(int64_t i, float value) const {
    if (is_bf16)
      static_cast<bf16_t*>(data)[i] = from_float<bf16_t>(value);
    else
      static_cast<float*>(data)[i] = value;
  }
};

__device__ __forceinline__ float sigmoid(float x) { return 1.0f / (1.0f + expf(-x)); }
__device__ __forceinline__ float silu(float x) { return x * sigmoid(x); }

}  // namespace calandra::cuda

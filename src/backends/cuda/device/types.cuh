// Kernels are written for the two types of activations; a launch chooses by the tensor's type.
#pragma once

#include "backends/cuda/cuda_backend.h"
#include "backends/cuda/device/rows.cuh"
#include "backends/cuda/device/vec.cuh"

namespace calandra::cuda {

// Calls f with a value of the device type of an activation (f32 | bf16).
template <class F>
void on_type(DType dtype, F f) {
  CHECK(dtype == DType::kF32 || dtype == DType::kBF16);
  if (dtype == DType::kBF16)
    f(bf16_t{});
  else
    f(float{});
}

// The same for stored weights.
template <class F>
void on_stored_type(DType dtype, F f) {
  switch (dtype) {
    case DType::kF16:
      return f(__half{});
    case DType::kF8E4M3:
      return f(__nv_fp8_e4m3{});
    default:
      return on_type(dtype, f);
  }
}

inline Output output_of(Tensor& x) { return {x.data(), is_bf16(x)}; }

}  // namespace calandra::cuda

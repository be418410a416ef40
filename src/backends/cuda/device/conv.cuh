// What the kernels of recurrence.cu and delta_mixer.cu share: windows of the causal convolution and the decay.
#pragma once

#include <cstdint>

#include "backends/cuda/device/vec.cuh"

namespace calandra::cuda {

constexpr int kMostTaps = 8;  // kernel width

template <class T>
struct ConvSlots {
  T *window, *pending;  // [slots, W - 1, C], [slots, M, C]
  int C, W, M;
  // Input `back` places before the first row of a sequence that goes on from `src` with `folded` pending inputs.
  __device__ __forceinline__ float before(int src, int folded, int back, int c) const {
    if (src < 0) return 0;
    const int place = W - 1 + folded - back;
    return to_float(place < W - 1 ? window[(int64_t{src} * (W - 1) + place) * C + c]
                                  : pending[(int64_t{src} * M + place - (W - 1)) * C + c]);
  }
};

// -exp(A_log) softplus(a + dt_bias)
__device__ __forceinline__ float log_decay_of(float a, float A_log, float dt_bias) {
  const float x = a + dt_bias, softplus = x > 20 ? x : log1pf(expf(x));
  return -expf(A_log) * softplus;
}

}  // namespace calandra::cuda

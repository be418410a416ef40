// One head of one row by one warp: norm and rotation through D floats of shared memory.
#pragma once

#include "backends/cuda/device/reduce.cuh"
#include "backends/cuda/device/vec.cuh"

namespace calandra::cuda {

constexpr int kMostOfHead = 256;  // longer heads have a block in norm.cu

// Normalises head[0, D), each number rounded to T; the order of the sum is that of norm.cu.
template <class T>
__device__ __forceinline__ void norm_head(float* head, const float* weight, float eps, float offset, int D, int lane) {
  float sum = 0;
  for (int i = lane; i < D; i += kWarp) sum = fmaf(head[i], head[i], sum);
  const float scale = 1.0f / sqrtf(warp_sum(sum) / static_cast<float>(D) + eps);
  for (int i = lane; i < D; i += kWarp) head[i] = rounded<T>(head[i] * scale * (offset + weight[i]));
}

// Rotates the first 2 half numbers, halves paired, and stores the head. The warp has synchronised.
template <class T, class C>
__device__ __forceinline__ void rotate_and_store(const float* head, const C* cosines, const C* sines, int half, int D,
                                                 int lane, T* to) {
  for (int i = lane; i < half; i += kWarp) {
    const float low = head[i], high = head[i + half], c = to_float(cosines[i]), s = to_float(sines[i]);
    to[i] = from_float<T>(fmaf(low, c, -__fmul_rn(high, s)));
    to[i + half] = from_float<T>(fmaf(high, c, __fmul_rn(low, s)));
  }
  for (int i = 2 * half + lane; i < D; i += kWarp) to[i] = from_float<T>(head[i]);
}

}  // namespace calandra::cuda

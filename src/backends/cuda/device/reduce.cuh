// Sums and maxima over a warp or a block. The order of a sum depends on the number of threads only, and every thread
// gets the same bits.
#pragma once

namespace calandra::cuda {

constexpr int kWarp = 32;
constexpr unsigned kAllLanes = 0xffffffffu;

__device__ __forceinline__ float warp_sum(float x) {
#pragma unroll
  for (int lane = kWarp / 2; lane > 0; lane /= 2) x += __shfl_xor_sync(kAllLanes, x, lane);
  return x;
}

__device__ __forceinline__ float warp_max(float x) {
#pragma unroll
  for (int lane = kWarp / 2; lane > 0; lane /= 2) x = fmaxf(x, __shfl_xor_sync(kAllLanes, x, lane));
  return x;
}

// Sum over a group of kThreads consecutive threads that is a warp or the whole block.
template <int kThreads>
__device__ __forceinline__ float group_sum(float x) {
  x = warp_sum(x);
  if constexpr (kThreads > kWarp) {
    __shared__ float parts[kThreads / kWarp];
    __syncthreads();  // a sum before this one has been read
    if (threadIdx.x % kWarp == 0) parts[threadIdx.x / kWarp] = x;
    __syncthreads();
    x = 0;
#pragma unroll
    for (int i = 0; i < kThreads / kWarp; ++i) x += parts[i];
  }
  return x;
}

}  // namespace calandra::cuda

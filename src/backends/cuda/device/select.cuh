// Reductions and selections over the threads of a cluster of blocks, through their shared memories. All threads of a
// cluster call these together and get the same result.
#pragma once

#include <cooperative_groups.h>

#include <cstdint>

#include "backends/cuda/device/reduce.cuh"

namespace calandra::cuda {

constexpr int kClusterBlocks = 8;
constexpr int kSelectThreads = 1024;
constexpr int kBins = 2048;

struct SelectMemory {
  unsigned long long of_block[kBins];
  unsigned long long warps[kSelectThreads / kWarp], value;
  unsigned long long before, at;  // of the bin that was found
  int bin;                        // -1: none
};

__device__ __forceinline__ uint64_t larger_of(uint64_t a, uint64_t b) { return a > b ? a : b; }

__device__ inline uint64_t cluster_max(SelectMemory& memory, uint64_t x) {
  const auto cluster = cooperative_groups::this_cluster();
#pragma unroll
  for (int lane = kWarp / 2; lane > 0; lane /= 2) x = larger_of(x, __shfl_xor_sync(kAllLanes, x, lane));
  if (threadIdx.x % kWarp == 0) memory.warps[threadIdx.x / kWarp] = x;
  __syncthreads();
  if (threadIdx.x == 0) {
    x = 0;
    for (int i = 0; i < kSelectThreads / kWarp; ++i) x = larger_of(x, memory.warps[i]);
    memory.value = x;
  }
  cluster.sync();
  x = 0;
#pragma unroll
  for (int rank = 0; rank < kClusterBlocks; ++rank) x = larger_of(x, *cluster.map_shared_rank(&memory.value, rank));
  cluster.sync();  // everyone has read
  return x;
}

__device__ inline uint64_t cluster_sum(SelectMemory& memory, uint64_t x) {
  const auto cluster = cooperative_groups::this_cluster();
#pragma unroll
  for (int lane = kWarp / 2; lane > 0; lane /= 2) x += __shfl_xor_sync(kAllLanes, x, lane);
  if (threadIdx.x % kWarp == 0) memory.warps[threadIdx.x / kWarp] = x;
  __syncthreads();
  if (threadIdx.x == 0) {
    x = 0;
    for (int i = 0; i < kSelectThreads / kWarp; ++i) x += memory.warps[i];
    memory.value = x;
  }
  cluster.sync();
  x = 0;
#pragma unroll
  for (int rank = 0; rank < kClusterBlocks; ++rank) x += *cluster.map_shared_rank(&memory.value, rank);
  cluster.sync();
  return x;
}

// Numbers that order floats from the largest down; -0 is +0.
__device__ __forceinline__ uint32_t key_of(float v) {
  const uint32_t bits = __float_as_uint(v + 0.0f);
  return bits >> 31 != 0 ? bits : ~bits & 0x7fffffffu;
}
__device__ __forceinline__ float value_of(uint32_t key) {
  return __uint_as_float(key >> 31 != 0 ? key : ~key & 0x7fffffffu);
}

// The element, in ascending order of keys, with which the sum of weights reaches a limit.
struct Selected {
  bool found = false;  // false: all together do not reach it
  uint32_t key = 0xffffffffu;
  uint64_t before = 0, at = 0;  // weight of smaller keys, and of equal ones
  double limit = 0;
};

// `each(add)` calls add(key, weight) for the elements of this thread; `limit_of(total)` is asked once, with the sum of
// all weights. Three passes over the elements, a histogram of 11 or 10 bits of the keys in each.
template <class Each, class Limit>
__device__ Selected select(SelectMemory& memory, Each each, Limit limit_of) {
  constexpr int kShift[3] = {21, 10, 0}, kBits[3] = {11, 11, 10};
  const auto cluster = cooperative_groups::this_cluster();
  const int warp = threadIdx.x / kWarp, lane = threadIdx.x % kWarp;
  Selected result;
  result.key = 0;
#pragma unroll 1
  for (int pass = 0; pass < 3; ++pass) {
    const int shift = kShift[pass], bits = kBits[pass];
    for (int i = threadIdx.x; i < kBins; i += kSelectThreads) memory.of_block[i] = 0;
    if (threadIdx.x == 0) memory.bin = -1;
    __syncthreads();
    each([&](uint32_t key, uint64_t weight) {
      if (pass > 0 && key >> (shift + bits) != result.key) return;
      atomicAdd(&memory.of_block[key >> shift & ((1u << bits) - 1)], static_cast<unsigned long long>(weight));
    });
    cluster.sync();
    uint64_t mine[2] = {};  // two neighbouring bins of all blocks
#pragma unroll
    for (int rank = 0; rank < kClusterBlocks; ++rank) {
      const unsigned long long* other = cluster.map_shared_rank(memory.of_block, rank);
      mine[0] += other[2 * threadIdx.x];
      mine[1] += other[2 * threadIdx.x + 1];
    }
    uint64_t sum = mine[0] + mine[1];  // up to this thread's bins
#pragma unroll
    for (int step = 1; step < kWarp; step *= 2) {
      const uint64_t left = __shfl_up_sync(kAllLanes, sum, step);
      if (lane >= step) sum += left;
    }
    if (lane == kWarp - 1) memory.warps[warp] = sum;
    __syncthreads();
    uint64_t total = 0;
    for (int i = 0; i < kSelectThreads / kWarp; ++i) {
      if (i < warp) sum += memory.warps[i];
      total += memory.warps[i];
    }
    if (pass == 0) result.limit = limit_of(total);
    uint64_t before = result.before + sum - mine[0] - mine[1];
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      const bool is_first = threadIdx.x == 0 && i == 0;
      const bool reached = static_cast<double>(before) >= result.limit && !is_first;
      if (!reached && static_cast<double>(before + mine[i]) >= result.limit) {
        memory.bin = static_cast<int>(2 * threadIdx.x) + i;
        memory.before = before;
        memory.at = mine[i];
      }
      before += mine[i];
    }
    cluster.sync();  // the bin is written, and everyone has read the histograms
    const int bin = memory.bin;
    result.before = memory.before;
    result.at = memory.at;
    __syncthreads();  // everyone has read what the next pass overwrites
    if (bin < 0) return {};
    result.found = true;
    result.key = result.key << bits | static_cast<uint32_t>(bin);
  }
  return result;
}

}  // namespace calandra::cuda

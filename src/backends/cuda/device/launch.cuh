// Launches a kernel that follows the one before it in the stream closely (device/pipeline.cuh): its blocks may begin,
// and load what no kernel writes, while that one still runs. The kernel must call wait_for_grid() in every block.
#pragma once

#include <cuda_runtime.h>

#include <utility>

#include "backends/cuda/cuda_check.h"

namespace calandra::cuda {

constexpr int64_t kMultiprocessors = 132;  // of an H100 or H200

// How much of a multiprocessor's memory is to be shared memory; the rest is cache.
enum class Split {
  // 64 kB if a block needs no more. A multiprocessor changes its split when it is idle, which it hardly ever is in a
  // chain of followers, and few rows' products that read through the cache that another kernel's split had left took
  // twice as long (bench/results/cuda_small_kernels.md). So followers ask for the same, beyond few rows too.
  kAlike,
  kForMostBlocks,  // as the kernel's blocks fit best: stream_f8, which was slower otherwise
};

// Blocks in clusters; `cluster` divides the grid.
template <class... Parameters, class... Arguments>
void launch_clusters(void (*kernel)(Parameters...), dim3 grid, dim3 block, dim3 cluster, size_t shared_bytes,
                     cudaStream_t stream, Split split, Arguments&&... arguments) {
  constexpr unsigned kPercent = 25;
  cudaLaunchAttribute attributes[3] = {};
  cudaLaunchConfig_t config{};
  config.gridDim = grid;
  config.blockDim = block;
  config.dynamicSmemBytes = shared_bytes;
  config.stream = stream;
  config.attrs = attributes;
  const auto next = [&](cudaLaunchAttributeID id) -> cudaLaunchAttributeValue& {
    cudaLaunchAttribute& attribute = attributes[config.numAttrs++];
    attribute.id = id;
    return attribute.val;
  };
  next(cudaLaunchAttributeProgrammaticStreamSerialization).programmaticStreamSerializationAllowed = 1;
  if (split == Split::kAlike) next(cudaLaunchAttributePreferredSharedMemoryCarveout).sharedMemCarveout = kPercent;
  if (cluster.x * cluster.y * cluster.z > 1)
    next(cudaLaunchAttributeClusterDimension).clusterDim = {cluster.x, cluster.y, cluster.z};
  cudaLaunchKernelEx(&config, kernel, std::forward<Arguments>(arguments)...);  // `launched` looks at the last error
}

template <class... Parameters, class... Arguments>
void launch_follower(void (*kernel)(Parameters...), dim3 grid, dim3 block, size_t shared_bytes, cudaStream_t stream,
                     Arguments&&... arguments) {
  launch_clusters(kernel, grid, block, dim3(1), shared_bytes, stream, Split::kAlike,
                  std::forward<Arguments>(arguments)...);
}

// Lets blocks of the kernel have more than 48 kB of shared memory of a launch: `bytes`, the same each time. Told once
// on each device by each thread, since every call of the runtime costs the host time.
template <auto kKernel>
void allow_shared(size_t bytes) {
  static thread_local int told = -1;  // the last device
  int device = -1;
  CUDA_CHECK(cudaGetDevice(&device));
  if (device == told) return;
  CUDA_CHECK(cudaFuncSetAttribute(kKernel, cudaFuncAttributeMaxDynamicSharedMemorySize, static_cast<int>(bytes)));
  told = device;
}

// How many blocks of `threads` threads run at once on the device: no more are started of a kernel whose blocks have one
// row after the other, so that each has as many as the others, or one more.
template <auto kKernel>
int64_t resident_blocks(int threads) {
  static const int of_multiprocessor = [threads] {
    int blocks = 1;
    CUDA_CHECK(cudaOccupancyMaxActiveBlocksPerMultiprocessor(&blocks, kKernel, threads, 0));
    return blocks;
  }();
  return of_multiprocessor * kMultiprocessors;
}

}  // namespace calandra::cuda

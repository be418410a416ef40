// Launches a kernel that follows the one before it in the stream closely (device/pipeline.cuh): its blocks may begin,
// and load what no kernel writes, while that one still runs. The kernel must call wait_for_grid() in every block.
#pragma once

#include <cuda_runtime.h>

#include <utility>

namespace calandra::cuda {

constexpr int64_t kMultiprocessors = 132;  // of an H100 or H200

// Percent of a multiprocessor's memory for shared memory that followers ask for, 64 kB. All the same: where they
// differ, a multiprocessor cannot change before it is idle, which it never is in a chain of followers, and products
// that read through what is left of the cache for them took twice as long (bench/results/cuda_small_kernels.md).
constexpr unsigned kPreferredShared = 25;

// The same with blocks in clusters; `cluster` divides the grid.
template <class... Parameters, class... Arguments>
void launch_clusters(void (*kernel)(Parameters...), dim3 grid, dim3 block, dim3 cluster, size_t shared_bytes,
                     cudaStream_t stream, Arguments&&... arguments) {
  cudaLaunchAttribute attributes[3] = {};
  attributes[0].id = cudaLaunchAttributeProgrammaticStreamSerialization;
  attributes[0].val.programmaticStreamSerializationAllowed = 1;
  attributes[1].id = cudaLaunchAttributePreferredSharedMemoryCarveout;
  attributes[1].val.sharedMemCarveout = kPreferredShared;
  attributes[2].id = cudaLaunchAttributeClusterDimension;
  attributes[2].val.clusterDim = {cluster.x, cluster.y, cluster.z};
  cudaLaunchConfig_t config{};
  config.gridDim = grid;
  config.blockDim = block;
  config.dynamicSmemBytes = shared_bytes;
  config.stream = stream;
  config.attrs = attributes;
  config.numAttrs = cluster.x * cluster.y * cluster.z > 1 ? 3 : 2;
  cudaLaunchKernelEx(&config, kernel, std::forward<Arguments>(arguments)...);  // `launched` looks at the last error
}

template <class... Parameters, class... Arguments>
void launch_follower(void (*kernel)(Parameters...), dim3 grid, dim3 block, size_t shared_bytes, cudaStream_t stream,
                     Arguments&&... arguments) {
  launch_clusters(kernel, grid, block, dim3(1), shared_bytes, stream, std::forward<Arguments>(arguments)...);
}

// Lets blocks of the kernel have more than 48 kB of shared memory of a launch: `bytes`, the same each time. Told once
// on each device by each thread, since every call of the runtime costs the host time.
template <auto kKernel>
void allow_shared(size_t bytes) {
  static thread_local int told = -1;  // the last device
  int device = -1;
  cudaGetDevice(&device);
  if (device == told) return;
  cudaFuncSetAttribute(kKernel, cudaFuncAttributeMaxDynamicSharedMemorySize, static_cast<int>(bytes));
  told = device;
}

// How many blocks of `threads` threads run at once on the device: no more are started of a kernel whose blocks have one
// row after the other, so that each has as many as the others, or one more.
template <auto kKernel>
int64_t resident_blocks(int threads) {
  static const int of_multiprocessor = [threads] {
    int blocks = 1;
    cudaOccupancyMaxActiveBlocksPerMultiprocessor(&blocks, kKernel, threads, 0);
    return blocks;
  }();
  return of_multiprocessor * kMultiprocessors;
}

}  // namespace calandra::cuda

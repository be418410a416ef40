// NaNs of f8 weights (packed_rows.h). A warp has one block of a row's scales; no shared memory; bound by memory, once
// at the start.
#include "backends/cuda/packed_rows.h"

#include "backends/cuda/device/reduce.cuh"
#include "backends/cuda/device/rows.cuh"

namespace calandra::cuda {
namespace {

constexpr int kWarps = 8;

__global__ void __launch_bounds__(kWarps* kWarp)
    scale_nans_of(std::byte* packed, int64_t N, int64_t K, int64_t block_k, int64_t row_bytes, int64_t values) {
  const int64_t blocks = (K + block_k - 1) / block_k, i = int64_t{blockIdx.x} * kWarps + threadIdx.x / kWarp;
  if (i >= N * blocks) return;
  std::byte* row = packed + i / blocks * row_bytes;
  const int64_t begin = i % blocks * block_k, end = min(begin + block_k, K);
  bool nan = false;
  for (int64_t k = begin + threadIdx.x % kWarp; k < end; k += kWarp)
    nan = nan || (static_cast<unsigned>(row[k]) & 0x7f) == 0x7f;
  if (__any_sync(kAllLanes, nan) && threadIdx.x % kWarp == 0)
    reinterpret_cast<float*>(row + values)[i % blocks] = __int_as_float(0x7fffffff);
}

}  // namespace

void scale_nans(cudaStream_t stream, std::byte* packed, int64_t N, int64_t K, int64_t block_k) {
  scale_nans_of<<<blocks_for(N * ((K + block_k - 1) / block_k), kWarps), kWarps * kWarp, 0, stream>>>(
      packed, N, K, block_k, packed_row(DType::kF8E4M3, K, block_k), padded_values(DType::kF8E4M3, K));
}

}  // namespace calandra::cuda

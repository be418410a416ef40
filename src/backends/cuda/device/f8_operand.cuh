// Weights of f8_e4m3 as the operand of wgmma that comes from registers (device/wgmma.cuh).
#pragma once

#include "backends/cuda/device/mma.cuh"
#include "backends/cuda/device/reduce.cuh"

namespace calandra::cuda {

constexpr int kF8OperandInputs = 128;

// What thread 4 g + t of a warp has of 128 inputs of its 16 outputs, in bf16. A copy has written the tile: 16 bytes c
// of output n at c ^ n % 8.
__device__ __forceinline__ void f8_operand(const std::byte* tile, uint32_t (&w)[kF8OperandInputs / 16][4]) {
  const int lane = threadIdx.x % kWarp, g = lane / 4, t = lane % 4;
  const std::byte* from = tile + g * kF8OperandInputs + t * 2;
#pragma unroll
  for (int j = 0; j < kF8OperandInputs / 16; ++j)
#pragma unroll
    for (int e = 0; e < 4; ++e)
      w[j][e] = bf16x2_of_e4m3<0>(
          *reinterpret_cast<const uint16_t*>(from + (j ^ g) * 16 + e / 2 * 8 + e % 2 * 8 * kF8OperandInputs));
}

}  // namespace calandra::cuda

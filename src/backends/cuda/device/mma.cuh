// Tensor core products of bf16: D [16, 8] += A [16, 16] B [16, 8], f32 sums (mma.sync m16n8k16).
//   thread 4 g + t of a warp   A: rows g and g + 8   B: column g   D: rows g and g + 8, columns 2 t and 2 t + 1
// The 16 inputs of an instruction may come in any order if A and B agree. Here thread t holds inputs 8 t to 8 t + 7 of
// a step of 32, 16 bytes of a row, which make two instructions: its first four numbers, then its last four.
#pragma once

#include <cuda_bf16.h>

#include <cstdint>

namespace calandra::cuda {

__device__ __forceinline__ void mma_bf16(float (&d)[4], uint32_t a0, uint32_t a1, uint32_t a2, uint32_t a3, uint32_t b0,
                                         uint32_t b1) {
  asm volatile(
      "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
      "{%0, %1, %2, %3};"
      : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
      : "r"(a0), "r"(a1), "r"(a2), "r"(a3), "r"(b0), "r"(b1));
}

// One step of 32 inputs: rows g and g + 8 of A, column g of B, 8 inputs of each.
__device__ __forceinline__ void mma_step(float (&d)[4], const uint4& low, const uint4& high, const uint4& b) {
  mma_bf16(d, low.x, high.x, low.y, high.y, b.x, b.y);
  mma_bf16(d, low.z, high.z, low.w, high.w, b.z, b.w);
}

// The first or second two of four numbers of f8_e4m3 as bf16, exactly but for NaNs, which become 480: packed weights
// have those in their scales (packed_rows.h). A number's bits at their places of a bf16 are 2^-120 times it, if it is
// subnormal too.
template <int kPair>
__device__ __forceinline__ uint32_t bf16x2_of_e4m3(uint32_t four) {
  uint32_t bits;  // each byte, and its sign eight times above it
  asm("prmt.b32 %0, %1, 0, %2;" : "=r"(bits) : "r"(four), "n"(kPair == 0 ? 0x9180 : 0xb3a2));
  bits = bits << 4 & 0x87f087f0u;
  const uint32_t scale = 0x7b807b80u;  // 2^120
  const __nv_bfloat162 two =
      __hmul2(reinterpret_cast<const __nv_bfloat162&>(bits), reinterpret_cast<const __nv_bfloat162&>(scale));
  return reinterpret_cast<const uint32_t&>(two);
}
__device__ __forceinline__ uint4 bf16x8_of_e4m3x8(const uint2& v) {
  return {bf16x2_of_e4m3<0>(v.x), bf16x2_of_e4m3<1>(v.x), bf16x2_of_e4m3<0>(v.y), bf16x2_of_e4m3<1>(v.y)};
}

}  // namespace calandra::cuda

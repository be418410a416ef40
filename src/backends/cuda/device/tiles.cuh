// Tiles of bf16 in shared memory for mma.cuh: asynchronous copies into them and the fragments of an instruction.
// A tile's rows are padded by 8 numbers, so that the 8 rows of a fragment lie in different banks.
#pragma once

#include <cstdint>

#include "backends/cuda/device/vec.cuh"

namespace calandra::cuda {

constexpr int kTilePadding = 8;

// 16 bytes; zeros if not `seen`, and nothing is read then.
__device__ __forceinline__ void copy_16_async(void* to, const void* from, bool seen) {
  const auto address = static_cast<uint32_t>(__cvta_generic_to_shared(to));
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(address), "l"(from), "r"(seen ? 16 : 0)
               : "memory");
}
// Copies since the last end form a group.
__device__ __forceinline__ void end_copy_group() { asm volatile("cp.async.commit_group;" ::: "memory"); }
// Until at most kLeft groups of this thread are under way.
template <int kLeft>
__device__ __forceinline__ void wait_copies() {
  asm volatile("cp.async.wait_group %0;" ::"n"(kLeft) : "memory");
}
// The same of all, ended or not.
__device__ __forceinline__ void wait_copies_of_all() { asm volatile("cp.async.wait_all;" ::: "memory"); }

// Four 8x8 blocks: lane i gives the address of row i % 8 of block i / 8; lane 4 g + t gets numbers 2 t and 2 t + 1 of
// row g of each block.
__device__ __forceinline__ void load_blocks(uint32_t (&r)[4], const bf16_t* row) {
  const auto address = static_cast<uint32_t>(__cvta_generic_to_shared(row));
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
               : "r"(address)
               : "memory");
}
// The same of the transposed blocks.
__device__ __forceinline__ void load_blocks_transposed(uint32_t (&r)[4], const bf16_t* row) {
  const auto address = static_cast<uint32_t>(__cvta_generic_to_shared(row));
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
               : "r"(address)
               : "memory");
}

// Fragments for mma_bf16 out of a tile with rows of `stride` numbers; (row, column) is the corner of 16 x 16 numbers.
//   load_a              A [16, 16] as stored
//   load_a_transposed   A [16, 16] of the tile's transpose: the tile has A's columns as rows
//   load_b              B [16, 16] of the tile's transpose: tile rows are B's columns; r[0], r[1] the first 8 columns
//   load_b_as_stored    B [16, 16] as stored
__device__ __forceinline__ void load_a(uint32_t (&r)[4], const bf16_t* tile, int stride, int row, int column,
                                       int lane) {
  load_blocks(r, tile + (row + lane % 16) * stride + column + lane / 16 * 8);
}
__device__ __forceinline__ void load_a_transposed(uint32_t (&r)[4], const bf16_t* tile, int stride, int row, int column,
                                                  int lane) {
  load_blocks_transposed(r, tile + (row + lane % 8 + lane / 16 * 8) * stride + column + lane / 8 % 2 * 8);
}
__device__ __forceinline__ void load_b(uint32_t (&r)[4], const bf16_t* tile, int stride, int row, int column,
                                       int lane) {
  load_blocks(r, tile + (row + lane % 8 + lane / 16 * 8) * stride + column + lane / 8 % 2 * 8);
}
__device__ __forceinline__ void load_b_as_stored(uint32_t (&r)[4], const bf16_t* tile, int stride, int row, int column,
                                                 int lane) {
  load_blocks_transposed(r, tile + (row + lane % 16) * stride + column + lane / 16 * 8);
}

// Two numbers as bf16 in a word, the first in its low half.
__device__ __forceinline__ uint32_t bf16_pair(float a, float b) {
  const bf16_t low = from_float<bf16_t>(a), high = from_float<bf16_t>(b);
  return static_cast<uint32_t>(__bfloat16_as_ushort(low)) | static_cast<uint32_t>(__bfloat16_as_ushort(high)) << 16;
}
// What the rounding to bf16 leaves: x = bf16(x) + rest_of(x) up to 2^-17 |x| once the rest is rounded too.
__device__ __forceinline__ float rest_of(float x) { return x - rounded<bf16_t>(x); }

}  // namespace calandra::cuda

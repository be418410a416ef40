// Hopper's products of a warpgroup (wgmma) and copies of tiles (TMA), as PTX.
//
// Tiles lie in shared memory as the copies write them with CU_TENSOR_MAP_SWIZZLE_128B: rows of 64 bf16, at multiples of
// 1024 bytes. D [64, N] += A [64, 16] B [N, 16]^T in f32. Thread 4 g + t of warp w has of D, for each 8 columns j, rows
// 16 w + g (d[4 j], d[4 j + 1]) and 16 w + g + 8 (d[4 j + 2], d[4 j + 3]), columns 8 j + 2 t and 8 j + 2 t + 1.
#pragma once

#include <cuda.h>

#include "backends/cuda/device/pipeline.cuh"

namespace calandra::cuda {

constexpr int kWarpgroup = 128;
constexpr int kTileDepth = 64;  // inputs of a tile's row

// The tile at (column, row) of a matrix; what lies outside of it is zero.
__device__ __forceinline__ void copy_tile(void* to, const CUtensorMap& map, int column, int row, uint64_t* barrier) {
  asm volatile(
      "cp.async.bulk.tensor.2d.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1, {%2, %3}], [%4];" ::"r"(
          shared_address(to)),
      "l"(&map), "r"(column), "r"(row), "r"(shared_address(barrier))
      : "memory");
}
// The same of matrix number `matrix`.
__device__ __forceinline__ void copy_tile(void* to, const CUtensorMap& map, int column, int row, int matrix,
                                          uint64_t* barrier) {
  asm volatile(
      "cp.async.bulk.tensor.3d.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1, {%2, %3, %4}], [%5];" ::
          "r"(shared_address(to)),
      "l"(&map), "r"(column), "r"(row), "r"(matrix), "r"(shared_address(barrier))
      : "memory");
}

// Registers of the threads of a warpgroup: what one gives up another may take.
template <int kCount>
__device__ __forceinline__ void give_up_registers() {
  asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;" ::"n"(kCount));
}
template <int kCount>
__device__ __forceinline__ void take_registers() {
  asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;" ::"n"(kCount));
}

// What wgmma is told of a tile: its address, 1024 bytes from 8 rows to the next 8, the swizzle. Inputs from 16 i on are
// at + 2 i.
__device__ __forceinline__ uint64_t describe_tile(const void* tile) {
  return uint64_t{(shared_address(tile) & 0x3FFFF) >> 4} | uint64_t{1} << 16 | uint64_t{1024 >> 4} << 32 |
         uint64_t{1} << 62;
}

__device__ __forceinline__ void wgmma_begin() { asm volatile("wgmma.fence.sync.aligned;" ::: "memory"); }
__device__ __forceinline__ void wgmma_commit() { asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory"); }
// A tile of rows of 64 bf16 whose rows are inputs, for wgmma_as_stored: outputs from 64 i on lie `next` bytes behind
// those before, inputs from 16 i on are at + 128 i.
__device__ __forceinline__ uint64_t describe_tile_as_stored(const void* tile, int next) {
  return uint64_t{(shared_address(tile) & 0x3FFFF) >> 4} | static_cast<uint64_t>(next >> 4) << 16 |
         uint64_t{1024 >> 4} << 32 | uint64_t{1} << 62;
}

// Until at most so many of the committed groups are not done.
template <int kPending>
__device__ __forceinline__ void wgmma_wait() {
  asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(kPending) : "memory");
}
// Keeps the compiler from moving uses of the sums over this point.
template <int N>
__device__ __forceinline__ void hold(float (&d)[N]) {
#pragma unroll
  for (int i = 0; i < N; ++i) asm volatile("" : "+f"(d[i])::"memory");
}

#define CALANDRA_D8(i)                                                                                        \
  "+f"(d[i]), "+f"(d[i + 1]), "+f"(d[i + 2]), "+f"(d[i + 3]), "+f"(d[i + 4]), "+f"(d[i + 5]), "+f"(d[i + 6]), \
      "+f"(d[i + 7])
#define CALANDRA_D32(i) CALANDRA_D8(i), CALANDRA_D8(i + 8), CALANDRA_D8(i + 16), CALANDRA_D8(i + 24)
#define CALANDRA_N16 "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15"
#define CALANDRA_N32                                                                                               \
  "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, %16, %17, %18, %19, %20, %21, %22, %23, " \
  "%24, %25, %26, %27, %28, %29, %30, %31"
#define CALANDRA_N64                                                                                  \
  CALANDRA_N32                                                                                        \
  ", %32, %33, %34, %35, %36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, %47, %48, %49, %50, " \
  "%51, %52, %53, %54, %55, %56, %57, %58, %59, %60, %61, %62, %63"
#define CALANDRA_N128                                                                                             \
  CALANDRA_N64                                                                                                    \
  ", %64, %65, %66, %67, %68, %69, %70, %71, %72, %73, %74, %75, %76, %77, %78, %79, %80, %81, %82, "             \
  "%83, %84, %85, %86, %87, %88, %89, %90, %91, %92, %93, %94, %95, %96, %97, %98, %99, %100, %101, %102, %103, " \
  "%104, %105, %106, %107, %108, %109, %110, %111, %112, %113, %114, %115, %116, %117, %118, %119, %120, %121, "  \
  "%122, %123, %124, %125, %126, %127"
#define CALANDRA_WGMMA(N, sums, a_, b_, keep_) \
  "{\n.reg .pred p;\nsetp.ne.b32 p, " keep_    \
  ", 0;\n"                                     \
  "wgmma.mma_async.sync.aligned.m64n" N "k16.f32.bf16.bf16 {" sums "}, " a_ ", " b_ ", p, 1, 1, 0, 0;\n}\n"

// keep: 0 begins the sums.
__device__ __forceinline__ void wgmma(float (&d)[32], uint64_t a, uint64_t b, int keep) {
  asm volatile(CALANDRA_WGMMA("64", CALANDRA_N32, "%32", "%33", "%34") : CALANDRA_D32(0) : "l"(a), "l"(b), "r"(keep));
}
__device__ __forceinline__ void wgmma(float (&d)[64], uint64_t a, uint64_t b, int keep) {
  asm volatile(CALANDRA_WGMMA("128", CALANDRA_N64, "%64", "%65", "%66")
               : CALANDRA_D32(0), CALANDRA_D32(32)
               : "l"(a), "l"(b), "r"(keep));
}
__device__ __forceinline__ void wgmma(float (&d)[128], uint64_t a, uint64_t b, int keep) {
  asm volatile(CALANDRA_WGMMA("256", CALANDRA_N128, "%128", "%129", "%130")
               : CALANDRA_D32(0), CALANDRA_D32(32), CALANDRA_D32(64), CALANDRA_D32(96)
               : "l"(a), "l"(b), "r"(keep));
}

// D [64, 256] += A [64, 16] B [16, 256], A in registers: thread 4 g + t of warp w has inputs 2 t and 2 t + 1 of rows
// 16 w + g (a[0]) and 16 w + g + 8 (a[1]), then inputs 2 t + 8 and 2 t + 9 of both. They may be changed behind
// wgmma_wait only.
__device__ __forceinline__ void wgmma_as_stored(float (&d)[128], const uint32_t (&a)[4], uint64_t b) {
  asm volatile(
      "{\n.reg .pred p;\nsetp.ne.b32 p, %133, 0;\n"
      "wgmma.mma_async.sync.aligned.m64n256k16.f32.bf16.bf16 {" CALANDRA_N128
      "}, {%128, %129, %130, %131}, %132, p, 1, 1, 1;\n}\n"
      : CALANDRA_D32(0), CALANDRA_D32(32), CALANDRA_D32(64), CALANDRA_D32(96)
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b), "r"(1));
}

// The first kind with A in registers, as above.
#define CALANDRA_WGMMA_REGISTERS(N, sums, a0, a1, a2, a3, b_, keep_)                                          \
  "{\n.reg .pred p;\nsetp.ne.b32 p, " keep_                                                                   \
  ", 0;\n"                                                                                                    \
  "wgmma.mma_async.sync.aligned.m64n" N "k16.f32.bf16.bf16 {" sums "}, {" a0 ", " a1 ", " a2 ", " a3 "}, " b_ \
  ", p, 1, 1, 0;\n}\n"

__device__ __forceinline__ void wgmma(float (&d)[16], const uint32_t (&a)[4], uint64_t b, int keep) {
  asm volatile(CALANDRA_WGMMA_REGISTERS("32", CALANDRA_N16, "%16", "%17", "%18", "%19", "%20", "%21")
               : CALANDRA_D8(0), CALANDRA_D8(8)
               : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b), "r"(keep));
}

__device__ __forceinline__ void wgmma(float (&d)[32], const uint32_t (&a)[4], uint64_t b, int keep) {
  asm volatile(CALANDRA_WGMMA_REGISTERS("64", CALANDRA_N32, "%32", "%33", "%34", "%35", "%36", "%37")
               : CALANDRA_D32(0)
               : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b), "r"(keep));
}

#undef CALANDRA_WGMMA_REGISTERS
#undef CALANDRA_D8
#undef CALANDRA_D32
#undef CALANDRA_N16
#undef CALANDRA_N32
#undef CALANDRA_N64
#undef CALANDRA_N128
#undef CALANDRA_WGMMA

}  // namespace calandra::cuda

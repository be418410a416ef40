// Hopper's asynchronous copies and the order between kernels, as PTX.
//   barriers   count the bytes of copies from global to shared memory and the threads that have read them
//   grids      a kernel that is launched as a follower (launch.cuh) may begin while the one before it still runs; what
//              that one writes may be read, and what it reads written, only behind wait_for_grid(). Products let the
//              next kernel begin behind their own wait: what was written before a product, all kernels behind it can
//              read at once (a layer's: batch, slots and pages of earlier steps)
#pragma once

#include <cstddef>
#include <cstdint>

namespace calandra::cuda {

__device__ __forceinline__ uint32_t shared_address(const void* p) {
  return static_cast<uint32_t>(__cvta_generic_to_shared(p));
}

__device__ __forceinline__ void barrier_init(uint64_t* barrier, int arrivals) {
  asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(shared_address(barrier)), "r"(arrivals) : "memory");
}
// Makes initialised barriers visible to the copies.
__device__ __forceinline__ void barrier_init_done() {
  asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
  asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
}
__device__ __forceinline__ void barrier_arrive(uint64_t* barrier) {
  asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];" ::"r"(shared_address(barrier)) : "memory");
}
// Arrives, and expects copies of so many bytes.
__device__ __forceinline__ void barrier_expect(uint64_t* barrier, uint32_t bytes) {
  asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(shared_address(barrier)), "r"(bytes)
               : "memory");
}
// Waits for the end of the phase of this parity.
__device__ __forceinline__ void barrier_wait(uint64_t* barrier, uint32_t parity) {
  asm volatile(
      "{\n"
      ".reg .pred done;\n"
      "again:\n"
      "mbarrier.try_wait.parity.shared::cta.b64 done, [%0], %1;\n"
      "@!done bra again;\n"
      "}\n" ::"r"(shared_address(barrier)),
      "r"(parity)
      : "memory");
}

// `bytes` and both addresses are multiples of 16.
__device__ __forceinline__ void copy_to_shared(void* to, const void* from, uint32_t bytes, uint64_t* barrier) {
  asm volatile("cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1], %2, [%3];" ::"r"(
                   shared_address(to)),
               "l"(__cvta_generic_to_global(from)), "r"(bytes), "r"(shared_address(barrier))
               : "memory");
}

// Everything that the kernels before this one wrote can be read from here on.
__device__ __forceinline__ void wait_for_grid() { asm volatile("griddepcontrol.wait;" ::: "memory"); }
// The kernel behind this one may begin once every block has said so.
__device__ __forceinline__ void let_next_grid_begin() {
  asm volatile("griddepcontrol.launch_dependents;" ::: "memory");
}

// In this order the next kernel's blocks begin when all kernels before this one have ended.
__device__ __forceinline__ void wait_and_let_next_grid_begin() {
  wait_for_grid();
  let_next_grid_begin();
}

// A kernel that has nothing to do before.
__device__ __forceinline__ void begin_as_follower() {
  let_next_grid_begin();
  wait_for_grid();
}

// Barrier 1 for the first `threads` threads of a block.
__device__ __forceinline__ void some_threads_sync(int threads) {
  asm volatile("bar.sync 1, %0;" ::"r"(threads) : "memory");
}

}  // namespace calandra::cuda

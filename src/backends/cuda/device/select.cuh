// Reductions and selections over the values in the shared memory of one block, or of all blocks of a cluster. All of
// their threads call these together and get the same result.
#pragma once

#include <cooperative_groups.h>

#include <cfloat>
#include <cstdint>

#include "backends/cuda/device/noise.cuh"
#include "backends/cuda/device/reduce.cuh"

namespace calandra::cuda {

constexpr int kClusterBlocks = 8;
constexpr int kSelectThreads = 1024;
constexpr int kBinBits = 11;
constexpr int kBins = 1 << kBinBits;  // two for each thread

struct SelectMemory {
  // Sums of weights: two words each, since the device has no 64-bit addition to shared memory, only a loop.
  uint32_t low[kBins], high[kBins];
  uint64_t warps[kSelectThreads / kWarp];
  // What the blocks tell each other: two in turn, so that one barrier is enough.
  uint64_t told[2][kClusterBlocks];
  uint64_t before, at;  // of the bin that was found
  int bin;              // -1: none
};

// All shared memory of a block, which begins with that of selections. Functions that are not inlined name it, so that
// the compiler knows what they address.
extern __shared__ uint4 block_memory[];
template <class T>
__device__ __forceinline__ T* block_memory_as() {
  return reinterpret_cast<T*>(block_memory);
}
__device__ __forceinline__ SelectMemory& select_memory() { return *block_memory_as<SelectMemory>(); }

// Who works together: the block, or its cluster.
struct Team {
  bool is_cluster;
  __device__ void sync() const {
    if (is_cluster)
      cooperative_groups::this_cluster().sync();
    else
      __syncthreads();
  }
};

__device__ __forceinline__ uint32_t block_rank() { return cooperative_groups::this_cluster().block_rank(); }
// The same place in another block's shared memory.
template <class T>
__device__ __forceinline__ T* in_block(T& own, int rank) {
  return cooperative_groups::this_cluster().map_shared_rank(&own, rank);
}

struct Larger {
  __device__ uint64_t operator()(uint64_t a, uint64_t b) const { return a > b ? a : b; }
};
struct Sum {
  __device__ uint64_t operator()(uint64_t a, uint64_t b) const { return a + b; }
};

// Over the team's threads; 0 is neutral. `turn` is the cluster's, the same in all threads.
template <class Op>
__device__ __forceinline__ uint64_t reduce(Team team, int& turn, uint64_t x, Op op) {
  SelectMemory& memory = select_memory();
#pragma unroll
  for (int lane = kWarp / 2; lane > 0; lane /= 2) x = op(x, __shfl_xor_sync(kAllLanes, x, lane));
  __syncthreads();  // a reduction before this one has been read
  if (threadIdx.x % kWarp == 0) memory.warps[threadIdx.x / kWarp] = x;
  __syncthreads();
  x = memory.warps[threadIdx.x % kWarp];
#pragma unroll
  for (int lane = kWarp / 2; lane > 0; lane /= 2) x = op(x, __shfl_xor_sync(kAllLanes, x, lane));
  if (!team.is_cluster) return x;
  if (threadIdx.x < kClusterBlocks) *in_block(memory.told[turn][block_rank()], static_cast<int>(threadIdx.x)) = x;
  team.sync();
  x = 0;
#pragma unroll
  for (int rank = 0; rank < kClusterBlocks; ++rank) x = op(x, memory.told[turn][rank]);
  turn ^= 1;
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

// Elements that stay: values from `floor` up whose keys are below `edge`, of those at it the columns before `end`.
struct Kept {
  float floor = -FLT_MAX;
  uint32_t edge = 0xffffffffu;
  uint32_t end = 0xffffffffu;
  __device__ bool may_have(float top) const { return top >= floor && key_of(top) <= edge; }
  __device__ bool operator()(float v, int column) const {
    const uint32_t key = key_of(v);
    return v >= floor && (key < edge || (key == edge && static_cast<uint32_t>(column) < end));
  }
};

__device__ __forceinline__ float largest_of(float4 v) { return fmaxf(fmaxf(v.x, v.y), fmaxf(v.z, v.w)); }

// Numbers in a block's shared memory, four for each thread in turn. A value is (number - shift) / scale.
struct View {
  int numbers;  // where they begin, as number of a float of block_memory: a multiple of 4. Behind them, up to the next
                // multiple, is minus infinity
  int columns;  // the same, of their columns; 0: they are first, first + 1, ...
  int first, count;
  float shift, scale;

  __device__ float value(float number) const { return (number - shift) / scale; }
  __device__ float4 four(int i) const { return block_memory_as<float4>()[(numbers + i) / 4]; }
  __device__ int column(int i) const { return columns == 0 ? first + i : block_memory_as<int32_t>()[columns + i]; }
  // f(value, index) for those of this thread, but for fours of which `kept` has none.
  template <class F>
  __device__ void each(const Kept& kept, F f) const {
    for (int i = 4 * static_cast<int>(threadIdx.x); i < count; i += 4 * kSelectThreads) {
      const float4 of = four(i);
      if (!kept.may_have(value(largest_of(of)))) continue;
      f(value(of.x), i);
      if (i + 1 < count) f(value(of.y), i + 1);
      if (i + 2 < count) f(value(of.z), i + 2);
      if (i + 3 < count) f(value(of.w), i + 3);
    }
  }
};

enum class Weigh {
  kNumber,   // 1 each, in the order of values
  kMass,     // exp_mass of the value, in their order; values from kNoMass to 0
  kColumns,  // 1 each of those at the edge, in the order of columns
};

// The element, in ascending order of keys, with which the sum of weights reaches a limit.
struct Selected {
  uint32_t key = 0xffffffffu;   // that if all together do not reach it
  uint64_t before = 0, at = 0;  // weight of smaller keys, and of equal ones
  double limit = 0;
};

__device__ __forceinline__ void add_weight(SelectMemory& memory, uint32_t bin, uint64_t weight) {
  const auto low = static_cast<uint32_t>(weight);
  const uint32_t before = atomicAdd(&memory.low[bin], low);
  const uint32_t high = static_cast<uint32_t>(weight >> 32) + (before + low < low ? 1 : 0);
  if (high != 0) atomicAdd(&memory.high[bin], high);
}

// `limit` is a weight or, of masses, a share of them all. Some passes over the view; in each, the keys that are still
// possible are cut into 2048 bins. Not inlined: what a multiprocessor has not run before it must fetch.
__device__ __noinline__ inline Selected select(Team team, View view, Kept kept, Weigh weigh, double limit) {
  SelectMemory& memory = select_memory();
  const int warp = threadIdx.x / kWarp, lane = threadIdx.x % kWarp;
  const int blocks = team.is_cluster ? kClusterBlocks : 1;
  Selected result;
  result.limit = limit;
  uint32_t from = 0;  // keys from here, 2^width of them
  int width = 32;
  // The exponents of most masses' values are few: first as if those above -1/4 were alike, so that additions meet in
  // few bins.
  bool coarse = weigh == Weigh::kMass;
  if (coarse) from = key_of(-0.25f), width = 26;
#pragma unroll 1
  for (bool first = true; width > 0; first = false) {
    const int shift = max(width - kBinBits, 0);
    for (int i = threadIdx.x; i < kBins; i += kSelectThreads) memory.low[i] = memory.high[i] = 0;
    if (threadIdx.x == 0) memory.bin = -1;
    __syncthreads();
    view.each(kept, [&](float value, int i) {
      const int column = view.column(i);
      if (!kept(value, column)) return;
      uint32_t key = key_of(value);
      if (weigh == Weigh::kColumns) {
        if (key != kept.edge) return;
        key = static_cast<uint32_t>(column);
      }
      if (coarse && key < from) key = from;
      if (width < 32 && (key - from) >> width != 0) return;
      const uint32_t bin = (key - from) >> shift;
      if (weigh == Weigh::kMass)
        add_weight(memory, bin, exp_mass(value));
      else
        atomicAdd(&memory.low[bin], 1);
    });
    team.sync();
    uint64_t mine[2] = {};  // two neighbouring bins of all blocks
#pragma unroll 4
    for (int rank = 0; rank < blocks; ++rank) {
      SelectMemory& other = team.is_cluster ? *in_block(memory, rank) : memory;
      const uint2 low = *reinterpret_cast<const uint2*>(&other.low[2 * threadIdx.x]);
      const uint2 high = *reinterpret_cast<const uint2*>(&other.high[2 * threadIdx.x]);
      mine[0] += uint64_t{high.x} << 32 | low.x;
      mine[1] += uint64_t{high.y} << 32 | low.y;
    }
    uint64_t sum = mine[0] + mine[1];  // up to this thread's bins
#pragma unroll
    for (int step = 1; step < kWarp; step *= 2) {
      const uint64_t left = __shfl_up_sync(kAllLanes, sum, step);
      if (lane >= step) sum += left;
    }
    if (lane == kWarp - 1) memory.warps[warp] = sum;
    __syncthreads();
    uint64_t warps = memory.warps[lane];  // up to that warp
#pragma unroll
    for (int step = 1; step < kWarp; step *= 2) {
      const uint64_t left = __shfl_up_sync(kAllLanes, warps, step);
      if (lane >= step) warps += left;
    }
    const uint64_t warps_before = __shfl_sync(kAllLanes, warps, max(warp - 1, 0));
    const uint64_t total = __shfl_sync(kAllLanes, warps, kWarp - 1);
    if (warp > 0) sum += warps_before;
    if (first && weigh == Weigh::kMass) result.limit = limit * static_cast<double>(total);
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
    team.sync();  // the bin is written, and everyone has read the histograms
    const int bin = memory.bin;
    const uint64_t bin_before = memory.before;
    result.at = memory.at;
    __syncthreads();  // everyone has read what the next pass overwrites
    if (bin < 0) return {};
    if (coarse && bin == 0) {  // one of those above -1/4 after all
      coarse = false;
      from = 0;
      width = 32;
      continue;
    }
    coarse = false;
    result.before = bin_before;
    from += static_cast<uint32_t>(bin) << shift;
    width = shift;
    if (weigh != Weigh::kColumns) kept.edge = min(kept.edge, from + ((1u << width) - 1));  // spares most fours a look
  }
  result.key = from;
  return result;
}

}  // namespace calandra::cuda

// A row of a router (ops/moe.h) by one warp: scores and, as keys whose order is that of the choice scores, what may
// still be chosen in 2 E words of shared memory, and a word for each group. A pick is a maximum over the warp, the
// lowest index of equals. Bound by latency.
#pragma once

#include "backends/cuda/device/reduce.cuh"
#include "backends/cuda/device/rows.cuh"
#include "backends/cuda/device/vec.cuh"

namespace calandra::cuda {

struct RouteArgs {
  Rows<const float> logits;  // [T, E]
  const float* bias;         // [E]; null: none
  int E, top_k, n_group, topk_group;
  bool sigmoids, norm;
  float factor;
  int32_t* experts;  // [T, top_k]
  float* weights;    // [T, top_k]

  __host__ __device__ int words() const { return 2 * E + n_group; }  // of shared memory
};

// A number whose order is that of x, above 0; NaN counts as the lowest number.
__device__ __forceinline__ uint32_t key_of(float x) {
  const uint32_t bits = __float_as_uint(isnan(x) ? -INFINITY : x == 0 ? 0.0f : x);  // -0 is 0
  return bits & 0x80000000u ? ~bits : bits | 0x80000000u;
}

// The index of the largest key, the lowest of equal ones; key 0 is no candidate. -1: there is none.
__device__ __forceinline__ int best_of(const uint32_t* keys, int count, int lane) {
  uint32_t value = 0;
  unsigned best = ~0u;
#pragma unroll 8
  for (int i = lane; i < count; i += kWarp)
    if (keys[i] > value) value = keys[i], best = static_cast<unsigned>(i);
  const uint32_t top = __reduce_max_sync(kAllLanes, value);
  return static_cast<int>(__reduce_min_sync(kAllLanes, value == top ? best : ~0u));
}

// Keeps the candidates of the best groups. A function of its own: most routers have one group.
__device__ __noinline__ inline void keep_groups(const RouteArgs& a, const float* scores, uint32_t* keys,
                                                uint32_t* groups, int lane) {
  const int size = a.E / a.n_group;
  const auto choice = [&](int e) {
    const float c = scores[e] + (a.bias != nullptr ? a.bias[e] : 0.0f);
    return isnan(c) ? -INFINITY : c;
  };
  for (int g = lane; g < a.n_group; g += kWarp) {
    float first = -INFINITY, second = -INFINITY;
    for (int i = g * size; i < (g + 1) * size; ++i) {
      const float c = choice(i);
      if (c > first)
        second = first, first = c;
      else if (c > second)
        second = c;
    }
    groups[g] = key_of(!a.sigmoids || size == 1 ? first : first + second);
  }
  __syncwarp();
  for (int i = 0; i < a.topk_group; ++i) {
    const int g = best_of(groups, a.n_group, lane);
    __syncwarp();
    if (lane == 0 && g >= 0) groups[g] = 0;
    __syncwarp();
  }
  for (int e = lane; e < a.E; e += kWarp)
    if (groups[e / size] != 0) keys[e] = 0;  // its group was not taken
  __syncwarp();
}

// Picks 0 to `last` of row t; every lane gets the last one's expert. If that is the last of all and `keep`, the row's
// experts and weights are stored.
__device__ inline int route_row(const RouteArgs& a, int64_t t, float* words, int last, bool keep, int lane) {
  float* scores = words;
  auto *keys = reinterpret_cast<uint32_t*>(scores + a.E), *groups = keys + a.E;
  const float* row = a.logits[t];
  if (a.sigmoids) {
#pragma unroll 2
    for (int e = lane; e < a.E; e += kWarp) scores[e] = sigmoid(row[e]);
  } else {
    float top = -INFINITY, sum = 0;
#pragma unroll 8
    for (int e = lane; e < a.E; e += kWarp) top = fmaxf(top, scores[e] = row[e]);  // NaN is passed over
    top = warp_max(top);
#pragma unroll 2
    for (int e = lane; e < a.E; e += kWarp) sum += scores[e] = expf(scores[e] - top);
    sum = warp_sum(sum);
#pragma unroll 2
    for (int e = lane; e < a.E; e += kWarp) scores[e] /= sum;
  }
#pragma unroll 2
  for (int e = lane; e < a.E; e += kWarp) keys[e] = key_of(scores[e] + (a.bias != nullptr ? a.bias[e] : 0.0f));
  __syncwarp();
  if (a.n_group > 1) keep_groups(a, scores, keys, groups, lane);

  int expert = -1;
  float sum = 0, mine = 0;  // lane j has the weight of pick j, and of pick j + 32 and so on
  for (int j0 = 0; j0 <= last; j0 += kWarp) {
    const int picks = min(kWarp, last + 1 - j0);
    int own = 0;
#pragma unroll 1
    for (int j = 0; j < picks; ++j) {
      expert = best_of(keys, a.E, lane);
      if (lane == j) own = expert, mine = scores[expert];
      sum += scores[expert];
      __syncwarp();
      if (lane == expert % kWarp) keys[expert] = 0;
      __syncwarp();
    }
    if (keep && lane < picks) {
      a.experts[t * a.top_k + j0 + lane] = own;
      a.weights[t * a.top_k + j0 + lane] = mine;
    }
  }
  if (!keep || last + 1 < a.top_k) return expert;
  __syncwarp();
  for (int j = lane; j < a.top_k; j += kWarp) {
    float weight = a.top_k <= kWarp ? mine : a.weights[t * a.top_k + j];
    if (a.norm) weight /= sum + 1e-20f;
    a.weights[t * a.top_k + j] = weight * a.factor;
  }
  return expert;
}

}  // namespace calandra::cuda

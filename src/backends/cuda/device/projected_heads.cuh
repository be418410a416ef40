// Heads of rows as the projections leave them, with what makes of them what attention reads: queries and keys are
// normalised and rotated, rounded after each as the parts are.
#pragma once

#include "backends/cuda/device/pipeline.cuh"
#include "backends/cuda/device/reduce.cuh"
#include "backends/cuda/device/rows.cuh"
#include "backends/cuda/device/vec.cuh"
#include "ops/attention.h"

namespace calandra::cuda {

template <class T>
struct ProjectedHeads {
  ProjectedHeads(const Tensor& q_, const Tensor& k_, const Tensor& v_, const ops::QkNorm& norm, const Tensor& table)
      : q(rows_of<T>(q_)),
        k(rows_of<T>(k_)),
        v(rows_of<T>(v_)),
        q_norm(norm.q_norm.rank() != 0 ? norm.q_norm.as<float>() : nullptr),
        k_norm(norm.k_norm.rank() != 0 ? norm.k_norm.as<float>() : nullptr),
        eps(norm.eps),
        offset(norm.weight_offset),
        cosines(static_cast<const T*>(table[0].data())),
        sines(static_cast<const T*>(table[1].data())),
        half(static_cast<int>(table.size(2))) {}
  Rows<const T> q, k, v;
  const float *q_norm, *k_norm;  // null: no norm
  float eps, offset;
  const T *cosines, *sines;  // [T, half]
  int half;
};

// A head of `row`, Dh numbers, by a warp into D of shared memory, zeros behind them; `norm`: q_norm or k_norm. The
// operations are those of device/heads.cuh. Weights and the table are read before the wait for the kernel in front.
template <int D>
__device__ __forceinline__ void bring_head(const ProjectedHeads<bf16_t>& heads, const bf16_t* in, const float* norm,
                                           int64_t row, int Dh, int lane, bf16_t* to) {
  constexpr int kOwn = (D + kWarp - 1) / kWarp, kPairs = (D / 2 + kWarp - 1) / kWarp;
  float weight[kOwn], c[kPairs], s[kPairs], x[kOwn];
#pragma unroll
  for (int n = 0; n < kOwn; ++n) {
    const int i = n * kWarp + lane;
    weight[n] = norm != nullptr && i < Dh ? norm[i] : 0;
  }
#pragma unroll
  for (int n = 0; n < kPairs; ++n) {
    const int i = n * kWarp + lane;
    c[n] = i < heads.half ? to_float(heads.cosines[row * heads.half + i]) : 0;
    s[n] = i < heads.half ? to_float(heads.sines[row * heads.half + i]) : 0;
  }
  wait_for_grid();
#pragma unroll
  for (int n = 0; n < kOwn; ++n) {
    const int i = n * kWarp + lane;
    x[n] = i < Dh ? to_float(in[i]) : 0;
  }
  if (norm != nullptr) {
    float sum = 0;
#pragma unroll
    for (int n = 0; n < kOwn; ++n) sum = fmaf(x[n], x[n], sum);
    const float scale = 1.0f / sqrtf(warp_sum(sum) / static_cast<float>(Dh) + heads.eps);
#pragma unroll
    for (int n = 0; n < kOwn; ++n) x[n] = x[n] * scale * (heads.offset + weight[n]);
  }
#pragma unroll
  for (int n = 0; n < kOwn; ++n)
    if (const int i = n * kWarp + lane; i < D) to[i] = from_float<bf16_t>(x[n]);
  __syncwarp();
#pragma unroll
  for (int n = 0; n < kPairs; ++n) {
    const int i = n * kWarp + lane;
    if (i >= heads.half) break;
    const float low = to_float(to[i]), high = to_float(to[i + heads.half]);
    to[i] = from_float<bf16_t>(fmaf(low, c[n], -__fmul_rn(high, s[n])));
    to[i + heads.half] = from_float<bf16_t>(fmaf(high, c[n], __fmul_rn(low, s[n])));
  }
  __syncwarp();
}

}  // namespace calandra::cuda

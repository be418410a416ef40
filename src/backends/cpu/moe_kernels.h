// Functions of one instruction set for mixtures of experts. As in dense_kernels.h, the index of an array of two is 0
// for f32, 1 for bf16 activations.
#pragma once

#include <cstdint>

namespace calandra {

struct MoeKernels {
  // out[i] = sum_j weights[j] y[places[j] * stride + i] in the order of j: a product, then fused multiply-adds, rounded
  // once. Without places row j is place j.
  void (*weighted_sum[2])(const void* y, int64_t stride, const int32_t* places, const float* weights, int64_t k,
                          void* out, int64_t n);
  // out[i] = x[i] sigmoid(gate), the sigmoid rounded to the type first. `out` may be x.
  void (*sigmoid_scale[2])(const void* x, const void* gate, void* out, int64_t n);
};

const MoeKernels& moe_kernels_avx2();
const MoeKernels& moe_kernels_avx512();

}  // namespace calandra

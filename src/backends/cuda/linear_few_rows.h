// The launch of device/few_rows.cuh: products that share it are one launch.
#pragma once

#include "backends/cuda/cuda_backend.h"
#include "backends/cuda/device/few_rows.cuh"

namespace calandra::cuda {

// Whether few_rows has the format; the others are the plain kernel's (linear.cu).
bool has_few_rows(DType x, const PackedWeight& weight);
// Whether a SwiGLU of the two is one product.
inline bool has_swiglu(DType x, const PackedWeight& gate, const PackedWeight& up) {
  return has_few_rows(x, gate) && gate.dtype == up.dtype && gate.block_k == up.block_k;
}

// Collects up to four products and launches them. All have T rows.
class FewRowsLaunch {
 public:
  explicit FewRowsLaunch(int64_t T) { args_.T = static_cast<int>(T); }

  // y = x W^T + bias into the columns of `out` from `column` on.   x [T, K] bf16   out [T, ...]
  void add(const Tensor& x, const PackedWeight& weight, const Tensor& out, int64_t column = 0);
  // residual + y
  void add_to(const Tensor& x, const PackedWeight& weight, const Tensor& residual, const Tensor& out);
  // silu(gate) * up
  void swiglu(const Tensor& x, const PackedWeight& gate, const PackedWeight& up, const Tensor& out);
  // The same with the chosen experts; the last product of a launch only.   x [T, K] or [T, k, K]   out [T, k, N]
  void experts(const Tensor& x, const GroupedWeight& weight, const Tensor& chosen, const Tensor& out);
  void swiglu_experts(const Tensor& x, const GroupedWeight& gate, const GroupedWeight& up, const Tensor& chosen,
                      const Tensor& out);

  // Lets the launch choose the experts itself, from logits that are there when it begins; it stores its choice.
  static bool can_route(int64_t T, const RouteArgs& route);
  void route(const RouteArgs& route) { args_.route = route; }

  bool empty() const { return args_.parts == 0; }
  void run(cudaStream_t stream);

 private:
  FewRowsPart& part(const Tensor& x, const PackedWeight& weight, const Tensor& out, After after);
  FewRowsPart& grouped(const Tensor& x, const GroupedWeight& weight, const Tensor& chosen, const Tensor& out,
                       After after);

  FewRowsArgs args_{};
};

}  // namespace calandra::cuda

// Gated DeltaNet token mixer, arXiv:2412.06464.  HF Qwen3_5GatedDeltaNet.
//   Hk, Hv key/value heads   Dk, Dv head dims   C = 2 Hk Dk + Hv Dv channels   W kernel width
#pragma once

#include "cache/cache_spec.h"
#include "ops/dense.h"
#include "ops/recurrence.h"
#include "weights/weight_reader.h"

namespace calandra {

struct GatedDeltaNet {
  struct Sizes {
    int64_t hidden_size, num_key_heads, num_value_heads, key_head_dim, value_head_dim, kernel;
    float eps;
    ops::GateActivation gate;
  };
  // Reads in_proj_{qkv,z,b,a}, conv1d, A_log, dt_bias, norm, out_proj below `reader`.
  GatedDeltaNet(WeightReader reader, const Sizes& sizes);

  // x [T, D], normalised   returns [T, D]
  Tensor forward(ExecContext& ctx, const Batch& batch, LayerCache& cache, const SlotCounts& slots,
                 const Tensor& x) const;
  CacheSpec cache_spec(DType dtype) const;

  Sizes sizes;
  LinearPack in_proj{4};  // qkv [C], z [Hv Dv], b [Hv], a [Hv]: one read of x
  ops::GatedDeltaWeights weights;
  PackedWeight out_proj;
};

}  // namespace calandra

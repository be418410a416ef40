// Lightning attention token mixer: linear attention with a constant decay per head, a grouped norm and a sigmoid gate.
// vLLM BailingMoELinearAttention; docs/models/bailing_v2_5.md.
//   H heads   D head_dim
#pragma once

#include <vector>

#include "cache/cache_spec.h"
#include "ops/dense.h"
#include "ops/lightning.h"
#include "weights/weight_reader.h"

namespace calandra {

// How the decay depends on the layer. QUIRK: the maker's serving and training code has kP, the remote code shipped with
// the weights kH.
enum class LinearDecayVariant {
  kP,     // 1 - l / (N - 1) + 1e-5
  kH,     // 1 - (l - 1) / (N - 1) + 1e-5
  kNone,  // 1
};

// Decay slopes of layer `layer` of `num_hidden_layers`, one for each head; all the model's heads, whatever part of them
// a rank has.
std::vector<float> decay_slopes(int64_t num_attention_heads, int64_t layer, int64_t num_hidden_layers,
                                LinearDecayVariant variant);

struct LightningAttention {
  struct Sizes {
    int64_t hidden_size, num_attention_heads, head_dim;
    int64_t norm_groups;  // QUIRK: group_norm_size counts the groups, it is not their width
    float eps;
    bool use_qk_norm, silu, rope;
    bool qkv_bias, dense_bias;  // of random weights; a checkpoint is asked
    int64_t layer, num_hidden_layers;
    LinearDecayVariant decay;
  };
  // Reads query_key_value, query_layernorm, key_layernorm, g_proj, g_norm, dense below `reader`.
  LightningAttention(WeightReader reader, const Sizes& sizes);

  // x [T, hidden_size], normalised   table [2, T, R / 2] f32   returns [T, hidden_size]
  Tensor forward(ExecContext& ctx, const Batch& batch, LayerCache& cache, const SlotCounts& slots, const Tensor& x,
                 const Tensor& table) const;
  CacheSpec cache_spec() const;

  Sizes sizes;
  LinearPack qkvg{2};  // query_key_value [3 H D], g_proj [H D]: one read of x
  ops::LightningWeights weights;
  PackedWeight dense;
};

}  // namespace calandra

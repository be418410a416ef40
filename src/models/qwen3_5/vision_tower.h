// Vision tower of Qwen3.5: patches of images and videos to embedding rows.  Reference: transformers 5.17
// modeling_qwen3_5.py Qwen3_5VisionModel; docs/models/qwen3_5.md.
//   P patches   F frames, each an attention segment   Dv width of the tower   H heads   Dh head_dim   I
//   intermediate_size M patches that become one row (spatial_merge_size^2)   D hidden_size of the text model
#pragma once

#include <deque>

#include "models/causal_lm.h"
#include "models/qwen3_5/config.h"
#include "ops/attention.h"
#include "weights/weight_reader.h"

namespace calandra::qwen3_5 {

struct LayerNorm {
  Tensor weight, bias;  // [D] f32
  Tensor operator()(ExecContext& ctx, const Tensor& x) const;
};

struct VisionBlock {
  VisionBlock(const WeightReader& reader, const VisionConfig& config);

  LayerNorm norm1, norm2;
  PackedWeight qkv;       // [3 Dv, Dv]
  PackedWeight proj;      // [Dv, Dv]
  PackedWeight fc1, fc2;  // [I, Dv], [Dv, I]
};

class VisionTower final : public VisionEncoder {
 public:
  // Reads what stands below model.visual. `dtype` of activations: f32 | bf16.
  VisionTower(const VisionConfig& config, WeightReader reader, Backend& backend, DType dtype);

  int64_t patch_size() const override { return config_.patch_size; }
  int64_t temporal_patch_size() const override { return config_.temporal_patch_size; }
  int64_t spatial_merge_size() const override { return config_.spatial_merge_size; }
  Tensor forward(ExecContext& ctx, const Tensor& patches, std::span<const PatchGrid> grids) const override;

 private:
  // What follows from the grids alone, in the memory of the step.
  struct Places {
    Tensor rotary;            // [2, P, Dh / 2] f32: cosines, sines
    Tensor entries, weights;  // [P, 4] i32 and f32: rows of the position table and their shares
    Tensor segment_start;     // [F + 1] i32
  };
  Places places_of(ExecContext& ctx, std::span<const PatchGrid> grids) const;
  Tensor attention(ExecContext& ctx, const VisionBlock& block, const Tensor& x, const Places& places) const;
  Tensor mlp(ExecContext& ctx, const VisionBlock& block, const Tensor& x) const;
  Tensor merger(ExecContext& ctx, const Tensor& x) const;

  const VisionConfig config_;
  const DType dtype_;
  PackedWeight patch_embed_;  // [Dv, values of a patch]
  Tensor pos_embed_;          // [side^2, Dv] f32
  std::deque<VisionBlock> blocks_;
  LayerNorm merger_norm_;
  PackedWeight merger_fc1_, merger_fc2_;  // [M Dv, M Dv], [D, M Dv]
  Buffer rotary_memory_;
  ops::RopeFrequencies frequencies_;
};

}  // namespace calandra::qwen3_5

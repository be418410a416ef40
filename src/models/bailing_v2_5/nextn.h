// Next-token prediction layers of Bailing V2.5 (num_nextn_predict_layers), stored behind the decoder's layers.
// modeling_bailing_moe_v2_5.py BailingMoeV2_5MTPLayer; docs/models/bailing_v2_5.md.
#pragma once

#include <deque>

#include "models/bailing_v2_5/bailing_v2_5.h"
#include "models/draft_head.h"

namespace calandra::bailing_v2_5 {

class NextnPredictor final : public Drafter {
 public:
  // `layers`: position "model.layers". Embedding and rotary tables are those of `target`.
  NextnPredictor(const Config& config, WeightReader layers, const Bailing& target, const HeadPlace& head,
                 std::span<const int32_t> draft_ids);

  int64_t num_layers() const override { return static_cast<int64_t>(layers_.size()); }
  std::vector<CacheSpec> cache_specs() const override;
  Tensor forward(ExecContext& ctx, const Batch& batch, ModelCaches& caches, const Tensor& hidden,
                 int64_t step) const override;
  Tensor logits(ExecContext& ctx, const Tensor& hidden) const override { return head_.logits(ctx, hidden); }
  std::span<const int32_t> token_ids() const override { return head_.token_ids(); }
  StepCost step_cost() const override;

 private:
  struct Layer {
    Layer(WeightReader reader, const Config& config, int64_t layer);
    RmsNorm enorm, hnorm, final_layernorm;
    PackedWeight eh_proj;  // [D, 2 D]
    DecoderLayer decoder;
  };
  const Bailing& target_;
  DraftHead head_;
  int64_t first_layer_;  // place of the first MTP layer's cache: behind the decoder
  std::deque<Layer> layers_;
};

}  // namespace calandra::bailing_v2_5

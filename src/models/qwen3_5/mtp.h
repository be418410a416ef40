// Multi-token prediction layers of Qwen3.5 (vLLM Qwen3_5MTP, Qwen3_5MoeMTP); docs/models/qwen3_5.md.
//   T rows (entries)   D hidden_size
#pragma once

#include <deque>

#include "models/draft_head.h"
#include "models/qwen3_5/qwen3_5.h"

namespace calandra::qwen3_5 {

class MtpPredictor final : public Drafter {
 public:
  // Reads what stands below `reader`, "mtp"; embedding and rotary table are those of `target`. Throws LoadError when a
  // checkpoint with weights has none for it.
  MtpPredictor(const Config& config, WeightReader reader, bool has_weights, const Qwen3_5& target,
               const HeadPlace& head, std::span<const int32_t> draft_ids);

  int64_t num_layers() const override { return static_cast<int64_t>(layers_.size()); }
  std::vector<CacheSpec> cache_specs() const override;
  Tensor forward(ExecContext& ctx, const Batch& batch, ModelCaches& caches, const Tensor& hidden,
                 int64_t step) const override;
  Tensor logits(ExecContext& ctx, const Tensor& hidden) const override { return head_.logits(ctx, hidden); }
  std::span<const int32_t> token_ids() const override { return head_.token_ids(); }
  StepCost step_cost() const override;

 private:
  const Qwen3_5& target_;
  DraftHead head_;
  int64_t first_layer_;  // place of the first MTP layer's cache: behind the decoder
  RmsNorm pre_fc_norm_embedding_, pre_fc_norm_hidden_, norm_;
  PackedWeight fc_;  // [D, 2 D]
  std::deque<DecoderLayer> layers_;
};

}  // namespace calandra::qwen3_5

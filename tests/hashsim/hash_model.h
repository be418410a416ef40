// HashModel: a stand-in CausalLM whose layers keep rolling hashes in the real pages and slots of exactly what they were
// given, and whose next token is a function of what they read back. Any mix-up of page, slot, count, order or row
// changes tokens; of MTP entries and hidden rows, drafts (the arithmetic: hash_rules.h). Runs in host memory.
#pragma once

#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "models/causal_lm.h"
#include "tests/hashsim/batch_contract.h"
#include "tests/hashsim/hash_rules.h"

namespace calandra::hashsim {

class HashModel final : public CausalLM {
 public:
  explicit HashModel(const HashModelConfig& config);
  HashModel(const HashModel&) = delete;
  HashModel& operator=(const HashModel&) = delete;
  ~HashModel() override;

  int64_t vocab_size() const override { return config_.vocab_size; }
  int64_t hidden_size() const override { return kHiddenSize; }
  int64_t max_position_embeddings() const override { return config_.max_position_embeddings; }
  DType dtype() const override { return DType::kF32; }
  std::vector<CacheSpec> cache_specs() const override;
  Tensor forward(ExecContext& ctx, const Batch& batch, ModelCaches& caches) const override;
  Tensor logits(ExecContext& ctx, const Tensor& hidden) const override;
  StepCost step_cost() const override { return config_.step_cost; }
  const Drafter* drafter() const override { return drafter_.get(); }
  const VisionEncoder* vision() const override { return vision_.get(); }

  const HashModelConfig& config() const { return config_; }
  // Rules of the contract that batches broke so far. Not for several threads at once.
  const std::vector<std::string>& violations() const { return contract_.violations(); }
  void clear_violations() { contract_.clear(); }
  // Called with every batch before it runs; may meddle with it.
  using Change = std::function<void(Batch&)>;
  void before_forward(Change change) { before_forward_ = std::move(change); }
  void before_draft(Change change) { before_draft_ = std::move(change); }

 private:
  class MtpLayers;
  class VisionTower;

  HashModelConfig config_;
  std::unique_ptr<Drafter> drafter_;
  std::unique_ptr<VisionEncoder> vision_;
  mutable BatchContract contract_;
  Change before_forward_, before_draft_;
};

}  // namespace calandra::hashsim

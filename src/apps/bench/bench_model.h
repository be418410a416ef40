// BenchModel: a model as it is, for benches. Notes what its passes had to do, for the roofline; and, where weights are
// random, can let drafts be accepted at given rates. For benches alone: nothing else may include this.
#pragma once

#include <memory>
#include <vector>

#include "engine/draft_time.h"
#include "engine/request.h"
#include "models/causal_lm.h"

namespace calandra::apps {

class BenchModel final : public CausalLM {
 public:
  // `model` must outlive it. Without `drafts` it has no drafter, as a model that was loaded without.
  BenchModel(const CausalLM& model, bool drafts);
  ~BenchModel() override;

  // From now on the j-th draft of a run and all before it are accepted with the j-th probability (not growing with j;
  // 0 behind the last), if every request goes through script().
  void accept_drafts(std::vector<double> rates, uint64_t seed);
  // Makes the answer one token over and over, which the prompt chooses, whatever the weights say. The drafter's logits
  // get the same bias, so its drafts are right unless the model spoils them. A bias, since no draft of such a request
  // depends on the tokens before it: steps are launched ahead as for most of what users ask.
  void script(Request& request) const;

  // A pass of the runner, before it runs (ModelRunner::watch).
  void note(int64_t pass, const StepShape& shape);
  // Seconds that all passes since the last call would have taken at that speed, and how many steps there were.
  struct Work {
    double roofline_seconds = 0;
    int64_t steps = 0;
  };
  Work take_work(const HardwareSpeed& speed);

  int64_t vocab_size() const override { return model_.vocab_size(); }
  int64_t hidden_size() const override { return model_.hidden_size(); }
  int64_t max_position_embeddings() const override { return model_.max_position_embeddings(); }
  DType dtype() const override { return model_.dtype(); }
  std::vector<CacheSpec> cache_specs() const override { return model_.cache_specs(); }
  Tensor forward(ExecContext& ctx, const Batch& batch, ModelCaches& caches) const override {
    return model_.forward(ctx, batch, caches);
  }
  Tensor logits(ExecContext& ctx, const Tensor& hidden) const override;
  StepCost step_cost() const override { return model_.step_cost(); }
  const Drafter* drafter() const override;

 private:
  class BenchDrafter;

  const CausalLM& model_;
  std::unique_ptr<BenchDrafter> drafter_;
  mutable std::vector<StepShape> steps_;
};

}  // namespace calandra::apps

#include "apps/bench/bench_model.h"

#include <numeric>

#include "base/philox.h"
#include "engine/recorded_steps.h"
#include "ops/backend.h"

namespace calandra::apps {
namespace {

// Both far above any logit; a spoilt draft beats the script.
constexpr float kScripted = 1e4f, kSpoilt = 1e6f;

// One token at each place, of those that can be drafted; never the first of them, which spoils drafts.
class ScriptedAnswer final : public LogitsProcessor {
 public:
  explicit ScriptedAnswer(std::vector<int32_t> ids) : ids_(std::move(ids)) {}

  void apply(const Prefix& prefix, RowEdits& edits) const override {
    const auto words = philox4x32({static_cast<uint32_t>(prefix.size()), 0, 0, 0}, static_cast<uint64_t>(prefix[0]));
    edits.add_bias(ids_[words[0] % ids_.size()], kScripted);
  }

 private:
  std::vector<int32_t> ids_;
};

}  // namespace

class BenchModel::BenchDrafter final : public Drafter {
 public:
  explicit BenchDrafter(const Drafter& drafter) : drafter_(drafter) {}

  void accept(std::vector<double> rates, uint64_t seed) {
    rates_ = std::move(rates);
    seed_ = seed;
  }
  void note(int64_t pass, const StepShape& shape) {
    passes_.push_back(shape);
    step_ = static_cast<size_t>(pass);
  }
  double take_roofline(const HardwareSpeed& speed) {
    double seconds = 0;
    for (const StepShape& pass : passes_) seconds += roofline_seconds(step_cost(), speed, pass);
    passes_.clear();
    return seconds;
  }

  int64_t num_layers() const override { return drafter_.num_layers(); }
  std::vector<CacheSpec> cache_specs() const override { return drafter_.cache_specs(); }
  std::span<const int32_t> token_ids() const override { return drafter_.token_ids(); }
  StepCost step_cost() const override { return drafter_.step_cost(); }
  Tensor forward(ExecContext& ctx, const Batch& batch, ModelCaches& caches, const Tensor& hidden,
                 int64_t step) const override {
    return drafter_.forward(ctx, batch, caches, hidden, step);
  }
  Tensor logits(ExecContext& ctx, const Tensor& hidden) const override {
    Tensor logits = drafter_.logits(ctx, hidden);
    if (ctx.dry_run) return logits;
    passes_.back().logit_rows += hidden.size(0);
    for (int64_t row = 0; !rates_.empty() && row < logits.size(0); ++row)
      if (!accepts()) ctx.backend.copy_bytes(logits[row].data(), &kSpoilt, sizeof kSpoilt);
    return logits;
  }

 private:
  // A draft, given that those before it are accepted.
  bool accepts() const {
    const uint64_t draw = draws_++;
    const auto words = philox4x32({static_cast<uint32_t>(draw), static_cast<uint32_t>(draw >> 32), 0, 0}, seed_);
    const double rate = step_ < rates_.size() ? rates_[step_] : 0, before = step_ == 0 ? 1 : rates_[step_ - 1];
    return words[0] * 0x1p-32 * before < rate;
  }

  const Drafter& drafter_;
  std::vector<double> rates_;
  uint64_t seed_ = 0;
  mutable uint64_t draws_ = 0;
  size_t step_ = 0;  // of the last pass
  mutable std::vector<StepShape> passes_;
};

BenchModel::BenchModel(const CausalLM& model, bool drafts) : model_(model) {
  if (drafts && model.drafter() != nullptr) drafter_ = std::make_unique<BenchDrafter>(*model.drafter());
}

BenchModel::~BenchModel() = default;

void BenchModel::accept_drafts(std::vector<double> rates, uint64_t seed) {
  if (drafter_) drafter_->accept(std::move(rates), seed);
}

std::shared_ptr<const LogitsProcessor> BenchModel::scripted_answer() const {
  std::vector<int32_t> ids;
  if (model_.drafter() != nullptr)
    ids.assign(model_.drafter()->token_ids().begin(), model_.drafter()->token_ids().end());
  if (ids.empty()) {
    ids.resize(static_cast<size_t>(vocab_size()));
    std::iota(ids.begin(), ids.end(), 0);
  }
  ids.erase(ids.begin());
  return std::make_shared<ScriptedAnswer>(std::move(ids));
}

BenchModel::Work BenchModel::take_work(const HardwareSpeed& speed) {
  Work work{0, std::ssize(steps_)};
  for (const StepShape& step : steps_) work.roofline_seconds += roofline_seconds(step_cost(), speed, step);
  if (drafter_) work.roofline_seconds += drafter_->take_roofline(speed);
  steps_.clear();
  return work;
}

void BenchModel::note(int64_t pass, const StepShape& shape) {
  if (pass == RecordedSteps::kForward)
    steps_.push_back(shape);
  else
    drafter_->note(pass, shape);
}

Tensor BenchModel::logits(ExecContext& ctx, const Tensor& hidden) const {
  if (!ctx.dry_run && !steps_.empty()) steps_.back().logit_rows += hidden.size(0);
  return model_.logits(ctx, hidden);
}

const Drafter* BenchModel::drafter() const { return drafter_.get(); }

}  // namespace calandra::apps

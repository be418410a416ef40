#include "apps/bench/bench_model.h"

#include "base/philox.h"
#include "engine/recorded_steps.h"
#include "ops/backend.h"

namespace calandra::apps {
namespace {

// Both far above any logit; a spoilt draft beats the script.
constexpr float kScripted = 100, kSpoilt = 1e6f;

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
      if (!accepts()) ctx.backend.upload(ctx, logits[row].data(), &kSpoilt, sizeof kSpoilt);
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

// Of the tokens that can be drafted, never the first, which spoils drafts.
void BenchModel::script(Request& request) const {
  const std::span<const int32_t> drafted =
      model_.drafter() != nullptr ? model_.drafter()->token_ids() : std::span<const int32_t>();
  const uint64_t others = (drafted.empty() ? static_cast<uint64_t>(vocab_size()) : drafted.size()) - 1;
  const auto words = philox4x32({0, 0, 0, 0}, static_cast<uint64_t>(request.prompt_token_ids.at(0)));
  const auto at = static_cast<int32_t>(1 + words[0] % others);
  request.params.logit_bias = {{drafted.empty() ? at : drafted[static_cast<size_t>(at)], kScripted}};
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

// Two tables on real layers: drafts of every length behind prompts of every length, accepted and rejected at will, and
// preemption at every step. A third of each, which the commit chooses, runs in CI, in builds with stamps, which are
// slow, a fifteenth of the demo models'; CALANDRA_MATRIX=all runs all of it.
#include <fmt/format.h>
#include <gtest/gtest.h>

#include <algorithm>

#include "tests/losslessness_session.h"
#include "tests/model_under_test.h"

namespace calandra::lossless {
namespace {

// A model whose drafter runs as always, if it has one, and then proposes what it is told. For one sequence.
class ForcedDrafts final : public CausalLM {
 public:
  enum class Pattern { kRejectAll, kAcceptAll, kAlternate };

  explicit ForcedDrafts(const CausalLM& model) : model_(model), drafter_(*this, model.drafter()) {}

  // tokens: of prompt and plain answer.
  void expect(std::vector<int32_t> tokens, Pattern pattern) {
    tokens_ = std::move(tokens);
    pattern_ = pattern;
  }

  int64_t vocab_size() const override { return model_.vocab_size(); }
  int64_t hidden_size() const override { return model_.hidden_size(); }
  int64_t max_position_embeddings() const override { return model_.max_position_embeddings(); }
  DType dtype() const override { return model_.dtype(); }
  std::vector<CacheSpec> cache_specs() const override { return model_.cache_specs(); }
  Tensor forward(ExecContext& ctx, const Batch& batch, ModelCaches& caches) const override {
    return model_.forward(ctx, batch, caches);
  }
  Tensor logits(ExecContext& ctx, const Tensor& hidden) const override { return model_.logits(ctx, hidden); }
  StepCost step_cost() const override { return model_.step_cost(); }
  const Drafter* drafter() const override { return &drafter_; }

 private:
  class Forced final : public Drafter {
   public:
    Forced(const ForcedDrafts& model, const Drafter* drafter) : model_(model), drafter_(drafter) {}
    int64_t num_layers() const override { return drafter_ != nullptr ? drafter_->num_layers() : 1; }
    std::vector<CacheSpec> cache_specs() const override {
      return drafter_ != nullptr ? drafter_->cache_specs() : std::vector<CacheSpec>{};
    }
    Tensor forward(ExecContext& ctx, const Batch& batch, ModelCaches& caches, const Tensor& hidden,
                   int64_t step) const override {
      if (!ctx.dry_run) last_ = batch.token_index.as<int32_t>()[batch.rows() - 1];
      if (drafter_ != nullptr) return drafter_->forward(ctx, batch, caches, hidden, step);
      return ctx.workspace.alloc(hidden.dtype(), hidden.shape());  // nobody reads it
    }
    Tensor logits(ExecContext& ctx, const Tensor& hidden) const override {
      Tensor out = ctx.workspace.alloc(DType::kF32, {hidden.size(0), model_.vocab_size()});
      if (ctx.dry_run) return out;
      std::fill_n(out.as<float>(), out.numel(), 0.f);
      out[hidden.size(0) - 1].as<float>()[model_.told(last_ + 1)] = 50;
      return out;
    }
    std::span<const int32_t> token_ids() const override { return {}; }
    StepCost step_cost() const override { return drafter_ != nullptr ? drafter_->step_cost() : StepCost{}; }

   private:
    const ForcedDrafts& model_;
    const Drafter* drafter_;
    mutable int64_t last_ = 0;  // entry of the last pass
  };

  // The draft at a token index.
  int64_t told(int64_t index) const {
    const int64_t plain = index < std::ssize(tokens_) ? tokens_[static_cast<size_t>(index)] : 0;
    const bool right = pattern_ == Pattern::kAcceptAll || (pattern_ == Pattern::kAlternate && index % 2 == 0);
    return right ? plain : (plain + 1) % vocab_size();
  }

  const CausalLM& model_;
  Forced drafter_;
  std::vector<int32_t> tokens_;
  Pattern pattern_ = Pattern::kRejectAll;
};

class LosslessnessTables : public ::testing::TestWithParam<std::string> {
 protected:
  void SetUp() override {
    subject_ = subject(GetParam());
    if (subject_ == nullptr) GTEST_SKIP() << "skipped: " << GetParam() << " is only in the shared oracle";
  }

  Subject* subject_ = nullptr;
  const testing::TablePart part_ = testing::table_part(testing::kHostile                                   ? 24
                                                       : CALANDRA_STAMPS && GetParam().starts_with("demo") ? 15
                                                                                                           : 3);
};

std::vector<int32_t> joined(std::vector<int32_t> tokens, const std::vector<int32_t>& more) {
  tokens.insert(tokens.end(), more.begin(), more.end());
  return tokens;
}

// Each also goes on from the state that it left.
TEST_P(LosslessnessTables, DraftsOfEveryLength) {
  if (subject_->on_device()) GTEST_SKIP() << "skipped: its drafts are forced by logits that the host writes";
  constexpr int64_t kAnswer = 10;
  ForcedDrafts model(*subject_->model);
  int64_t runs = 0, drafted = 0, accepted = 0, went_on = 0;
  for (int64_t length = 1; length <= 64; ++length) {
    if (!part_.takes(static_cast<uint64_t>(length))) continue;
    Request request;
    request.prompt_token_ids = text_of(*subject_, 7 * length, length);
    request.params.temperature = 0;
    request.params.max_tokens = kAnswer;
    request.params.ignore_eos = true;
    request.params.logprobs = 1;
    if (length % 4 == 3) request.params.repetition_penalty = 1.2f;
    const AskedRequest first = ask(*subject_, "first turn", request);
    const std::vector<int32_t> tokens = joined(request.prompt_token_ids, first.plain[0].token_ids);
    request.prompt_token_ids = joined(tokens, text_of(*subject_, 5, 3));
    const AskedRequest second = ask(*subject_, "second turn", request);
    for (int k = 0; k <= 8; ++k) {
      ModelRunner runner(model, *subject_->backend,
                         {.max_num_seqs = 1,
                          .max_num_batched_tokens = 24,
                          .max_model_len = 128,
                          .num_state_slots = 6,
                          .pending_capacity = k,
                          .hidden_ring = k > 0 ? 32 : 0});
      for (const auto pattern :
           {ForcedDrafts::Pattern::kRejectAll, ForcedDrafts::Pattern::kAcceptAll, ForcedDrafts::Pattern::kAlternate}) {
        EngineOptions options{.seed = 1, .checkpoint_bytes = int64_t{1} << 30};
        if (k > 0) options.speculative = {.num_speculative_tokens = k, .adaptive = false};
        EngineCore core(runner, subject_->text(), options);
        for (const AskedRequest* asked : {&first, &second}) {
          model.expect(joined(asked->request.prompt_token_ids, asked->plain[0].token_ids), pattern);
          const Answer answer = core.run({asked->request})[0][0];
          const std::string what = difference(answer, asked->plain[0]);
          ASSERT_EQ(what, "") << length << " tokens, " << k << " drafts, pattern " << static_cast<int>(pattern) << ", "
                              << asked->name;
          ++runs;
          went_on += answer.cached_tokens > 0;
        }
        const EngineStats& stats = core.stats();
        drafted += stats.draft_tokens;
        accepted += stats.accepted_tokens;
        EXPECT_EQ(stats.draft_tokens > 0, k > 0);
        if (pattern != ForcedDrafts::Pattern::kAlternate) {
          const int64_t right = pattern == ForcedDrafts::Pattern::kAcceptAll ? stats.draft_tokens : 0;
          EXPECT_EQ(stats.accepted_tokens, right);
        }
      }
    }
  }
  EXPECT_GT(runs, 0);
  EXPECT_EQ(went_on, runs / 2);
  fmt::print("{}: {} runs, {} of {} drafts accepted\n", GetParam(), runs, accepted, drafted);
  RecordProperty("runs", static_cast<int>(runs));
}

// All that run are sent back at one, two or three steps in a row.
TEST_P(LosslessnessTables, PreemptedAtEveryStep) {
  const std::vector<AskedRequest>& requests = requests_of(*subject_);
  Tally tally;
  int64_t early = 0;  // sessions that surely run when they are sent back
  for (int64_t number = 0; number < 24 * 3; ++number) {
    if (!part_.takes(static_cast<uint64_t>(number))) continue;
    const int64_t first = 1 + number % 24, times = 1 + number / 24;
    early += first <= 2 ? 1 : 0;
    std::vector<const AskedRequest*> asked;
    for (int64_t i = 0; i < 8; ++i)
      asked.push_back(&requests[static_cast<size_t>((number * 8 + i) % std::ssize(requests))]);
    Setting setting{.drafting = {subject_->draft_method(), static_cast<int>(number % 4)},
                    .cache = number % 2 == 1,
                    .batch = 7,
                    .seed = static_cast<uint64_t>(number)};
    ample_limits(setting, 140);
    Session session(*subject_, setting, tally);
    int64_t step = 0;
    session.after_step = [&](Session& s) {
      if (++step < first || step >= first + times) return;
      std::vector<std::pair<RequestId, int32_t>> running;
      for (const Choice* choice : s.core().scheduler().running())
        running.push_back({choice->request.id, choice->sequence.choice - choice->request.request.first_choice});
      for (const auto& [id, choice] : running) s.core().preempt(id, choice);
    };
    session.run(asked, true);
  }
  fmt::print("{}: {}\n", GetParam(), tally.words());
  RecordProperty("runs", static_cast<int>(tally.runs));
  EXPECT_GT(tally.runs, 0);
  EXPECT_GE(tally.preemptions, early);
  EXPECT_EQ(tally.differences, 0) << tally.first;
}

INSTANTIATE_TEST_SUITE_P(Models, LosslessnessTables, ::testing::ValuesIn(table_subjects()), test_name);

}  // namespace
}  // namespace calandra::lossless

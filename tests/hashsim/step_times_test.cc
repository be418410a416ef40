// Times that tell nothing of the steps to come: the first time that a pass of some shape runs, and the one in which it
// is recorded. The engine runs on a device that records, by a clock of which such a pass takes a thousand times as
// long.
#include <gtest/gtest.h>

#include <deque>
#include <map>
#include <tuple>

#include "backends/reference/reference.h"
#include "engine/engine_core.h"
#include "tests/deferred_backend.h"
#include "tests/hashsim/hash_model.h"

namespace calandra::hashsim {
namespace {

// What was put into the queue meanwhile is put there again.
class RecordingBackend final : public DeferredBackend<ReferenceBackend> {
 public:
  RecordingBackend() : DeferredBackend(0, {}) {}

  bool records() const override { return true; }
  std::unique_ptr<Recording> record(ExecContext&, const std::function<void()>& work) override {
    queue().run_all();
    work();
    ++recorded;
    return std::make_unique<Again>(queue(), queue().take_all());
  }
  int recorded = 0;

 private:
  class Again final : public Recording {
   public:
    Again(WorkQueue& queue, std::deque<std::function<void()>> work) : queue_(queue), work_(std::move(work)) {}
    void run(ExecContext&) override {
      for (const std::function<void()>& work : work_) queue_.add(work);
    }

   private:
    WorkQueue& queue_;
    std::deque<std::function<void()>> work_;
  };
};

TEST(StepTimes, FirstRunsAreNotWhatAStepCosts) {
  if (CALANDRA_STAMPS) GTEST_SKIP() << "skipped: stamps want every allocation";
  constexpr double kForward = 1e-3, kPass = 1e-4;
  HashModelConfig config;
  config.mtp_layers = 1;
  config.agreement = 0.5;
  config.step_cost = config.draft_cost = {.weight_bytes = 1e6};
  for (const bool ahead : {false, true}) {
    HashModel model(config);
    RecordingBackend backend;
    const DeferredModel deferred(model, backend.queue());
    ModelRunner runner(deferred, backend, {.pending_capacity = 3, .hidden_ring = 16});
    double now = 0;
    std::deque<int64_t> passes;  // that were launched, and did not run yet
    std::map<std::tuple<int64_t, int64_t, int64_t>, int> runs;
    runner.watch([&](int64_t pass, const StepShape&) { passes.push_back(pass); });
    const auto take_time = [&](const Batch& batch) {
      const int64_t pass = passes.front();
      passes.pop_front();
      const bool slow = ++runs[{pass, batch.rows(), batch.max_drafts}] <= 2;
      now += (pass < 0 ? kForward : kPass) * (slow ? 1000 : 1);
    };
    model.before_forward(take_time);
    model.before_draft(take_time);
    EngineOptions options;
    options.seed = 1;
    options.clock = [&] { return now; };
    options.async_scheduling = ahead;
    options.speculative.emplace().num_speculative_tokens = 3;
    options.speculative->adaptive = false;
    EngineCore core(runner, nullptr, options);
    Request request;
    request.prompt_token_ids = {1, 2, 3};
    request.params.max_tokens = 100;
    core.add(std::move(request), {});

    const DraftLength& length = core.speculator()->length();
    StepShape step;
    step.add(4, 50, 4);
    std::vector<StepShape> drafting(3);
    for (StepShape& pass : drafting) pass.add(&pass == drafting.data() ? 4 : 1, 50, 1);
    // Guessed until the first measurement, which is right already.
    const double guessed = length.step_seconds(step), guessed_drafting = length.drafting_seconds(drafting);
    const auto expect_known = [&] {
      const double seconds = length.step_seconds(step), of_drafting = length.drafting_seconds(drafting);
      EXPECT_NEAR(seconds, seconds == guessed ? guessed : kForward, 1e-9);
      EXPECT_NEAR(of_drafting, of_drafting == guessed_drafting ? guessed_drafting : 3 * kPass, 1e-9);
    };
    while (core.step()) expect_known();
    EXPECT_NE(length.step_seconds(step), guessed);
    EXPECT_NE(length.drafting_seconds(drafting), guessed_drafting);
    EXPECT_EQ(core.stats().steps_ahead > 20, ahead);
    EXPECT_GT(backend.recorded, 3);
  }
}

}  // namespace
}  // namespace calandra::hashsim

// How requests end when something is wrong with them, and that nobody else notices.
#include <cmath>
#include <stdexcept>

#include "tests/hashsim/engine_core_fixture.h"
#include "tests/hashsim/toy_rules.h"

namespace calandra::hashsim {
namespace {

using EngineEnds = EngineCoreTest;

// The hash model whose vision tower has no memory for one picture.
class NoMemoryFor final : public CausalLM, public VisionEncoder {
 public:
  NoMemoryFor(const HashModel& model, float pixel) : model_(model), pixel_(pixel) {}
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
  const VisionEncoder* vision() const override { return this; }

  int64_t patch_size() const override { return model_.vision()->patch_size(); }
  int64_t temporal_patch_size() const override { return model_.vision()->temporal_patch_size(); }
  int64_t spatial_merge_size() const override { return model_.vision()->spatial_merge_size(); }
  Tensor forward(ExecContext& ctx, const Tensor& patches, std::span<const PatchGrid> grids) const override {
    if (!ctx.dry_run && patches.as<float>()[0] == pixel_) throw LoadError("no memory for the picture");
    return model_.vision()->forward(ctx, patches, grids);
  }

 private:
  const HashModel& model_;
  const float pixel_;
};

TEST_F(EngineEnds, APictureThatCannotBeEncodedEndsItsRequestAlone) {
  const NoMemoryFor model(model_, 7);
  ModelRunner runner(model, backend_, limits());
  EngineCore core(runner, nullptr, with_cache());
  const auto with = [&](float pixel, int32_t n) {
    Request r = request(tokens(40, 1), 3);
    r.params.n = n;
    r.pictures = {{5, 6, picture(pixel, 6), 0}};
    return r;
  };
  // Alone, so that its failure leaves nothing to run; then beside others.
  for (const std::vector<Request>& requests :
       {std::vector{with(7, 1)}, std::vector{with(1, 2), with(7, 3), request(tokens(30, 2), 3)}}) {
    const auto answers = core.run(requests);
    for (size_t i = 0; i < requests.size(); ++i)
      for (const Answer& answer : answers[i]) {
        const bool bad = !requests[i].pictures.empty() && requests[i].pictures[0].input->patches[0] == 7;
        EXPECT_EQ(answer.error.has_value(), bad) << i;
        EXPECT_EQ(answer.error ? answer.error->status : 0, bad ? 500 : 0);
        EXPECT_EQ(answer.token_ids.size(), bad ? 0u : 3u);
      }
  }
  EXPECT_EQ(core.stats().finished_error, 4);
  // Others wait behind it.
  RunnerLimits one = limits();
  one.max_num_seqs = 1;
  ModelRunner alone(model, backend_, one);
  EngineCore narrow(alone, nullptr, with_cache());
  for (const Request& r : {with(7, 1), with(1, 1)}) narrow.add(r, {});
  while (narrow.step()) continue;
  EXPECT_TRUE(narrow.idle());
}

// A hit lies behind the first picture; after a preemption nothing is left of it, and the first one is needed too.
TEST_F(EngineEnds, PicturesStandInOrderWhateverWasEncodedFirst) {
  start(limits(), with_cache());
  const auto with = [&](float second) {
    Request r = request(tokens(400, 1), 3);
    r.pictures = {{5, 6, picture(1, 6), 0}, {25, 6, picture(second, 6), 0}};
    return r;
  };
  const RequestId undisturbed = add(with(2));
  run();
  core_->cache()->clear();
  Request first = with(3);
  first.checkpoint_hints = {20};
  add(first);
  run();
  const RequestId id = add(with(2));
  core_->step();
  ASSERT_EQ(core_->scheduler().running().size(), 1u);
  const Sequence& s = core_->scheduler().running()[0]->sequence;
  ASSERT_EQ(s.images.size(), 1u);
  core_->preempt(id, 0);
  core_->cache()->clear();
  core_->step();
  ASSERT_EQ(s.images.size(), 2u);
  EXPECT_LT(s.images[0].begin, s.images[1].begin);
  run();
  EXPECT_EQ(answer(id).token_ids, answer(undisturbed).token_ids);
}

TEST_F(EngineEnds, FalseAtAChoicesLastTokenEndsTheOthersToo) {
  start(limits(), with_cache());
  Request r = request(tokens(20, 1), 100);
  r.params.temperature = 1;
  r.params.n = 4;
  for (int32_t id = 0; id < 8; ++id) r.params.stop_token_ids.push_back(id);
  std::vector<FinishReason> reasons;
  std::vector<int64_t> steps;
  ASSERT_TRUE(std::holds_alternative<RequestId>(core_->add(r, [&](const TokenEvent& event) {
    if (!event.finished) return true;
    reasons.push_back(event.answer.finish_reason);
    steps.push_back(core_->stats().steps);
    return false;
  })));
  run();
  EXPECT_EQ(reasons, (std::vector{FinishReason::kStop, FinishReason::kCancelled, FinishReason::kCancelled,
                                  FinishReason::kCancelled}));
  EXPECT_EQ(steps.front(), steps.back());
  expect_idle();
  // The only choice has ended already.
  r.params.n = 1;
  reasons.clear();
  core_->add(r, [&](const TokenEvent& event) {
    if (event.finished) reasons.push_back(event.answer.finish_reason);
    return !event.finished;
  });
  run();
  EXPECT_EQ(reasons, std::vector{FinishReason::kStop});
  EXPECT_EQ(core_->stats().finished_abort, 3);
  EXPECT_GT(core_->cache()->size(), 1);  // its end is kept
  expect_idle();
}

// In the queue, in its prompt, in its answers: a step later nothing is held but what the other one holds.
TEST_F(EngineEnds, WhatAGivenUpRequestHeldIsFreeAfterOneStep) {
  const auto free_after = [this](int steps, bool beside) {
    start(limits(), {});
    add(request(tokens(8, 1), 40));
    Request three = request(tokens(300, 2), 30);
    three.params.n = 3;
    const RequestId left = beside ? add(three) : RequestId();
    for (int i = 0; i < steps; ++i) core_->step();
    if (beside) core_->cancel(left);
    core_->step();
    EXPECT_EQ(answers_[left].size(), beside ? 3u : 0u);
    return std::pair(runner_->pages().free_pages(), runner_->slots().free_slots());
  };
  for (int steps = 0; steps < 20; ++steps) {
    answers_.clear();
    EXPECT_EQ(free_after(steps, true), free_after(steps, false)) << steps;
  }
}

TEST_F(EngineEnds, PooledRowsThatAreNotFiniteAreAnError) {
  HashModelConfig config = model_config();
  config.nan_token = 63;
  HashModel broken(config);
  ModelRunner runner(broken, backend_, limits());
  EngineCore core(runner, nullptr, with_cache());
  std::vector<Request> requests;
  for (const Pooling pooling : {Pooling::kLast, Pooling::kMean})
    for (const int32_t place : {-1, 10, 99}) {
      std::vector<int32_t> prompt;
      for (int32_t i = 0; i < 100; ++i) prompt.push_back(i == place ? 63 : i * 7 % 63);
      requests.push_back(request(prompt, 1));
      requests.back().pooling = pooling;
    }
  const auto answers = core.run(requests);
  for (const size_t bad : {2, 4, 5}) {  // a mean is of all rows
    ASSERT_TRUE(answers[bad][0].error.has_value()) << bad;
    EXPECT_EQ(answers[bad][0].error->status, 500);
    EXPECT_TRUE(answers[bad][0].embedding.empty());
  }
  for (const size_t good : {0, 1, 3}) {
    EXPECT_FALSE(answers[good][0].error.has_value()) << good;
    EXPECT_TRUE(std::isfinite(answers[good][0].embedding.at(0)));
  }
}

TEST_F(EngineEnds, ARequestThatLeavesNoTokenIsAtFault) {
  start(limits(), {});
  Request r = request(tokens(20, 1), 5);
  r.params.allowed_token_ids = {3};
  r.params.bad_words_token_ids = {{3}};
  const RequestId id = add(r);
  run();
  ASSERT_TRUE(answer(id).error.has_value());
  EXPECT_EQ(answer(id).error->status, 400);
  EXPECT_EQ(answer(id).error->code, "invalid_request_error");
}

// A request may be given to the engine again: its grammar is where it was.
TEST_F(EngineEnds, RequestsDoNotShareTheirGrammar) {
  start(limits(), {});
  Request r = request(tokens(20, 1), 12);
  r.grammar = std::make_shared<ToyGrammar>(7, 8, std::vector<int32_t>{0}, model_.vocab_size());
  const RequestId first = add(r), beside = add(r);
  run();
  const RequestId behind = add(r);
  run();
  EXPECT_GT(answer(first).token_ids.size(), 1u);
  EXPECT_EQ(answer(beside).token_ids, answer(first).token_ids);
  EXPECT_EQ(answer(behind).token_ids, answer(first).token_ids);
}

TEST_F(EngineEnds, AReasoningWhoseEndOpensItAgainIsRefused) {
  EngineOptions options;
  options.thinking = {{4, 5}, {3, 4, 5, 6}};
  EXPECT_THROW(start(limits(), options), LoadError);
  options.thinking = {{4, 5}, {4, 6, 5}};
  EXPECT_NO_THROW(start(limits(), options));
}

// In that step slots were taken for checkpoints that are never published.
TEST_F(EngineEnds, WhatThrowsInAStepLeavesNothingTaken) {
  start(limits(), with_cache());
  Request with_cuts = request(tokens(200, 1), 5);
  with_cuts.checkpoint_hints = {5, 10, 15};
  const std::vector<Request> requests = {request(tokens(8, 2), 5), with_cuts};
  const auto throws = [](const TokenEvent&) -> bool { throw std::runtime_error("nobody reads this"); };
  EXPECT_THROW(core_->run(requests, throws), std::runtime_error);
  EXPECT_EQ(core_->run(requests)[1][0].token_ids.size(), 5u);
  expect_idle();
  EXPECT_THROW(core_->run(requests, throws), std::runtime_error);
  core_.reset();
  EXPECT_EQ(runner_->slots().free_slots(), runner_->slots().slots());
}

TEST_F(EngineEnds, TimesAreThoseOfTheClock) {
  RunnerLimits one = limits();
  one.max_num_seqs = 1;
  start(one, {});
  add(request(tokens(100, 1), 3));  // steps at 1.00 and 1.01 read it, those at 1.02 and 1.03 go on
  Request second = request(tokens(8, 2), 1);
  second.arrival = 0.5;
  add(second);  // the step at 1.04
  Request pooled = request(tokens(8, 2), 1);
  pooled.pooling = Pooling::kLast;
  add(pooled);  // the step at 1.05
  run();
  const EngineTimes& times = core_->stats().times;
  const auto expect = [](const Histogram& histogram, int64_t count, double sum) {
    EXPECT_EQ(histogram.count(), count);
    EXPECT_NEAR(histogram.sum(), sum, 1e-9);
  };
  expect(times.time_to_first_token, 2, 0.01 + 0.54);
  expect(times.inter_token_latency, 2, 0.01 + 0.01);
  expect(times.time_per_output_token, 1, 0.01);
  expect(times.e2e_request_latency, 3, 0.03 + 0.54 + 0.05);
  expect(times.request_queue_time, 3, 0 + 0.54 + 0.05);
  expect(times.request_prefill_time, 2, 0.01 + 0);
  expect(times.request_decode_time, 2, 0.02 + 0);
  expect(times.request_inference_time, 2, 0.03 + 0);
  expect(times.request_prompt_tokens, 3, 100 + 8 + 8);
  expect(times.request_generation_tokens, 2, 3 + 1);
  // 64 rows, 36 rows and a token, two tokens, 8 rows and a token, 8 rows
  expect(times.iteration_tokens, 6, 64 + 37 + 1 + 1 + 9 + 8);
  EXPECT_EQ(times.iteration_tokens.counts()[0], 2);  // up to 1
  EXPECT_EQ(times.iteration_tokens.counts()[1], 1);  // up to 8
  EXPECT_EQ(times.iteration_tokens.counts()[4], 2);  // up to 64
}

}  // namespace
}  // namespace calandra::hashsim

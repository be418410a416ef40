// What the engine does with requests, beyond their tokens: who runs when, what is kept, what is reported.
#include "engine/engine_core.h"

#include <gtest/gtest.h>

#include "backends/reference/reference.h"
#include "tests/hashsim/hash_model.h"

namespace calandra::hashsim {
namespace {

HashModelConfig model_config() {
  HashModelConfig config;
  config.vision = true;
  config.step_cost.weight_bytes = config.draft_cost.weight_bytes = 1e6;
  return config;
}

class EngineCoreTest : public ::testing::Test {
 protected:
  EngineCore& start(RunnerLimits limits, EngineOptions options) {
    core_.reset();
    runner_ = std::make_unique<ModelRunner>(model_, backend_, limits);
    options.seed = 1;
    if (!options.clock) options.clock = [this] { return now_; };
    core_ = std::make_unique<EngineCore>(*runner_, nullptr, options);
    return *core_;
  }
  static RunnerLimits limits() {
    return {
        .max_num_seqs = 8, .max_num_batched_tokens = 64, .max_model_len = 512, .num_state_slots = 64, .max_cuts = 8};
  }
  static EngineOptions with_cache() {
    EngineOptions options;
    options.checkpoint_bytes = 1 << 24;
    return options;
  }
  static std::vector<int32_t> tokens(int64_t count, int32_t seed) {
    std::vector<int32_t> ids;
    for (int64_t i = 0; i < count; ++i) ids.push_back(static_cast<int32_t>((seed * 31 + i * 7 + i * i * seed) % 64));
    return ids;
  }
  static Request request(std::vector<int32_t> prompt, int32_t max_tokens) {
    Request request;
    request.prompt_token_ids = std::move(prompt);
    request.params.max_tokens = max_tokens;
    request.params.temperature = 0;
    return request;
  }
  // Queues a request whose answer is kept, with the step it ended in.
  RequestId add(Request request) {
    auto added = core_->add(std::move(request), [this](const TokenEvent& event) {
      if (event.token >= 0 && !first_step_.contains(event.request)) first_step_[event.request] = core_->stats().steps;
      if (event.finished) answers_[event.request].push_back(event.answer);
      return true;
    });
    if (const auto* error = std::get_if<RequestError>(&added)) ADD_FAILURE() << error->message;
    return std::get<RequestId>(added);
  }
  void run() {
    while (core_->step()) now_ += 0.01;
    EXPECT_TRUE(core_->idle());
  }
  const Answer& answer(RequestId id) { return answers_.at(id).at(0); }

  HashModel model_{model_config()};
  ReferenceBackend backend_;
  double now_ = 1;
  std::unique_ptr<ModelRunner> runner_;
  std::unique_ptr<EngineCore> core_;
  std::map<RequestId, std::vector<Answer>> answers_;
  std::map<RequestId, int64_t> first_step_;
};

TEST_F(EngineCoreTest, ALongPromptDoesNotHoldUpShortOnes) {
  start(limits(), {});
  const RequestId decoding = add(request(tokens(8, 1), 40));
  core_->step();
  const RequestId long_one = add(request(tokens(500, 2), 2));
  std::vector<RequestId> short_ones;
  for (int32_t i = 0; i < 3; ++i) short_ones.push_back(add(request(tokens(8, 3 + i), 2)));
  run();
  // 500 tokens take at least 8 steps; the others come in the first three of them.
  EXPECT_GE(first_step_[long_one], 9);
  for (const RequestId id : short_ones) EXPECT_LE(first_step_[id], 4);
  EXPECT_EQ(answer(decoding).token_ids.size(), 40u);
  EXPECT_EQ(core_->stats().steps, 40);  // it got a token in every one of them
}

TEST_F(EngineCoreTest, PriorityGoesBeforeArrival) {
  for (const SchedulingPolicy policy : {SchedulingPolicy::kFcfs, SchedulingPolicy::kPriority}) {
    RunnerLimits one = limits();
    one.max_num_seqs = 1;
    EngineOptions options;
    options.scheduler.policy = policy;
    start(one, options);
    first_step_.clear();
    std::vector<RequestId> ids;
    for (const int32_t priority : {5, 1, 3}) {
      Request r = request(tokens(8, priority), 3);
      r.priority = priority;
      ids.push_back(add(r));
    }
    run();
    const bool by_priority = policy == SchedulingPolicy::kPriority;
    EXPECT_EQ(first_step_[ids[0]] < first_step_[ids[1]], !by_priority);
    EXPECT_EQ(first_step_[ids[2]] < first_step_[ids[1]], false);
    EXPECT_EQ(first_step_[ids[2]] < first_step_[ids[0]], by_priority);
  }
}

// Twenty requests that come together with one long prefix compute it once.
TEST_F(EngineCoreTest, ABurstComputesItsPrefixOnce) {
  start(limits(), with_cache());
  std::vector<int32_t> prefix = tokens(200, 1);
  std::vector<RequestId> ids;
  for (int32_t i = 0; i < 20; ++i) {
    std::vector<int32_t> prompt = prefix;
    for (const int32_t token : tokens(10, 2 + i)) prompt.push_back(token);
    prompt[200] = i;  // where they part
    ids.push_back(add(request(prompt, 4)));
  }
  run();
  EXPECT_EQ(answer(ids[0]).cached_tokens, 0);
  for (size_t i = 1; i < ids.size(); ++i) EXPECT_EQ(answer(ids[i]).cached_tokens, 200) << i;
  EXPECT_EQ(core_->stats().prompt_rows, 210 + 19 * 10);
  EXPECT_GT(core_->stats().waits_for_prefix, 0);
}

TEST_F(EngineCoreTest, TurnsGoOnFromTheAnswersEnd) {
  start(limits(), with_cache());
  std::vector<int32_t> conversation = tokens(50, 1);
  int64_t kept = 0;
  for (int turn = 0; turn < 6; ++turn) {
    const RequestId id = add(request(conversation, 10));
    run();
    EXPECT_EQ(answer(id).cached_tokens, kept);
    for (const int32_t token : answer(id).token_ids) conversation.push_back(token);
    kept = std::ssize(conversation) - 1;  // the last one was sampled, not run
    for (const int32_t token : tokens(15, 9 + turn)) conversation.push_back(token);
  }
}

TEST_F(EngineCoreTest, CheckpointsStandAtHintsIntervalsAndBranches) {
  EngineOptions options = with_cache();
  options.scheduler.checkpoint_interval = 100;
  start(limits(), options);
  const auto hit = [&](std::vector<int32_t> prompt, std::vector<int64_t> hints = {}) {
    Request r = request(std::move(prompt), 1);
    r.checkpoint_hints = std::move(hints);
    const RequestId id = add(r);
    run();
    return answer(id).cached_tokens;
  };
  const auto other_from = [&](int64_t place, int32_t seed) {
    std::vector<int32_t> prompt = tokens(300, 1), tail = tokens(300, seed);
    std::copy(tail.begin() + place, tail.end(), prompt.begin() + place);
    prompt[place] = (tokens(300, 1)[place] + 1 + seed) % 64;
    return prompt;
  };
  EXPECT_EQ(hit(tokens(300, 1), {40, 130}), 0);
  EXPECT_EQ(hit(tokens(300, 1)), 299);      // one before the end
  EXPECT_EQ(hit(other_from(135, 2)), 130);  // a hint
  EXPECT_EQ(hit(other_from(250, 3)), 200);  // an interval
  EXPECT_EQ(hit(other_from(70, 4)), 40);    // branches here for the first time, and leaves a checkpoint
  EXPECT_EQ(hit(other_from(70, 5)), 70);
  EXPECT_EQ(hit(other_from(30, 6)), 0);
}

TEST_F(EngineCoreTest, SaltsDoNotMeet) {
  start(limits(), with_cache());
  const auto hit = [&](const std::string& salt) {
    Request r = request(tokens(60, 1), 1);
    r.cache_salt = salt;
    const RequestId id = add(r);
    run();
    return answer(id).cached_tokens;
  };
  EXPECT_EQ(hit("a"), 0);
  EXPECT_EQ(hit("b"), 0);
  EXPECT_EQ(hit(""), 0);
  EXPECT_EQ(hit("a"), 59);
  EXPECT_EQ(hit(""), 59);
}

TEST_F(EngineCoreTest, DeadlinesEndRequestsEverywhere) {
  RunnerLimits one = limits();
  one.max_num_seqs = 1;
  start(one, {});
  Request late = request(tokens(8, 1), 100);
  late.deadline = now_ + 0.1;
  const RequestId running = add(late), waiting = add(late);
  Request in_time = request(tokens(8, 2), 3);
  in_time.deadline = now_ + 100;
  const RequestId good = add(in_time);
  run();
  for (const RequestId id : {running, waiting}) {
    ASSERT_TRUE(answer(id).error.has_value());
    EXPECT_EQ(answer(id).error->status, 504);
  }
  EXPECT_GT(answer(running).token_ids.size(), 2u);
  EXPECT_EQ(answer(waiting).token_ids.size(), 0u);
  EXPECT_EQ(answer(good).token_ids.size(), 3u);
}

TEST_F(EngineCoreTest, PooledPromptsGiveTheirHiddenRows) {
  start(limits(), with_cache());
  const std::vector<int32_t> prompt = tokens(150, 1);
  std::vector<double> mean(static_cast<size_t>(model_.hidden_size()));
  std::vector<float> last;
  {
    Sequence s;
    s.tokens = prompt;
    s.prompt_size = s.size();
    ASSERT_TRUE(runner_->reserve(s, s.size()));
    while (s.computed < s.size()) {
      const ModelRunner::Part part{&s, std::min<int64_t>(64, s.size() - s.computed)};
      const Tensor hidden = runner_->forward({&part, 1});
      for (int64_t i = 0; i < part.rows; ++i) {
        const auto row = runner_->read_row(hidden[i]);
        last.assign(row.begin(), row.end());
        for (size_t d = 0; d < row.size(); ++d) mean[d] += row[d] / 150.0;
      }
    }
    runner_->release(s);
  }
  for (const Pooling pooling : {Pooling::kLast, Pooling::kMean}) {
    Request r = request(prompt, 1);
    r.pooling = pooling;
    const RequestId id = add(r);
    run();
    const std::vector<float>& embedding = answer(id).embedding;
    ASSERT_EQ(embedding.size(), last.size());
    EXPECT_TRUE(answer(id).token_ids.empty());
    for (size_t d = 0; d < last.size(); ++d) {
      if (pooling == Pooling::kLast) {
        EXPECT_EQ(embedding[d], last[d]);
      } else {
        EXPECT_NEAR(embedding[d], mean[d], std::abs(mean[d]) * 150 * 6e-8 + 1e-6);
      }
    }
  }
  EXPECT_EQ(core_->cache()->size(), 1);  // one before the end; none was left at the end
}

TEST_F(EngineCoreTest, PicturesAreEncodedOnceAndWithinTheBudget) {
  EngineOptions options = with_cache();
  options.encoder_budget = 8;
  start(limits(), options);
  const int64_t merge = model_.vision()->spatial_merge_size(), side = model_.vision()->patch_size();
  const int64_t values = 3 * model_.vision()->temporal_patch_size() * side * side;
  const auto picture = [&](float pixel, int64_t rows) {
    auto input = std::make_shared<EncoderInput>();
    input->grid = {1, merge, merge * rows};
    input->patches.assign(static_cast<size_t>(input->grid.patches() * values), pixel);
    input->content_hash = {static_cast<uint64_t>(pixel * 8)};
    return input;
  };
  const auto a = picture(1, 6), b = picture(2, 6);
  const auto with = [&](std::vector<std::shared_ptr<EncoderInput>> inputs) {
    Request r = request(tokens(60, 1), 3);
    int64_t begin = 5;
    for (const auto& input : inputs) {
      r.pictures.push_back({begin, 6, input, 0});
      begin += 20;
    }
    return r;
  };
  const RequestId both = add(with({a, b})), again = add(with({b, a}));
  run();
  EXPECT_EQ(core_->stats().encoder_queries, 4);
  EXPECT_EQ(core_->stats().encoder_hits, 2);
  EXPECT_GE(first_step_[both], 2);  // the second picture had to wait for the next step
  EXPECT_NE(answer(both).token_ids, answer(again).token_ids);
  const RequestId hit = add(with({a, b}));
  run();
  EXPECT_EQ(answer(hit).cached_tokens, 59);
  EXPECT_EQ(answer(hit).token_ids, answer(both).token_ids);
  EXPECT_EQ(core_->stats().encoder_queries, 4);  // nothing had to be encoded
}

TEST_F(EngineCoreTest, ARowThatIsNotFiniteEndsItsRequestAloneAndLeavesNoCheckpoint) {
  HashModelConfig config = model_config();
  config.nan_token = 63;
  HashModel broken(config);
  ModelRunner runner(broken, backend_, limits());
  EngineOptions options = with_cache();
  options.seed = 1;
  EngineCore core(runner, nullptr, options);
  std::vector<Request> requests;
  for (int32_t i = 0; i < 4; ++i) {
    std::vector<int32_t> prompt;
    for (int32_t t = 0; t < 40; ++t) prompt.push_back((t * 5 + i) % 63);
    if (i % 2 == 1) prompt[38] = prompt[39] = 63;
    requests.push_back(request(prompt, 5));
    requests.back().params.logit_bias = {{63, -100.0f}};
  }
  const auto answers = core.run(requests);
  for (size_t i = 0; i < 4; ++i) {
    EXPECT_EQ(answers[i][0].error.has_value(), i % 2 == 1) << i;
    EXPECT_EQ(answers[i][0].token_ids.size(), i % 2 == 1 ? 0u : 5u);
  }
  EXPECT_EQ(core.stats().checkpoints, 4);  // two of each good one
}

TEST_F(EngineCoreTest, RequestsThatCanNeverRunAreRefused) {
  RunnerLimits few = limits();
  few.num_blocks = 4;  // 64 tokens
  EngineCore& core = start(few, {});
  EXPECT_TRUE(core.check(request(tokens(64, 1), 1)).has_value());
  EXPECT_FALSE(core.check(request(tokens(63, 1), 1)).has_value());
  const RequestId id = add(request(tokens(60, 1), 100));
  run();
  EXPECT_EQ(answer(id).token_ids.size(), 4u);
  EXPECT_EQ(answer(id).finish_reason, FinishReason::kLength);
}

}  // namespace
}  // namespace calandra::hashsim

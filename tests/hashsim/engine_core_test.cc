// What the engine does with requests, beyond their tokens: who runs when, what is kept, what is reported.
#include "tests/hashsim/engine_core_fixture.h"

namespace calandra::hashsim {
namespace {

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

// What nobody else can take is not lost to the prompt that is read.
TEST_F(EngineCoreTest, APromptGetsTheWholeBudgetWhenNobodyElseCanRun) {
  RunnerLimits one = limits();
  one.max_num_seqs = 1;
  start(one, {});
  const RequestId first = add(request(tokens(500, 1), 1));
  for (int32_t i = 0; i < 3; ++i) add(request(tokens(8, 2 + i), 1));
  run();
  EXPECT_EQ(first_step_[first], (500 + 63) / 64);
}

// Short prompts that come again and again while long ones are read and others decode: how long anybody waits.
// A prompt leaves rows to drafts while some are made; where none were for long, it gets them all.
TEST_F(EngineCoreTest, APromptLeavesRowsToDraftsThatPay) {
  RunnerLimits with_drafts = limits();
  with_drafts.pending_capacity = 4;
  with_drafts.hidden_ring = 16;
  model_.before_forward([this](const Batch&) { now_ += 1; });
  for (const bool pay : {true, false}) {
    model_.before_draft([this, pay](const Batch&) { now_ += pay ? 0.01 : 3; });
    EngineOptions options;
    options.speculative.emplace().num_speculative_tokens = 4;
    EngineCore& core = start(with_drafts, options);
    add(request(tokens(10, 1), 450));
    for (int i = 0; i < 80; ++i) ASSERT_TRUE(core.step());
    add(request(tokens(200, 2), 1));
    const int64_t before = core.stats().prompt_rows;
    core.step();
    EXPECT_EQ(core.stats().prompt_rows - before, pay ? 64 - 1 - 4 : 64 - 1);
  }
}

TEST_F(EngineCoreTest, Fairness) {
  RunnerLimits many = limits();
  many.max_num_seqs = 16;
  start(many, {});
  std::map<RequestId, int64_t> last_step, came, gaps;
  int64_t longest_gap = 0, longest_wait = 0;
  const auto watched = [&](Request r) {
    const auto added = core_->add(std::move(r), [&](const TokenEvent& event) {
      const int64_t step = core_->stats().steps;
      if (const auto before = last_step.find(event.request); before != last_step.end())
        longest_gap = std::max(longest_gap, step - before->second);
      last_step[event.request] = step;
      return true;
    });
    const RequestId id = std::get<RequestId>(added);
    came[id] = core_->stats().steps;
    return id;
  };
  for (int32_t i = 0; i < 4; ++i) watched(request(tokens(8, i), 200));
  core_->step();
  for (int32_t i = 0; i < 4; ++i) watched(request(tokens(500, 10 + i), 2));
  std::vector<RequestId> short_ones;
  for (int32_t i = 0; !core_->idle(); ++i) {
    if (i % 5 == 0 && i < 30) short_ones.push_back(watched(request(tokens(8, 20 + i), 2)));
    core_->step();
  }
  for (const RequestId id : short_ones) longest_wait = std::max(longest_wait, last_step[id] - 1 - came[id]);
  RecordProperty("most steps between two tokens of one that decodes", static_cast<int>(longest_gap));
  RecordProperty("most steps to the first token of 8 behind 4 prompts of 500", static_cast<int>(longest_wait));
  EXPECT_EQ(longest_gap, 1);
  // 60 rows are left beside those that decode; four readers take 30, 15, 8 and 4 of them, three are left for the next.
  EXPECT_LE(longest_wait, (8 + 2) / 3);
}

TEST_F(EngineCoreTest, PriorityGoesBeforeArrival) {
  for (const SchedulingPolicy policy : {SchedulingPolicy::kFcfs, SchedulingPolicy::kPriority}) {
    RunnerLimits one = limits();
    one.max_num_seqs = 1;
    EngineOptions options;
    options.scheduler.policy = policy;
    start(one, options);
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

TEST_F(EngineCoreTest, WhoWaitsForAPrefixStartsAsSoonAsItIsThere) {
  start(limits(), with_cache());
  std::vector<int32_t> prompt = tokens(500, 1);
  add(request(prompt, 1));
  prompt.resize(70);
  prompt[64] = (prompt[64] + 1) % 64;  // a step's rows are the same
  const RequestId second = add(request(prompt, 1));
  run();
  EXPECT_EQ(answer(second).cached_tokens, 64);
  EXPECT_EQ(first_step_[second], 2);
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

TEST_F(EngineCoreTest, WhoSkipsReadingStillLeavesCheckpoints) {
  start(limits(), with_cache());
  const auto hit = [&](int64_t size, bool skips) {
    Request r = request(tokens(size, 1), 1);
    r.skip_reading_prefix_cache = skips;
    const RequestId id = add(r);
    run();
    return answer(id).cached_tokens;
  };
  EXPECT_EQ(hit(60, false), 0);
  EXPECT_EQ(hit(60, true), 0);
  EXPECT_EQ(hit(90, true), 0);
  EXPECT_EQ(hit(100, false), 90);
}

// Its own tokens are no earlier request's.
TEST_F(EngineCoreTest, APreemptedPromptReportsWhatWasCachedWhenItCame) {
  start(limits(), with_cache());
  add(request(tokens(40, 1), 1));
  run();
  for (const int64_t cached : {0, 40}) {
    std::vector<int32_t> prompt = tokens(300, cached == 0 ? 2 : 1);
    const RequestId id = add(request(prompt, 2));
    core_->step();
    core_->step();
    core_->preempt(id, 0);
    run();
    EXPECT_EQ(answer(id).preemptions, 1);
    EXPECT_EQ(answer(id).cached_tokens, cached);
    EXPECT_LT(core_->stats().prompt_rows, 40 + 2 * 300);  // it went on from its own checkpoint all the same
  }
}

TEST_F(EngineCoreTest, AGivenUpPromptIsGoneOnWithWhenItComesAgain) {
  start(limits(), with_cache());
  const RequestId given_up = add(request(tokens(300, 1), 5));
  core_->step();
  core_->step();
  core_->cancel(given_up);
  run();
  EXPECT_EQ(answer(given_up).finish_reason, FinishReason::kCancelled);
  const RequestId again = add(request(tokens(300, 1), 5));
  for (int i = 0; i < 5; ++i) core_->step();
  core_->cancel(again);  // in its answer: nothing of that is kept
  run();
  EXPECT_EQ(answer(again).cached_tokens, 128);
  std::vector<int32_t> longer = tokens(300, 1);
  longer.insert(longer.end(), answer(again).token_ids.begin(), answer(again).token_ids.end());
  longer.push_back(1);
  const RequestId turn = add(request(longer, 1));
  run();
  EXPECT_EQ(answer(turn).cached_tokens, 299);
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
  Request r = request(tokens(60, 1), 1);
  r.pictures = {{5, 6, picture(1, 6), 0}, {20, 6, picture(2, 6), 0}};
  EXPECT_FALSE(core.check(r).has_value());
  std::swap(r.pictures[0], r.pictures[1]);
  EXPECT_TRUE(core.check(r).has_value());
  r.pictures = {{5, 6, picture(1, 6), 0}, {10, 6, picture(2, 6), 0}};
  EXPECT_TRUE(core.check(r).has_value());
  r.pictures = {};
  r.positions.resize(59);
  EXPECT_TRUE(core.check(r).has_value());
  const RequestId id = add(request(tokens(60, 1), 100));
  run();
  EXPECT_EQ(answer(id).token_ids.size(), 4u);
  EXPECT_EQ(answer(id).finish_reason, FinishReason::kLength);
}

}  // namespace
}  // namespace calandra::hashsim

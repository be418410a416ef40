// The engine on its thread: many clients at once, cancelling, leaving, draining, and a device that fails.
#include "engine/engine.h"

#include <fmt/format.h>
#include <gtest/gtest.h>

#include <atomic>
#include <sstream>

#include "backends/reference/reference.h"
#include "tests/hashsim/hash_model.h"

namespace calandra::hashsim {
namespace {

HashModelConfig model_config() {
  HashModelConfig config;
  config.step_cost.weight_bytes = config.draft_cost.weight_bytes = 1e6;
  return config;
}

// A model that can be made to stop, and to fail.
class Doubtful final : public CausalLM {
 public:
  explicit Doubtful(const HashModelConfig& config = model_config()) : model_(config) {}
  int64_t vocab_size() const override { return model_.vocab_size(); }
  int64_t hidden_size() const override { return model_.hidden_size(); }
  int64_t max_position_embeddings() const override { return model_.max_position_embeddings(); }
  DType dtype() const override { return model_.dtype(); }
  std::vector<CacheSpec> cache_specs() const override { return model_.cache_specs(); }
  Tensor forward(ExecContext& ctx, const Batch& batch, ModelCaches& caches) const override {
    for (standing = stands.load(); stands.load();) std::this_thread::yield();
    standing = false;
    if (slow) std::this_thread::sleep_for(std::chrono::milliseconds(1));
    if (clock != nullptr && !ctx.dry_run) *clock = *clock + 1;
    if (fails.load() && !ctx.dry_run) throw std::runtime_error("the device is gone");
    return model_.forward(ctx, batch, caches);
  }
  Tensor logits(ExecContext& ctx, const Tensor& hidden) const override { return model_.logits(ctx, hidden); }
  StepCost step_cost() const override { return model_.step_cost(); }
  const Drafter* drafter() const override { return model_.drafter(); }

  std::atomic<bool> stands = false, fails = false, slow = false;
  mutable std::atomic<bool> standing = false;
  std::atomic<double>* clock = nullptr;  // of which every step takes a second

 private:
  HashModel model_;
};

class EngineThread : public ::testing::Test {
 protected:
  static RunnerLimits limits() {
    return {.max_num_seqs = 4,
            .max_num_batched_tokens = 64,
            .max_model_len = 128,
            .num_state_slots = 16,
            .pending_capacity = 3,
            .max_cuts = 4,
            .hidden_ring = 16};
  }
  EngineOptions options() const {
    EngineOptions options;
    options.seed = 5;
    options.checkpoint_bytes = 1 << 20;
    options.speculative.emplace().num_speculative_tokens = 3;
    options.speculative->adaptive = false;  // the clock has no part in it
    return options;
  }
  static Request request(int32_t first, int32_t max_tokens, int32_t n = 1) {
    Request request;
    for (int32_t i = 0; i < 20; ++i) request.prompt_token_ids.push_back((first * 7 + i) % 64);
    request.params.max_tokens = max_tokens;
    request.params.temperature = 0.8f;
    request.params.seed = static_cast<uint64_t>(first);
    request.params.logprobs = 1;
    request.params.n = n;
    return request;
  }
  // The stream's answers by choice; checks that its events add up to them.
  static std::vector<Answer> read(Stream& stream, int32_t n) {
    std::vector<Answer> answers(static_cast<size_t>(n));
    std::vector<std::vector<int32_t>> tokens(static_cast<size_t>(n));
    while (auto event = stream.next()) {
      if (event->token >= 0) {
        tokens[event->choice].push_back(event->token);
        EXPECT_TRUE(event->logprobs.has_value());
      }
      if (event->answer) answers[event->choice] = std::move(*event->answer);
    }
    EXPECT_TRUE(stream.ended());
    for (size_t i = 0; i < answers.size(); ++i) EXPECT_TRUE(answers[i].error || answers[i].token_ids == tokens[i]);
    return answers;
  }
  static std::shared_ptr<Stream> submitted(Engine& engine, Request request) {
    auto result = engine.submit(std::move(request));
    if (const auto* error = std::get_if<RequestError>(&result)) ADD_FAILURE() << error->message;
    return std::get<std::shared_ptr<Stream>>(result);
  }

  Doubtful model_;
  ReferenceBackend backend_;
  ModelRunner runner_{model_, backend_, limits()};
};

TEST_F(EngineThread, ManyClientsGetTheAnswersOfQuietRuns) {
  std::vector<std::vector<Answer>> quiet;
  {
    EngineCore core(runner_, nullptr, {});
    std::vector<Request> requests;
    for (int32_t i = 0; i < 40; ++i) requests.push_back(request(i % 13, 5 + i % 30, 1 + i % 3));
    quiet = core.run(requests);
  }
  {
    Engine engine(runner_, nullptr, options());
    std::vector<std::thread> clients;
    for (int client = 0; client < 4; ++client)
      clients.emplace_back([&, client] {
        for (int32_t i = client; i < 40; i += 4) {
          const std::vector<Answer> answers =
              read(*submitted(engine, request(i % 13, 5 + i % 30, 1 + i % 3)), 1 + i % 3);
          for (size_t choice = 0; choice < answers.size(); ++choice)
            EXPECT_EQ(answers[choice].token_ids, quiet[i][choice].token_ids)
                << "request " << i << ", choice " << choice;
        }
      });
    for (std::thread& client : clients) client.join();
    EXPECT_TRUE(engine.drain(100));
    const EngineStats stats = engine.stats();
    EXPECT_EQ(stats.finished_length, 79);
    EXPECT_GT(stats.accepted_tokens, 0);
    EXPECT_GT(stats.prefix.hits, 0);
    EXPECT_TRUE(engine.healthy());
  }
  EXPECT_EQ(runner_.pages().free_pages(), runner_.pages().pages());
  EXPECT_EQ(runner_.slots().free_slots(), runner_.slots().slots());
}

TEST_F(EngineThread, CancelledAndAbandonedRequestsEnd) {
  Engine engine(runner_, nullptr, options());
  model_.stands = true;  // so that neither ends before it is told to
  auto cancelled = submitted(engine, request(1, 100)), abandoned = submitted(engine, request(2, 100));
  cancelled->cancel();
  abandoned.reset();
  model_.stands = false;
  const std::vector<Answer> answers = read(*cancelled, 1);
  EXPECT_LT(answers[0].token_ids.size(), 100u);
  EXPECT_EQ(answers[0].finish_reason, FinishReason::kCancelled);
  EXPECT_TRUE(engine.drain(100));
  EXPECT_EQ(engine.stats().finished_abort, 2);
}

TEST_F(EngineThread, DrainRefusesWhatComesAndEndsWhatStays) {
  Engine engine(runner_, nullptr, options());
  auto short_one = submitted(engine, request(1, 5));
  EXPECT_TRUE(engine.drain(100));
  EXPECT_EQ(read(*short_one, 1)[0].token_ids.size(), 5u);
  const auto refused = engine.submit(request(2, 5));
  ASSERT_TRUE(std::holds_alternative<RequestError>(refused));
  EXPECT_EQ(std::get<RequestError>(refused).status, 503);

  Engine other(runner_, nullptr, options());
  model_.stands = model_.slow = true;  // its hundred steps outlast the end of a wait of no seconds
  auto long_one = submitted(other, request(3, 100));
  std::thread draining([&] { EXPECT_FALSE(other.drain(0)); });
  while (std::holds_alternative<std::shared_ptr<Stream>>(other.submit(request(4, 1)))) std::this_thread::yield();
  model_.stands = false;
  draining.join();
  EXPECT_EQ(read(*long_one, 1)[0].finish_reason, FinishReason::kCancelled);
}

TEST_F(EngineThread, TheQueueIsBounded) {
  model_.stands = true;
  std::vector<std::shared_ptr<Stream>> streams;
  Engine engine(runner_, nullptr, options(), {.max_waiting = 3});
  for (int32_t i = 0; i < 3; ++i) streams.push_back(submitted(engine, request(i, 5)));
  const auto refused = engine.submit(request(4, 5));
  ASSERT_TRUE(std::holds_alternative<RequestError>(refused));
  EXPECT_EQ(std::get<RequestError>(refused).status, 429);
  model_.stands = false;
  for (const auto& stream : streams) EXPECT_EQ(read(*stream, 1)[0].token_ids.size(), 5u);
}

// Choices that run are no requests that wait.
TEST_F(EngineThread, TheQueueCountsRequests) {
  Engine engine(runner_, nullptr, options(), {.max_waiting = 3});
  auto first = submitted(engine, request(1, 100, 4));
  std::set<int32_t> seen;  // choices with a token of a step after the first
  std::map<int32_t, int> tokens;
  while (seen.size() < 4)
    if (const auto event = first->next(); ++tokens[event->choice] > 4) seen.insert(event->choice);
  model_.stands = true;
  std::vector<std::shared_ptr<Stream>> streams;
  for (int32_t i = 0; i < 3; ++i) streams.push_back(submitted(engine, request(i, 5)));
  EXPECT_TRUE(std::holds_alternative<RequestError>(engine.submit(request(4, 5))));
  model_.stands = false;
  for (const auto& stream : streams) EXPECT_EQ(read(*stream, 1)[0].token_ids.size(), 5u);
}

TEST_F(EngineThread, BadRequestsAreRefusedAtOnce) {
  Engine engine(runner_, nullptr, options());
  Request empty;
  const auto refused = engine.submit(empty);
  ASSERT_TRUE(std::holds_alternative<RequestError>(refused));
  EXPECT_EQ(std::get<RequestError>(refused).param, "prompt");
}

TEST_F(EngineThread, AFailingDeviceEndsEveryStreamOnce) {
  Engine engine(runner_, nullptr, options());
  model_.stands = true;
  auto one = submitted(engine, request(1, 50)), two = submitted(engine, request(2, 50, 2));
  model_.fails = true;
  model_.stands = false;
  const std::vector<Answer> answers = read(*one, 1);
  ASSERT_TRUE(answers[0].error.has_value());
  EXPECT_EQ(answers[0].error->status, 500);
  std::vector<int32_t> ends;
  while (auto event = two->next())
    if (event->answer) ends.push_back(event->choice);
  EXPECT_EQ(ends, (std::vector{0, 1}));
  two->cancel();                    // nobody looks any more
  EXPECT_FALSE(engine.drain(100));  // returns when the loop has noted its end
  EXPECT_FALSE(engine.healthy());
  EXPECT_TRUE(std::holds_alternative<RequestError>(engine.submit(request(3, 5))));
  EXPECT_FALSE(engine.drain(1));
}

// A request that breaks the engine while it is added: those that came with it end too.
TEST_F(EngineThread, AFailureBetweenStepsEndsEveryStream) {
  class Breaks final : public Grammar {
   public:
    bool mask(std::span<const int32_t>, std::span<uint32_t>) override { return true; }
    void accept(int32_t) override {}
    bool finished() const override { return false; }
    std::unique_ptr<Grammar> clone() const override { throw std::runtime_error("no memory"); }
  };
  Engine engine(runner_, nullptr, options());
  model_.stands = true;
  auto running = submitted(engine, request(1, 5));
  while (!model_.standing) std::this_thread::yield();  // the others are taken together after this step
  Request breaks = request(2, 5, 2);
  breaks.grammar = std::make_shared<Breaks>();
  std::vector<std::shared_ptr<Stream>> streams = {running, submitted(engine, request(3, 50)), submitted(engine, breaks),
                                                  submitted(engine, request(4, 50))};
  model_.stands = false;
  for (const auto& stream : streams) {
    bool failed = false;
    while (auto event = stream->next_for(20)) failed = failed || (event->answer && event->answer->error);
    EXPECT_TRUE(failed);
    EXPECT_TRUE(stream->ended());
  }
}

TEST_F(EngineThread, WorkAfterALongIdleTimeIsNotAStall) {
  std::atomic<double> now = 0;
  EngineOptions options;
  options.clock = [&] { return now.load(); };
  Engine engine(runner_, nullptr, options, {.stall_seconds = 60});
  for (int i = 0; i < 50; ++i) {
    now = now + 1000;
    auto stream = submitted(engine, request(i, 2));
    EXPECT_TRUE(engine.healthy());
    read(*stream, 1);
    while (engine.stats().finished_length <= i) std::this_thread::yield();  // idle again
  }
}

TEST_F(EngineThread, AStepThatDoesNotEndIsNotHealthy) {
  std::atomic<double> now = 0;
  EngineOptions options;
  options.clock = [&] { return now.load(); };
  Engine engine(runner_, nullptr, options, {.stall_seconds = 60});
  model_.stands = true;
  auto stream = submitted(engine, request(1, 5));
  EXPECT_TRUE(engine.healthy());
  now = 100;
  EXPECT_FALSE(engine.healthy());
  model_.stands = false;
  read(*stream, 1);
  EXPECT_TRUE(engine.drain(100));
  EXPECT_TRUE(engine.healthy());
}

// Lines of the log that say how fast tokens come, of an engine that `clients` use.
std::vector<std::string> stats_lines(ModelRunner& runner, EngineOptions options, Doubtful& model, double every,
                                     const std::function<void(Engine&)>& clients) {
  std::atomic<double> now = 0;
  model.clock = &now;
  options.clock = [&] { return now.load(); };
  ::testing::internal::CaptureStderr();
  {
    Engine engine(runner, nullptr, options, {.stats_seconds = every});
    clients(engine);
    EXPECT_TRUE(engine.drain(100));
  }
  model.clock = nullptr;
  std::istringstream log(::testing::internal::GetCapturedStderr());
  std::vector<std::string> lines;
  for (std::string line; std::getline(log, line);) {
    const size_t begin = line.find("Avg prompt");
    if (begin != std::string::npos) lines.push_back(line.substr(begin));
  }
  return lines;
}

TEST_F(EngineThread, EachPeriodWithTokensHasALineOfStatistics) {
  EngineOptions plain = options();
  plain.speculative.reset();
  const auto one_by_one = [](Engine& engine) {
    read(*submitted(engine, request(1, 25)), 1);  // a token in each second
    read(*submitted(engine, request(1, 8)), 1);
  };
  const auto line = [&](double prompt, int pages, double hits) {
    return fmt::format(
        "Avg prompt throughput: {:.1f} tokens/s, Avg generation throughput: 1.0 tokens/s, Running: 1 reqs, Waiting: 0 "
        "reqs, KV cache usage: {:.1f}%, Prefix cache hit rate: {:.1f}%",
        prompt, 100.0 * pages / static_cast<double>(runner_.pages().pages()), hits);
  };
  // After 10, 20 and 30 of 33 seconds; the second request finds all but the last of its 20 tokens.
  EXPECT_EQ(stats_lines(runner_, plain, model_, 10, one_by_one),
            (std::vector{line(2, 2, 0), line(0, 3, 0), line(2, 2, 100.0 * 19 / 40)}));
  EXPECT_EQ(stats_lines(runner_, plain, model_, 11, one_by_one).size(), 3u);
  EXPECT_EQ(stats_lines(runner_, plain, model_, 40, one_by_one).size(), 0u);
  EXPECT_EQ(stats_lines(runner_, plain, model_, 0, one_by_one).size(), 0u);
}

TEST_F(EngineThread, TheLineSaysWhoWaitsAndWhichDraftsWereAccepted) {
  HashModelConfig config = model_config();
  config.agreement = 1;  // all
  Doubtful model(config);
  ModelRunner runner(model, backend_, limits());
  const std::vector<std::string> lines = stats_lines(runner, options(), model, 10, [&](Engine& engine) {
    model.stands = true;
    std::vector<std::shared_ptr<Stream>> streams;
    for (int32_t i = 0; i < 6; ++i) streams.push_back(submitted(engine, request(i, 100)));
    model.stands = false;
    for (const auto& stream : streams) read(*stream, 1);
  });
  ASSERT_GT(lines.size(), 2u);
  EXPECT_NE(lines[0].find("Running: 4 reqs, Waiting: 2 reqs"), std::string::npos) << lines[0];
  const std::string drafts = ", Mean acceptance length: 4.00, Per-position acceptance rate: 1.000 1.000 1.000";
  EXPECT_TRUE(lines[0].ends_with(drafts)) << lines[0];
}

TEST_F(EngineThread, WhoeverWatchesIsToldOnceThatItStandsStill) {
  std::atomic<double> now = 0;
  std::atomic<int> told = 0;
  EngineOptions options;
  options.clock = [&] { return now.load(); };
  EngineLoopOptions loop{.stall_seconds = 0.01, .stall_grace_seconds = 1000};  // the first also says how often it looks
  loop.on_stalled = [&] { ++told; };
  Engine engine(runner_, nullptr, options, loop);
  const auto stalled = [&](double seconds) {
    model_.stands = true;
    auto stream = submitted(engine, request(1, 5));
    while (!model_.standing) std::this_thread::yield();
    now = now + seconds;
    EXPECT_FALSE(engine.healthy());
    std::this_thread::sleep_for(std::chrono::milliseconds(50));  // it may look meanwhile
    return stream;
  };
  auto within_grace = stalled(900);
  EXPECT_EQ(told, 0);
  model_.stands = false;
  read(*within_grace, 1);
  while (!engine.healthy()) std::this_thread::yield();
  auto for_good = stalled(1100);
  while (told == 0) std::this_thread::yield();
  model_.stands = false;
  read(*for_good, 1);
  EXPECT_TRUE(engine.drain(100));
  EXPECT_EQ(told, 1);

  Engine unwatched(runner_, nullptr, options, {.stall_seconds = 0});
  model_.stands = true;
  auto stream = submitted(unwatched, request(1, 5));
  now = now + 1e9;
  EXPECT_TRUE(unwatched.healthy());
  model_.stands = false;
  read(*stream, 1);
}

TEST_F(EngineThread, OneThatStandsStillCanBeGivenUp) {
  Engine engine(runner_, nullptr, options());
  model_.stands = true;
  auto running = submitted(engine, request(1, 50, 2));
  while (!model_.standing) std::this_thread::yield();
  auto waiting = submitted(engine, request(2, 50));
  engine.give_up({503, "gone", "", "given up"});
  engine.give_up({500, "again", "", "once more"});
  for (const Answer& answer : read(*running, 2)) EXPECT_EQ(answer.error.value().code, "gone");
  EXPECT_EQ(read(*waiting, 1)[0].error.value().message, "given up");
  const auto refused = engine.submit(request(3, 5));
  ASSERT_TRUE(std::holds_alternative<RequestError>(refused));
  EXPECT_EQ(std::get<RequestError>(refused).status, 503);
  EXPECT_FALSE(engine.healthy());
  EXPECT_FALSE(engine.pause({503, "", "", ""}, true));
  EXPECT_FALSE(engine.between_steps([](EngineCore&) { FAIL(); }));
  EXPECT_FALSE(engine.stop(0.01));
  model_.stands = false;  // the tokens of its step are nobody's
  EXPECT_TRUE(engine.stop(100));
  EXPECT_TRUE(running->ended());
}

TEST_F(EngineThread, APauseEndsOrAwaitsWhatRuns) {
  Engine engine(runner_, nullptr, options());
  const std::vector<Answer> before = read(*submitted(engine, request(1, 30)), 1);
  const RequestError refusal{503, "asleep", "", "asleep"};
  for (const bool abort : {true, false}) {
    model_.stands = true;
    auto running = submitted(engine, request(1, 30));
    std::thread pausing([&] { EXPECT_TRUE(engine.pause(refusal, abort)); });
    while (std::holds_alternative<std::shared_ptr<Stream>>(engine.submit(request(4, 1)))) std::this_thread::yield();
    model_.stands = false;
    pausing.join();
    const Answer answer = read(*running, 1)[0];
    EXPECT_EQ(answer.finish_reason, abort ? FinishReason::kCancelled : FinishReason::kLength);
    const auto refused = engine.submit(request(2, 5));
    ASSERT_TRUE(std::holds_alternative<RequestError>(refused));
    EXPECT_EQ(std::get<RequestError>(refused).code, "asleep");
    EXPECT_GT(engine.stats().checkpoints, 0);
    EXPECT_TRUE(engine.between_steps([](EngineCore& core) { core.give_back_memory(); }));
    while (engine.stats().checkpoints > 0) std::this_thread::yield();
    EXPECT_TRUE(engine.between_steps([](EngineCore& core) { core.take_back_memory(); }));
    engine.resume();
    EXPECT_EQ(read(*submitted(engine, request(1, 30)), 1)[0].token_ids, before[0].token_ids);
  }
  EXPECT_TRUE(engine.drain(100));
}

}  // namespace
}  // namespace calandra::hashsim

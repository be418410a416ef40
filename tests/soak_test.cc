// Random mixed requests from several clients through one engine: complete, cancelled, abandoned, too late, refused.
// Answers that complete are those of the request alone; whenever the clients pause, nothing is held but checkpoints and
// pictures' rows within their limits; at the end, with the caches cleared, not a page, slot or byte, and memory has not
// grown.
//
// CALANDRA_SOAK_MINUTES=30 runs it for so long; otherwise a few hundred requests.
#include <fmt/format.h>
#include <gtest/gtest.h>
#include <malloc.h>
#include <unistd.h>

#include <atomic>
#include <chrono>
#include <cstdlib>
#include <fstream>
#include <thread>

#include "engine/engine.h"
#include "tests/losslessness_session.h"
#include "tests/model_under_test.h"

namespace calandra::lossless {
namespace {

double resident_mib() {
  malloc_trim(0);
  int64_t all = 0, resident = 0;
  std::ifstream("/proc/self/statm") >> all >> resident;
  return static_cast<double>(resident * sysconf(_SC_PAGESIZE)) / (1 << 20);
}

struct Counts {
  std::atomic<int64_t> submitted = 0, compared = 0, cancelled = 0, abandoned = 0, late = 0, refused = 0, pooled = 0;
  std::atomic<int64_t> choices = 0, differences = 0;
  std::mutex mutex;
  std::string first;  // difference

  void differs(const std::string& what) {
    ++differences;
    const std::lock_guard lock(mutex);
    if (first.empty()) first = what;
  }
};

class Client {
 public:
  Client(Engine& engine, Subject& subject, Counts& counts, uint64_t seed)
      : engine_(engine), subject_(subject), counts_(counts), dice_(seed) {}

  void ask_one() {
    const std::vector<AskedRequest>& requests = requests_of(subject_);
    const AskedRequest& asked = requests[static_cast<size_t>(dice_.in(0, std::ssize(requests) - 1))];
    Request request = copy_of(asked.request);
    const int64_t fate = dice_.in(0, 99);
    if (fate < 4) {
      request.prompt_token_ids.push_back(static_cast<int32_t>(subject_.model->vocab_size()));
      if (std::holds_alternative<std::shared_ptr<Stream>>(engine_.submit(std::move(request))))
        counts_.differs("a token that does not exist was taken");
      ++counts_.refused;
      return;
    }
    if (fate < 8) {
      const Request all = std::move(request);
      request = Request();
      request.pooling = Pooling::kMean;
      for (size_t i = 0; i < std::min<size_t>(all.prompt_token_ids.size(), 16); ++i)
        request.prompt_token_ids.push_back(all.prompt_token_ids[i]);
    } else if (fate < 12) {
      request.deadline = 1e-9;
    }
    ++counts_.submitted;
    counts_.choices += request.params.n;
    auto submitted = engine_.submit(std::move(request));
    if (const auto* error = std::get_if<RequestError>(&submitted)) return counts_.differs(error->message);
    const std::shared_ptr<Stream> stream = std::get<std::shared_ptr<Stream>>(std::move(submitted));
    if (fate >= 12 && fate < 18) {
      ++counts_.abandoned;
      if (dice_.chance(50)) stream->next();
      return;
    }
    int64_t left = fate >= 18 && fate < 35 ? dice_.in(0, 6) : -1;  // events until it is cancelled
    if (left == 0) stream->cancel();
    while (const auto event = stream->next()) {
      if (--left == 0) stream->cancel();
      if (event->answer) judge(asked, fate, event->choice, *event->answer);
    }
    if (fate >= 18 && fate < 35) ++counts_.cancelled;
  }

 private:
  void judge(const AskedRequest& asked, int64_t fate, int32_t choice, const Answer& answer) {
    if (fate < 8) {
      ++counts_.pooled;
      if (std::ssize(answer.embedding) != subject_.model->hidden_size()) counts_.differs("no embedding");
    } else if (fate < 12) {
      ++counts_.late;
      if (!answer.error || answer.error->status != 504) counts_.differs("not too late");
    } else if (fate >= 35) {
      ++counts_.compared;
      const std::string what = difference(answer, asked.plain[static_cast<size_t>(choice)]);
      if (!what.empty()) counts_.differs(asked.name + ": " + what);
    }
  }

  Engine& engine_;
  Subject& subject_;
  Counts& counts_;
  Dice dice_;
};

class Soak : public ::testing::TestWithParam<std::string> {};

TEST_P(Soak, LedgersReturnToIdleAndMemoryStaysFlat) {
  Subject& subject = *lossless::subject(GetParam());
  requests_of(subject);
  const char* minutes = std::getenv("CALANDRA_SOAK_MINUTES");
  const auto start = std::chrono::steady_clock::now();
  const auto end = start + std::chrono::duration<double>(minutes != nullptr ? 60 * std::atof(minutes) : 0);

  RunnerLimits limits{.max_num_seqs = 6,
                      .max_num_batched_tokens = 64,
                      .max_model_len = 160,
                      .num_blocks = 14,
                      .num_state_slots = 16,
                      .pending_capacity = 3,
                      .max_cuts = 4,
                      .hidden_ring = 32};
  if (testing::kHostile) limits.block_size = 1, limits.num_blocks *= 16;
  ModelRunner runner(*subject.model, *subject.backend, limits);
  EngineOptions options{.eos_token_ids = subject.config.eos_token_ids, .seed = 1, .thinking = thinking_of(subject)};
  options.scheduler.checkpoint_interval = 16;
  options.checkpoint_bytes = options.host_checkpoint_bytes = 8 << 20;
  options.encoder_cache_bytes = 64 << 10;
  options.speculative = SpeculativeConfig{.num_speculative_tokens = 3};
  auto engine = std::make_unique<Engine>(runner, subject.text(), options, EngineLoopOptions{.stats_seconds = 0});

  Counts counts;
  struct Sample {
    int64_t requests;
    double mib;
  };
  std::vector<Sample> samples;
  uint64_t seed = 1;
  do {
    std::vector<std::thread> clients;
    for (int i = 0; i < 4; ++i)
      clients.emplace_back([&, client = Client(*engine, subject, counts, seed++)]() mutable {
        for (int n = 0; n < (minutes != nullptr ? 250 : subject.demo ? 15 : 60); ++n) client.ask_one();
      });
    for (std::thread& client : clients) client.join();
    // What was abandoned ends within a step after the engine has seen it.
    const auto ended = [](const EngineStats& s) {
      return s.finished_stop + s.finished_length + s.finished_abort + s.finished_error;
    };
    EngineStats stats = engine->stats();
    for (int wait = 0; wait < 3000 && ended(stats) < counts.choices; ++wait) {
      std::this_thread::sleep_for(std::chrono::milliseconds(10));
      stats = engine->stats();
    }
    ASSERT_EQ(ended(stats), counts.choices);
    EXPECT_EQ(stats.requests_running + stats.requests_waiting, 0);
    EXPECT_EQ(stats.pages_used, 0);
    EXPECT_LE(stats.checkpoint_bytes, options.checkpoint_bytes);
    EXPECT_LE(stats.host_checkpoint_bytes, options.host_checkpoint_bytes);
    EXPECT_LE(stats.encoder_bytes, options.encoder_cache_bytes);
    samples.push_back({counts.submitted, resident_mib()});
  } while (std::chrono::steady_clock::now() < end && counts.differences == 0);

  const EngineStats stats = engine->stats();
  EXPECT_GT(stats.checkpoint_bytes, 0);
  EXPECT_TRUE(engine->between_steps([&](EngineCore& core) {
    core.cache()->clear();
    if (core.encoder_cache() != nullptr) core.encoder_cache()->clear();
    const EngineStats& left = core.stats();
    EXPECT_EQ(left.checkpoints, 0);
    EXPECT_EQ(left.checkpoint_bytes, 0);
    EXPECT_EQ(left.host_checkpoint_bytes, 0);
    EXPECT_EQ(left.encoder_bytes, 0);
    EXPECT_EQ(runner.pages().free_pages(), runner.pages().pages());
    EXPECT_EQ(runner.slots().free_slots(), runner.slots().slots());
  }));
  EXPECT_TRUE(engine->drain(30));
  engine.reset();
  EXPECT_EQ(runner.pages().free_pages(), runner.pages().pages());
  EXPECT_EQ(runner.slots().free_slots(), runner.slots().slots());
  EXPECT_EQ(counts.differences, 0) << counts.first;

  const Sample warm = samples[samples.size() / 4], last = samples.back();
  if (last.requests - warm.requests >= 5000) {  // else it says nothing
    const double growth = (last.mib - warm.mib) / static_cast<double>(last.requests - warm.requests) * 10'000;
    EXPECT_LT(growth, 1) << "MiB per 10,000 requests";
  }
  fmt::print(
      "{}: {:.1f} min, {} requests: {} answers compared, {} differ, {} cancelled, {} abandoned, {} late, {} refused, "
      "{} "
      "pooled; {} steps, {} tokens, {} preemptions, {} hits, {} evictions, {} restores, {} of {} drafts accepted; "
      "resident {:.1f} MiB after {} requests, {:.1f} MiB after {}\n",
      GetParam(), std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count() / 60,
      counts.submitted.load(), counts.compared.load(), counts.differences.load(), counts.cancelled.load(),
      counts.abandoned.load(), counts.late.load(), counts.refused.load(), counts.pooled.load(), stats.steps,
      stats.generation_tokens, stats.preemptions, stats.prefix.hits, stats.prefix.evictions, stats.prefix.restores,
      stats.accepted_tokens, stats.draft_tokens, warm.mib, warm.requests, last.mib, last.requests);
  RecordProperty("requests", static_cast<int>(counts.submitted));
}

INSTANTIATE_TEST_SUITE_P(Models, Soak,
                         ::testing::Values("small_qwen3_5", "small_bailing", "demo-qwen3_5", "demo-bailing"),
                         test_name);

}  // namespace
}  // namespace calandra::lossless

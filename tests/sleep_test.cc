// A server's model asleep (apps/api/sleeper.h): its memory is the system's meanwhile, and answers after it are those
// before it. On a host whose memory cannot be touched while it is away, and on a device where there is one, alone.
#include <fmt/format.h>
#include <gtest/gtest.h>
#include <sys/mman.h>

#include <atomic>
#include <future>

#include "apps/api/sleeper.h"
#include "apps/engine_setup.h"
#include "backends/cuda/plugin_loader.h"
#include "backends/reference/reference.h"
#include "base/error.h"
#include "tests/device_free_memory.h"

namespace calandra::apps {
namespace {

using testing::device_free_memory;

// As a device's: memory that is away cannot be touched, and there may be none to take back.
class Reluctant final : public ReferenceBackend {
 public:
  void give_back(const Tensor& memory) override {
    ReferenceBackend::give_back(memory);
    if (!memory.empty()) CHECK_EQ(mprotect(memory.data(), memory.bytes(), PROT_NONE), 0);
  }
  void take_back(const Tensor& memory) override {
    if (left == 0) throw LoadError("out of memory");
    --left;
    if (!memory.empty()) CHECK_EQ(mprotect(memory.data(), memory.bytes(), PROT_READ | PROT_WRITE), 0);
  }
  std::atomic<int> left = 1000;  // calls that succeed
};

Options read_flags(const std::string& backend) {
  std::vector<std::string> words = {"calandra",
                                    "serve",
                                    "--enable-admin-endpoints",
                                    "--backend=" + backend,
                                    "--max-num-seqs=4",
                                    "--max-model-len=1024",
                                    "--speculative-config={\"method\": \"mtp\", \"num_speculative_tokens\": 2}",
                                    CALANDRA_SOURCE_DIR "/demo/demo-qwen3_5"};
  std::vector<char*> arguments;
  for (std::string& word : words) arguments.push_back(word.data());
  return *parse_command_line(static_cast<int>(arguments.size()), arguments.data());
}

// Token ids and logprobs to the bit.
using Answers = std::vector<std::pair<std::vector<int32_t>, std::vector<float>>>;

class Served {
 public:
  // `sentences` of each prompt.
  explicit Served(const std::string& backend, int sentences = 40, Backend* instead = nullptr)
      : sentences_(sentences),
        options_(read_flags(backend)),
        loaded_(load_for_engine(options_, /*vision=*/true)),
        setup_(engine_setup(loaded_, options_, {.usual = {4, 1024}, .least = {1, 1}, .prefix_caching = true})),
        runner_(*loaded_.model, instead != nullptr ? *instead : *loaded_.backend, setup_.limits),
        engine_(runner_, nullptr, setup_.options, {.stats_seconds = 0}),
        sleeper_(engine_, loaded_, options_.model) {
    engine_.between_steps([](EngineCore& core) { core.warm_up(); });
  }

  // One after the other, so that their steps are the same each time.
  Answers answers() {
    Answers answers;
    for (int i = 0; i < 3; ++i) {
      Request request;
      for (int sentence = 0; sentence < sentences_; ++sentence)
        for (const int32_t id : loaded_.tokenizer->encode(fmt::format("Once upon a time {} larks sang. ", i)))
          request.prompt_token_ids.push_back(id);
      request.params.seed = i;
      request.params.temperature = i % 2 == 0 ? 0 : 1;
      request.params.max_tokens = 12;
      request.params.ignore_eos = true;
      request.params.logprobs = 3;
      auto submitted = engine_.submit(std::move(request));
      auto& stream = std::get<std::shared_ptr<Stream>>(submitted);
      while (auto event = stream->next())
        if (event->answer) {
          EXPECT_FALSE(event->answer->error);
          auto& [ids, logprobs] = answers.emplace_back();
          ids = event->answer->token_ids;
          for (const ops::TokenLogprobs& token : event->answer->logprobs) {
            logprobs.push_back(token.logprob);
            for (const ops::TokenLogprob& top : token.top) logprobs.push_back(top.logprob);
          }
        }
    }
    EXPECT_EQ(answers.size(), 3u);
    return answers;
  }

  // On threads that end, as what they keep for packing goes with them.
  std::optional<RequestError> sleep(int level) {
    return std::async(std::launch::async, [&] { return sleeper_.sleep(level, true); }).get();
  }
  std::optional<RequestError> wake_up(bool weights = true, bool caches = true) {
    return std::async(std::launch::async, [&] { return sleeper_.wake_up(weights, caches); }).get();
  }
  bool is_sleeping() const { return sleeper_.is_sleeping(); }
  int64_t cache_bytes() const {
    const MemoryPlan& plan = runner_.memory();
    return plan.pages * plan.page_bytes + plan.slots * plan.slot_bytes + plan.workspace_bytes;
  }
  int64_t weight_bytes() const { return loaded_.store->summary().packed_bytes; }
  const ModelRunner& runner() const { return runner_; }
  Backend& backend() { return *loaded_.backend; }

 private:
  const int sentences_;
  const Options options_;
  LoadedModel loaded_;
  EngineSetup setup_;
  ModelRunner runner_;
  Engine engine_;
  Sleeper sleeper_;
};

TEST(Sleep, CachesThatCannotBeTakenBackLeaveItAsleep) {
  Reluctant reluctant;
  Served served("reference", 4, &reluctant);
  const Answers before = served.answers();
  for (const int left : {0, 5}) {
    EXPECT_FALSE(served.sleep(1));
    reluctant.left = left;
    for (int tries = 0; tries < 2; ++tries) {
      const auto error = served.wake_up();
      ASSERT_TRUE(error);
      EXPECT_EQ(error->status, 500);
      EXPECT_TRUE(served.is_sleeping());
      reluctant.left = left;
    }
    reluctant.left = 1000;
    EXPECT_FALSE(served.wake_up(false, true));
    EXPECT_TRUE(served.is_sleeping());
    EXPECT_FALSE(served.wake_up(true, false));
    EXPECT_FALSE(served.is_sleeping());
    EXPECT_EQ(served.answers(), before);
  }
}

class SleepOnDevice : public ::testing::Test {
 protected:
  void SetUp() override {
    const OpenedCuda opened = open_cuda_backend({});
    if (opened.backend == nullptr) GTEST_SKIP() << "skipped: " << opened.why_not;
  }
};

TEST_F(SleepOnDevice, MemoryGoesBackAndTheAnswersStay) {
  Served served("cuda");
  ASSERT_TRUE(served.backend().records());
  const Answers before = served.answers();
  EXPECT_GT(served.runner().recorded_steps(), 0);
  std::vector<size_t> free;  // awake again
  for (const int level : {1, 2, 1, 2}) {
    const auto awake = static_cast<int64_t>(device_free_memory());
    ASSERT_FALSE(served.sleep(level));
    const int64_t given = static_cast<int64_t>(device_free_memory()) - awake;
    fmt::print("level {}: {:.1f} MB free awake, {:.1f} MB more asleep; caches {:.1f} MB, weights {:.1f} MB\n", level,
               static_cast<double>(awake) * 1e-6, static_cast<double>(given) * 1e-6,
               static_cast<double>(served.cache_bytes()) * 1e-6, static_cast<double>(served.weight_bytes()) * 1e-6);
    EXPECT_GE(given, served.cache_bytes() + (level > 1 ? served.weight_bytes() : 0));
    ASSERT_FALSE(served.sleep(level));  // once more changes nothing
    EXPECT_EQ(static_cast<int64_t>(device_free_memory()) - awake, given);
    ASSERT_FALSE(served.wake_up());
    EXPECT_FALSE(served.is_sleeping());
    free.push_back(device_free_memory());
    EXPECT_EQ(served.answers(), before) << level;
  }
  // What the driver keeps to itself the first time, it has the second time.
  EXPECT_EQ(free[2], free[1]);
  EXPECT_EQ(free[3], free[1]);
}

TEST_F(SleepOnDevice, WithoutMemoryItStaysAsleep) {
  Served served("cuda");
  const Answers before = served.answers();
  for (const int level : {1, 2}) {
    ASSERT_FALSE(served.sleep(level));
    std::vector<Buffer> others;  // all there is
    for (size_t piece = size_t{64} << 30; piece >= size_t{2} << 20; piece /= 2) try {
        while (true) others.push_back(served.backend().allocate(piece));
      } catch (const LoadError&) {
      }
    others.pop_back();  // a part of the caches could be taken back
    const size_t free = device_free_memory();
    ASSERT_TRUE(served.wake_up());
    EXPECT_TRUE(served.is_sleeping());
    const size_t tried = device_free_memory();  // weights that could be read stay
    EXPECT_TRUE(level > 1 ? tried <= free : tried == free);
    ASSERT_TRUE(served.wake_up());
    EXPECT_TRUE(served.is_sleeping());
    EXPECT_EQ(device_free_memory(), tried);
    others.clear();
    ASSERT_FALSE(served.wake_up());
    EXPECT_EQ(served.answers(), before) << level;
  }
}

TEST_F(SleepOnDevice, ItEndsAsleep) {
  Served served("cuda");
  EXPECT_FALSE(served.sleep(2));
}

}  // namespace
}  // namespace calandra::apps

// An agent at work: conversations of 50 turns, each prompt all that came before. How much of it is computed again, in
// rows and in simulated seconds; beside it the same trace by vLLM's rule, states only at the borders of aligned blocks.
#include <fmt/format.h>
#include <gtest/gtest.h>

#include <algorithm>

#include "backends/reference/reference.h"
#include "engine/engine_core.h"
#include "tests/hashsim/hash_model.h"
#include "tests/hashsim/sim_world.h"

namespace calandra::hashsim {
namespace {

constexpr int64_t kBudget = 2048;  // rows of a step
constexpr int64_t kTurns = 50;

// About Qwen3.5-4B on one H200.
HashModelConfig model_config() {
  HashModelConfig config;
  config.blocks = 1;
  config.mtp_layers = 0;
  config.step_cost.weight_bytes = 8.4e9;
  config.step_cost.state_bytes = 1e8;
  config.step_cost.kv_bytes_per_key = 32768;
  config.step_cost.flops_per_row = 8e9;
  config.step_cost.flops_per_row_and_key = 131072;
  config.step_cost.flops_per_logit_row = 1.3e9;
  return config;
}
constexpr HardwareSpeed kSpeed{4e12, 4e14};

// The time of a prompt whose first `cached` tokens need not be run.
double prefill_seconds(const StepCost& cost, int64_t cached, int64_t prompt) {
  double seconds = 0;
  for (int64_t begin = cached; begin < prompt;) {
    const int64_t rows = std::min(kBudget, prompt - begin);
    StepShape shape;
    shape.add(rows, begin + rows / 2, begin + rows == prompt ? 1 : 0);
    seconds += roofline_seconds(cost, kSpeed, shape);
    begin += rows;
  }
  return seconds;
}

struct TraceCounts {
  int64_t prompt = 0, reusable = 0, cached = 0;               // tokens of all prompts
  int64_t answers = 0, answers_cached = 0;                    // answers that a later prompt repeats
  int64_t aligned_cached = 0;                                 // by vLLM's rule
  int64_t whole = 0;                                          // of the conversations in the end
  double seconds = 0, aligned_seconds = 0, cold_seconds = 0;  // from arrival to first token, or of the prefill
};

class AgentTrace : public ::testing::Test {
 protected:
  AgentTrace() {
    model_.before_forward([this](Batch& batch) {
      StepShape shape;
      const auto *starts = batch.query_start.as<int32_t>(), *lengths = batch.seq_len.as<int32_t>();
      for (int64_t b = 0; b < batch.sequences(); ++b) {
        const int64_t rows = starts[b + 1] - starts[b];
        shape.add(rows, lengths[b] - rows / 2, 1);
      }
      now_ += roofline_seconds(model_.step_cost(), kSpeed, shape);
    });
  }

  EngineCore& start(int64_t sequences, int64_t longest, int64_t budget, bool caches) {
    core_.reset();
    runner_ = std::make_unique<ModelRunner>(model_, backend_,
                                            RunnerLimits{.max_num_seqs = sequences,
                                                         .max_num_batched_tokens = budget,
                                                         .max_model_len = longest,
                                                         .num_blocks = 4 * sequences * longest / 16,
                                                         .num_state_slots = 600,
                                                         .max_cuts = 16});
    EngineOptions options;
    options.seed = 1;
    options.clock = [this] { return now_; };
    if (caches) options.checkpoint_bytes = int64_t{1} << 40;
    core_ = std::make_unique<EngineCore>(*runner_, nullptr, options);
    return *core_;
  }

  static std::vector<int32_t> draw_tokens(Draw& draw, int64_t count) {
    std::vector<int32_t> ids(static_cast<size_t>(count));
    for (int32_t& id : ids) id = static_cast<int32_t>(draw.in(0, 63));
    return ids;
  }
  static void append(std::vector<int32_t>& to, const std::vector<int32_t>& ids) {
    to.insert(to.end(), ids.begin(), ids.end());
  }

  struct Conversation {
    std::vector<int32_t> tokens;
    std::vector<int64_t> ends;
    int64_t turn = 0, prompt = 0, known = 0;  // known: tokens that were there before the turn's own
    double arrival = 0;
    bool waiting = false;  // for its answer
  };

  // All conversations go on at the same time and begin with the same system prompt.
  TraceCounts run(int64_t conversations, int64_t system, int64_t least, int64_t most, int64_t block) {
    start(conversations, 65536, kBudget, true);
    Draw draw(7);
    const std::vector<int32_t> begin = draw_tokens(draw, system);
    std::vector<Conversation> all(static_cast<size_t>(conversations));
    for (Conversation& c : all) {
      c.tokens = begin;
      c.ends = {system};
    }
    TraceCounts counts;
    bool first = true;
    while (true) {
      for (Conversation& c : all) {
        if (c.waiting || c.turn == kTurns) continue;
        ask(c, draw, first ? 0 : std::ssize(c.tokens), least, most, block, counts);
        first = false;
      }
      if (!core_->step()) break;
    }
    EXPECT_TRUE(core_->idle());
    for (const Conversation& c : all) {
      EXPECT_EQ(c.turn, kTurns);
      counts.whole += std::ssize(c.tokens);
    }
    return counts;
  }

  void ask(Conversation& c, Draw& draw, int64_t reusable, int64_t least, int64_t most, int64_t block,
           TraceCounts& counts) {
    const int64_t answer_begin = c.turn > 0 ? c.prompt : -1;  // of the last answer
    c.known = reusable;
    append(c.tokens, draw_tokens(draw, draw.in(least, most)));
    c.prompt = std::ssize(c.tokens);
    c.arrival = now_;
    c.waiting = true;
    ++c.turn;
    Request request;
    request.prompt_token_ids = c.tokens;
    request.checkpoint_hints = c.ends;
    request.params.temperature = 0;
    request.params.max_tokens = static_cast<int32_t>(draw.in(20, 150));
    c.ends.push_back(c.prompt);
    bool told = false;
    auto added =
        core_->add(std::move(request), [this, &c, &counts, answer_begin, block, told](const TokenEvent& event) mutable {
          if (!told) counts.seconds += now_ - c.arrival;
          told = true;
          if (!event.finished) return true;
          const int64_t cached = event.answer.cached_tokens;
          EXPECT_LE(cached, c.known);
          counts.prompt += c.prompt;
          counts.reusable += c.known;
          counts.cached += cached;
          if (answer_begin >= 0) {
            counts.answers += c.known - answer_begin;
            counts.answers_cached += std::max<int64_t>(0, cached - answer_begin);
          }
          // Every border that was passed counts, which is more than vLLM keeps.
          const int64_t aligned = c.known / block * block;
          counts.aligned_cached += aligned;
          counts.aligned_seconds += prefill_seconds(model_.step_cost(), aligned, c.prompt);
          counts.cold_seconds += prefill_seconds(model_.step_cost(), 0, c.prompt);
          append(c.tokens, event.answer.token_ids);
          c.ends.push_back(std::ssize(c.tokens));
          c.waiting = false;
          return true;
        });
    ASSERT_TRUE(std::holds_alternative<RequestId>(added)) << std::get<RequestError>(added).message;
  }

  void report(const std::string& name, const TraceCounts& n, int64_t block) {
    const auto part = [](int64_t a, int64_t b) { return 100 * static_cast<double>(a) / static_cast<double>(b); };
    fmt::print(
        "{}: {} tokens in all; {} prompt tokens in {} turns, {} of them reusable\n"
        "  here            {:6.2f} % of the reusable ones reused, {:6.2f} % of those of answers; {:8d} rows of prompts "
        "run; {:8.3f} s to first tokens\n"
        "  blocks of {:<5} {:6.2f} %                                                   {:8d}                      "
        "{:8.3f} s\n"
        "  no cache                                                                    {:8d}                      "
        "{:8.3f} s\n",
        name, n.whole, n.prompt, core_->stats().finished_length, n.reusable, part(n.cached, n.reusable),
        part(n.answers_cached, n.answers), n.prompt - n.cached, n.seconds, block, part(n.aligned_cached, n.reusable),
        n.prompt - n.aligned_cached, n.aligned_seconds, n.prompt, n.cold_seconds);
    RecordProperty("tokens_in_all", std::to_string(n.whole));
    RecordProperty("prompt_tokens", std::to_string(n.prompt));
    RecordProperty("reusable_tokens", std::to_string(n.reusable));
    RecordProperty("reused_tokens", std::to_string(n.cached));
    RecordProperty("reused_tokens_aligned_blocks", std::to_string(n.aligned_cached));
    RecordProperty("answer_tokens", std::to_string(n.answers));
    RecordProperty("answer_tokens_reused", std::to_string(n.answers_cached));
    RecordProperty("block", std::to_string(block));
  }

  HashModel model_{model_config()};
  ReferenceBackend backend_;
  double now_ = 1;
  std::unique_ptr<ModelRunner> runner_;
  std::unique_ptr<EngineCore> core_;
};

void expect_reuse(const TraceCounts& counts) {
  EXPECT_GE(static_cast<double>(counts.cached), 0.95 * static_cast<double>(counts.reusable));
  EXPECT_GE(static_cast<double>(counts.answers_cached), 0.95 * static_cast<double>(counts.answers));
  EXPECT_GE(counts.whole, 20'000);
  EXPECT_LE(counts.whole, 60'000);
}

// 528: the block of 4B and 9B in vLLM with bf16 keys (specs: qwen3_5.md).
TEST_F(AgentTrace, OneConversation) {
  const TraceCounts counts = run(1, 3000, 100, 1200, 528);
  report("one conversation", counts, 528);
  expect_reuse(counts);
}

// Four agents with one system prompt at the same time, short messages; 1056: the block of 35B-A3B.
TEST_F(AgentTrace, FourConversations) {
  const TraceCounts counts = run(4, 2000, 20, 200, 1056);
  report("four conversations", counts, 1056);
  expect_reuse(counts);
}

// States at the ends of messages cost no steps of their own.
TEST_F(AgentTrace, ColdPrefillOfManyMessages) {
  Draw draw(3);
  const std::vector<int32_t> prompt = draw_tokens(draw, 50 * 100);
  std::vector<int64_t> ends;
  for (int64_t end = 100; end <= std::ssize(prompt); end += 100) ends.push_back(end);
  for (const int64_t budget : {64, 512, 2048}) {
    int64_t steps[2], kept = 0;
    for (const bool caches : {false, true}) {
      EngineCore& core = start(1, 8192, budget, caches);
      Request request;
      request.prompt_token_ids = prompt;
      request.checkpoint_hints = ends;
      request.params.max_tokens = 1;
      core.add(std::move(request), {});
      while (core.step()) continue;
      steps[caches] = core.stats().steps;
      kept = core.stats().checkpoints;
    }
    fmt::print("{} tokens in 50 messages, {} rows a step: {} steps without states, {} with {} states kept\n",
               prompt.size(), budget, steps[0], steps[1], kept);
    RecordProperty(fmt::format("steps_without_states_{}", budget), std::to_string(steps[0]));
    RecordProperty(fmt::format("steps_with_states_{}", budget), std::to_string(steps[1]));
    EXPECT_LE(static_cast<double>(steps[1]), 1.05 * static_cast<double>(steps[0]));
    EXPECT_GE(kept, 8);  // --checkpoints-per-prompt
  }
}

}  // namespace
}  // namespace calandra::hashsim

// The scheduler's tables: loads that are known to break engines, each in a number of requests that makes rare accidents
// likely. Every answer must be that of its request alone, and all that EngineSim checks must hold. Each table runs on a
// device that is done when it is asked, and on one with a stream, where a step is in flight while the host frees what
// the one before has left. A third of each, which the commit chooses, runs in CI; CALANDRA_MATRIX=all runs all of it.
#include <fmt/format.h>
#include <gtest/gtest.h>

#include "tests/commit_part.h"
#include "tests/hashsim/engine_sim.h"
#include "tests/hashsim/toy_rules.h"

namespace calandra::hashsim {
namespace {

class Tables : public ::testing::TestWithParam<bool> {
 protected:
  void SetUp() override {
    if (async_ && CALANDRA_STAMPS) GTEST_SKIP() << "skipped: stamps want every tensor to be used when it was made";
  }

  // `cases` seeds of a world; `world` is given the number of the case.
  template <class World>
  void run(int64_t cases, const World& world, const SimOptions& options = {}) {
    const testing::TablePart part = testing::table_part(3);
    for (int64_t number = 0; number < cases && !HasFailure(); ++number) {
      if (!part.takes(static_cast<uint64_t>(number))) continue;
      SimOptions with = options;
      with.async = async_;
      // Half of them do not wait for the device after each step.
      if (async_ && mix(78, static_cast<uint64_t>(number)) % 2 == 0) with.states = with.ownership = false;
      with.world = [&](SimWorld& w) {
        Draw draw(mix(77, static_cast<uint64_t>(number)));
        world(w, draw, number);
      };
      EngineSim sim(1'000'000 + static_cast<uint64_t>(number), with);
      EXPECT_EQ(sim.run(), "") << "case " << number;
      counts_.add(sim.counts());
    }
    RecordProperty("requests", static_cast<int>(counts_.requests));
    EXPECT_EQ(counts_.steps_ahead > counts_.steps / 20, async_);
    fmt::print("{}: {}\n", ::testing::UnitTest::GetInstance()->current_test_info()->name(), counts_.words());
  }

  const bool async_ = GetParam();
  SimCounts counts_;
};

INSTANTIATE_TEST_SUITE_P(On, Tables, ::testing::Bool(),
                         [](const auto& info) { return info.param ? "stream" : "host"; });

int64_t pages_for(int64_t tokens, const SimWorld& world) {
  return (tokens + world.limits.block_size - 1) / world.limits.block_size;
}

void speculate(SimWorld& world, int drafts) {
  world.options.speculative.reset();
  world.limits.pending_capacity = drafts;
  world.limits.hidden_ring = 0;
  if (drafts == 0) return;
  SpeculativeConfig& config = world.options.speculative.emplace();
  config.method = world.rules.model.mtp_layers > 0 ? DraftMethod::kMtp : DraftMethod::kNgram;
  config.num_speculative_tokens = drafts;
  config.adaptive = false;
  config.prompt_lookup_min = 1;
  config.prompt_lookup_max = 2;
  if (config.method == DraftMethod::kMtp) world.limits.hidden_ring = drafts + world.limits.max_model_len + 1;
  world.long_ring = config.method == DraftMethod::kMtp;
}

// S2: 64 requests in pages for 1.2 of them. Nobody is sent back again and again, and tokens come all the time.
TEST_P(Tables, PagesForHardlyMoreThanOneOf64) {
  int64_t quiet = 0, tokens = 0;
  SimOptions options;
  options.after_step = [&](EngineSim& sim) {
    quiet = sim.counts().tokens > tokens ? 0 : quiet + 1;
    tokens = sim.counts().tokens;
    EXPECT_LE(quiet, 100);
  };
  run(
      160,
      [&](SimWorld& world, Draw& draw, int64_t) {
        quiet = tokens = 0;
        world.limits.max_model_len = 64;
        world.limits.max_num_seqs = async_ ? draw.in(1, 3) : 16;  // no step is launched ahead while one may be admitted
        world.limits.num_state_slots = 16 + draw.in(0, 16);
        world.limits.max_num_batched_tokens = std::max<int64_t>(world.limits.max_num_batched_tokens, 8);
        world.limits.num_blocks = pages_for(64 + 12, world);
        world.fault_steps = 0;
        world.clear_requests(draw);
        for (int i = 0; i < 64; ++i) world.add_request(draw).request.deadline = 0;
      },
      options);
  EXPECT_LE(counts_.most_natural_preemptions, 8);
}

// S3: requests that need three pages fewer than there are, up to three more, with 0 to 8 drafts: they end, or are
// refused at once.
TEST_P(Tables, RequestsAsLargeAsThePool) {
  run(7 * 9 * 2 * 16, [](SimWorld& world, Draw& draw, int64_t number) {
    const int64_t beyond = number % 7 - 3, drafts = number / 7 % 9;
    world.options.checkpoint_bytes = number / 63 % 2 == 0 ? 0 : int64_t{1} << 30;
    world.options.host_checkpoint_bytes = 0;
    world.limits.num_blocks = draw.in(4, 8);
    world.limits.max_model_len = 400;
    world.limits.block_size = 4;
    speculate(world, static_cast<int>(drafts));
    world.fault_steps = 0;
    world.clear_requests(draw);
    const int64_t whole = (world.limits.num_blocks + beyond) * 4 - draw.in(0, 3);
    const int64_t answer = draw.in(1, std::max<int64_t>(1, whole / 2));
    world.add_request(draw, world.draw_text(draw, std::max<int64_t>(1, whole - answer)), [&](Request& request) {
      request.params.max_tokens = static_cast<int32_t>(answer);
      request.params.n = 1;
      request.params.min_tokens = 0;
      request.deadline = 0;
    });
  });
}

// S4, S5: few slots, and somebody goes away at about every second step.
TEST_P(Tables, FewSlotsAndClientsThatLeave) {
  SimOptions options;
  options.after_step = [](EngineSim& sim) {
    if (sim.counts().steps % 2 == 0) sim.cancel_one();
  };
  run(
      8 * 20,
      [](SimWorld& world, Draw& draw, int64_t number) {
        world.limits.num_state_slots = 1 + number % 8;
        world.limits.num_blocks = 6 * pages_for(world.limits.max_model_len, world);
        world.clear_requests(draw);
        int64_t step = 0;
        for (int i = 0; i < 32; ++i) world.add_request(draw).arrival = step += draw.in(0, 3);
        world.fault_steps = 0;
      },
      options);
}

// One request of each kind that leaves something behind in a slot or a row.
constexpr int kKinds = 11, kPicture = 10;  // of them, one with a picture in its prompt
void make_kind(Request& request, int kind, const SimWorld& world, Draw& draw) {
  const int64_t V = world.rules.model.vocab_size;
  SamplingParams plain;
  plain.max_tokens = 8;
  plain.seed = draw.word();
  request.params = plain;
  request.grammar.reset();
  request.processors.clear();
  request.pooling = Pooling::kNone;
  request.deadline = 0;
  SamplingParams& p = request.params;
  p.temperature = kind == 6 ? 0 : 0.9f;
  switch (kind) {
    case 0:
      request.grammar = std::make_shared<ToyGrammar>(draw.word(), 6, world.options.eos_token_ids, V);
      break;
    case 1:
      p.logit_bias = {{0, 2.f}, {2, -3.f}};
      break;
    case 2:
      p.allowed_token_ids = {1, 2};
      break;
    case 3:
      p.repetition_penalty = 1.7f, p.presence_penalty = 0.5f, p.frequency_penalty = 0.3f;
      break;
    case 4:
      p.stop_token_ids = {0, 1};
      break;
    case 5:
      p.logprobs = 3, p.prompt_logprobs = 2;
      break;
    case 7:
      request.processors = {std::make_shared<ToyProcessor>(draw.word(), V)};
      break;
    case 8:
      p.bad_words_token_ids = {{0}, {1, 2}};
      break;
    case 9:
      p.n = 3, p.min_p = 0.1f, p.top_k = 3;
      break;
  }
}

// S6: pairs of kinds, one after the other in the same slot, and beside each other: 20,000 pairs and some.
TEST_P(Tables, PairsOfKindsInOneSlotAndInOneBatch) {
  run(kKinds * kKinds * 2 * 83, [](SimWorld& world, Draw& draw, int64_t number) {
    const int64_t pair = number % (kKinds * kKinds);
    const bool together = number / (kKinds * kKinds) % 2 == 1;
    world.see();
    world.limits.num_state_slots = world.limits.max_num_seqs = together ? 8 : 1;
    world.limits.num_blocks = 8 * pages_for(world.limits.max_model_len, world);
    if (!together) world.options.checkpoint_bytes = world.options.host_checkpoint_bytes = 0;
    speculate(world, static_cast<int>(draw.in(0, 4)));
    world.fault_steps = 0;
    world.clear_requests(draw);
    for (const int64_t kind : {pair % kKinds, pair / kKinds}) {
      std::vector<SimToken> tokens = world.draw_text(draw, draw.in(1, 12));
      if (kind == kPicture) {
        tokens.resize(static_cast<size_t>(draw.in(0, std::min<int64_t>(4, std::ssize(tokens)))));
        world.draw_image(draw, tokens);
        for (const SimToken& token : world.draw_text(draw, draw.in(1, 4))) tokens.push_back(token);
      }
      world.add_request(draw, tokens,
                        [&](Request& request) { make_kind(request, static_cast<int>(kind), world, draw); });
    }
  });
  EXPECT_GE(counts_.images, counts_.requests / kKinds * 9 / 10);
}

// X1: up to 64 lanes, arrivals at random, clients that leave.
TEST_P(Tables, LoadedAsAlone) {
  run(105, [](SimWorld& world, Draw& draw, int64_t) {
    world.limits.max_num_seqs = 64;
    world.limits.num_state_slots = 64 + draw.in(0, 40);
    world.limits.max_num_batched_tokens = std::max<int64_t>(world.limits.max_num_batched_tokens, 32);
    world.limits.num_blocks = draw.in(8, 64) * pages_for(world.limits.max_model_len, world);
    world.clear_requests(draw);
    int64_t step = 0;
    for (int i = 0; i < 100; ++i) {
      if (draw.chance(50)) step += draw.in(0, 2);
      world.add_request(draw).arrival = step;
    }
    world.fault_steps = step + 30;
  });
}

// X5: prompts of 1 to 64 tokens and 0 to 8 drafts, all of them accepted, none, or half.
TEST_P(Tables, DraftsBehindPromptsOfEveryLength) {
  run(64 * 9 * 3 * 3, [](SimWorld& world, Draw& draw, int64_t number) {
    world.rules.model.agreement = 0.5 * static_cast<double>(number % 3);
    world.rules.model.mtp_layers = std::max<int64_t>(world.rules.model.mtp_layers, number / 1728 < 2 ? 1 : 0);
    world.limits.max_model_len = 100;
    world.limits.num_blocks = std::max(world.limits.num_blocks, pages_for(100, world));
    speculate(world, static_cast<int>(number / 3 % 9));
    world.fault_steps = 0;
    world.clear_requests(draw);
    world.add_request(draw, world.draw_text(draw, 1 + number / 27 % 64), [](Request& request) {
      request.deadline = 0;
      request.pooling = Pooling::kNone;
    });
  });
  EXPECT_GT(counts_.accepted, 0);
  EXPECT_GT(counts_.drafted, counts_.accepted);
}

// X6: every choice sent back up to three times, at every step of its life.
TEST_P(Tables, PreemptedAtEveryStep) {
  int64_t step = 0, first = 0, times = 0;
  SimOptions options;
  options.after_step = [&](EngineSim& sim) {
    if (++step < first || step >= first + times) return;
    for (Choice* choice :
         std::vector<Choice*>(sim.core().scheduler().running().begin(), sim.core().scheduler().running().end()))
      sim.preempt_one(*choice);
  };
  run(
      24 * 3 * 14,
      [&](SimWorld& world, Draw& draw, int64_t number) {
        step = 0, first = 1 + number % 24, times = 1 + number / 24 % 3;
        world.limits.num_blocks = std::max(world.limits.num_blocks, 3 * pages_for(world.limits.max_model_len, world));
        world.fault_steps = 0;
        world.clear_requests(draw);
        for (int i = 0; i < 3; ++i) {
          SimRequest& request = world.add_request(draw);
          request.request.deadline = 0;
        }
      },
      options);
  EXPECT_GT(counts_.preemptions, counts_.requests / 4);
}

}  // namespace
}  // namespace calandra::hashsim

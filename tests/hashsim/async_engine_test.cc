// The engine simulation on a device with a stream, where steps are launched before the tokens of the one before were
// read (engine/look_ahead.h), and what happens when a part of that is wrong.
#include <gtest/gtest.h>

#include <algorithm>
#include <cstdlib>
#include <cstring>

#include "tests/hashsim/planted_fault.h"

namespace calandra::hashsim {
namespace {

constexpr int kSeeds = 300;

SimOptions async(SimOptions options, DeferredFaults faults = {}) {
  options.async = true;
  options.faults = faults;
  return options;
}

class AsyncEngine : public ::testing::Test {
  void SetUp() override {
    if (CALANDRA_STAMPS) GTEST_SKIP() << "skipped: stamps want every tensor to be used when it was made";
  }
};

SimCounts run_seeds(uint64_t first, uint64_t count, const SimOptions& options) {
  SimCounts counts;
  int violations = 0;
  for (uint64_t seed = first; seed < first + count && violations < 10; ++seed) {
    EngineSim sim(seed, options);
    const std::string found = sim.run();
    EXPECT_EQ(found, "");
    violations += !found.empty();
    counts.add(sim.counts());
  }
  return counts;
}

// Steps are launched ahead where nobody drafts.
SimOptions without_drafts(SimOptions options) {
  options.world = [](SimWorld& world) { world.options.speculative.reset(); };
  return options;
}

TEST_F(AsyncEngine, EveryAnswerIsThatOfTheRequestAlone) {
  for (const By by : {By::kAll, By::kTokens}) {  // the device waited for after every step, and not
    const SimCounts counts = run_seeds(0, 1500, without_drafts(async(only(by))));
    RecordProperty("counts", counts.words());
    EXPECT_GT(counts.steps_ahead, counts.steps / 5);
    EXPECT_GT(counts.filled_up, 100);
    for (const int64_t happened : {counts.hits, counts.restores, counts.evictions, counts.preemptions, counts.cancels,
                                   counts.errors, counts.forks})
      EXPECT_GT(happened, 100);
  }
}

// All draft by MTP layers, and nobody has parameters that read drafts, so that most steps are launched ahead.
// `stops`: long runs of drafts are accepted, and many tokens end an answer, whose checkpoint is kept.
SimOptions drafting_ahead(SimOptions options, bool stops = false) {
  options.world = [stops](SimWorld& world) {
    Draw draw(mix(world.rules.model.seed, 0xa4ead));
    world.rules.model.mtp_layers = std::max<int64_t>(1, world.rules.model.mtp_layers);
    SpeculativeConfig& config = world.options.speculative.emplace();
    config.num_speculative_tokens = stops ? 4 : static_cast<int>(draw.in(1, 4));
    config.adaptive = !stops && draw.chance(25);
    if (stops) world.rules.model.agreement = 0.95;
    if (stops) world.options.checkpoint_bytes = int64_t{1} << 30;
    RunnerLimits& limits = world.limits;
    limits.pending_capacity = config.num_speculative_tokens + draw.in(0, 1);
    world.long_ring = draw.chance(60);
    limits.hidden_ring = limits.pending_capacity + (world.long_ring ? limits.max_model_len + 1 : draw.in(2, 6));
    limits.max_num_batched_tokens = std::max<int64_t>(32, limits.max_num_batched_tokens);
    world.clear_requests(draw);
    const std::vector<SimToken> root = world.draw_text(draw, 12);
    int64_t step = 0;
    for (int64_t i = draw.in(1, 8); i > 0; --i) {
      std::vector<SimToken> tokens(root.begin(), root.begin() + draw.in(0, 12));
      for (const SimToken& token : world.draw_text(draw, draw.in(1, 8))) tokens.push_back(token);
      if (draw.chance(40)) step += draw.in(0, 12);
      const auto change = [&](Request& r) {
        SamplingParams& p = r.params;
        p.repetition_penalty = 1;
        p.frequency_penalty = p.presence_penalty = 0;
        p.bad_words_token_ids.clear();
        p.thinking_token_budget.reset();
        p.max_tokens = static_cast<int32_t>(draw.in(1, 60));
        if (p.min_tokens > *p.max_tokens || stops) p.min_tokens = 0;
        if (stops)
          for (int i = 0; i < 8; ++i)
            p.stop_token_ids.push_back(static_cast<int32_t>(draw.in(0, world.rules.model.vocab_size - 1)));
        r.grammar.reset();
        r.processors.clear();
      };
      world.add_request(draw, tokens, change).arrival = step;
    }
  };
  return options;
}

TEST_F(AsyncEngine, StepsWithDraftsAreLaunchedAhead) {
  for (const By by : {By::kAll, By::kTokens, By::kDrafts}) {
    const SimCounts counts = run_seeds(0, 1500, drafting_ahead(async(only(by))));
    RecordProperty("counts", counts.words());
    EXPECT_GT(counts.steps_ahead, counts.steps / 5);
    for (const int64_t happened :
         {counts.accepted, counts.hits, counts.restores, counts.evictions, counts.preemptions, counts.forks})
      EXPECT_GT(happened, 100);
  }
}

// Drafts stay on the device, and are those that they must be.
TEST_F(AsyncEngine, DraftsThatTheDeviceReadsChangeNoToken) {
  for (const By by : {By::kAll, By::kTokens, By::kDrafts}) {
    const SimCounts counts = run_seeds(0, 1500, async(only(by)));
    RecordProperty("counts", counts.words());
    EXPECT_EQ(counts.drafted > 10'000, by != By::kTokens);
    EXPECT_GT(counts.filled_up, 100);
    EXPECT_EQ(counts.cancels > 100 && counts.errors > 100, by != By::kDrafts);
    for (const int64_t happened :
         {counts.accepted, counts.hits, counts.restores, counts.evictions, counts.preemptions, counts.forks})
      EXPECT_GT(happened, 100);
  }
}

// What the device has put behind a draft that is no token is never kept.
TEST_F(AsyncEngine, DraftsEndWhereOneIsNoToken) {
  const SimCounts counts = run_seeds(0, 1000, async(only(By::kTokens), {.loses_drafts = true}));
  EXPECT_GT(counts.accepted, 1000);
}

// With drafts there is one wait in a step for all that the device has to do: for the tokens.
TEST_F(AsyncEngine, ADraftingStepWaitsForTheDeviceOnce) {
  HashModelConfig config;
  config.mtp_layers = 1;
  config.agreement = 0.5;
  config.step_cost = config.draft_cost = {.weight_bytes = 1e6};
  const HashModel model(config);
  DeferredBackend<ReferenceBackend> stream(0, DeferredFaults{});
  const DeferredModel deferred(model, stream.queue());
  ModelRunner runner(deferred, stream, {.pending_capacity = 3, .hidden_ring = 16});
  EngineOptions options;
  options.seed = 1;
  options.async_scheduling = true;
  options.speculative.emplace().num_speculative_tokens = 3;
  options.speculative->adaptive = false;
  EngineCore core(runner, nullptr, options);
  for (int32_t i = 0; i < 3; ++i) {
    Request request;
    request.prompt_token_ids = {1, 2, 3 + i};
    request.params.max_tokens = 60;
    if (i == 1) request.params.presence_penalty = 0.5f;  // its rows read the drafts before
    core.add(std::move(request), {});
  }
  int steps = 0;
  for (int64_t before = 0; core.step(); before = stream.queue().emptied()) {
    const std::span<Choice* const> running = core.scheduler().running();
    const auto drafted = [](const Choice* choice) { return choice->drafts.size() == 3; };
    if (running.size() < 3 || !std::all_of(running.begin(), running.end(), drafted)) continue;
    EXPECT_LE(stream.queue().emptied(), before + 1);
    steps += stream.queue().emptied() == before + 1;  // near the end nobody gets drafts, and steps are launched ahead
  }
  EXPECT_GT(steps, 10);
}

// While the host hears the tokens of a drafting step, the device has the drafts and the step behind to do, and is never
// without.
TEST_F(AsyncEngine, ADraftingStepIsLaunchedBeforeTheTokensWereRead) {
  HashModelConfig config;
  config.mtp_layers = 1;
  config.agreement = 0.5;
  config.step_cost = config.draft_cost = {.weight_bytes = 1e6};
  const HashModel model(config);
  for (const int drafts : {1, 4}) {
    DeferredBackend<ReferenceBackend> stream(0, DeferredFaults{});
    const DeferredModel deferred(model, stream.queue());
    ModelRunner runner(deferred, stream, {.pending_capacity = drafts, .hidden_ring = 16});
    EngineOptions options;
    options.seed = 1;
    options.async_scheduling = true;
    options.speculative.emplace().num_speculative_tokens = drafts;
    options.speculative->adaptive = false;
    EngineCore core(runner, nullptr, options);
    int64_t told = 0, busy = 0;
    for (int32_t i = 0; i < 3; ++i) {
      Request request;
      request.prompt_token_ids = {1, 2, 3 + i};
      request.params.max_tokens = 100;
      core.add(std::move(request), [&](const TokenEvent& event) {
        ++told;
        busy += !stream.queue().empty();
        return !event.finished;
      });
    }
    int64_t emptied = 0;
    while (core.step()) {
      if (core.stats().steps_ahead == 1) emptied = stream.queue().emptied();
      if (core.stats().steps_ahead == 10) {
        EXPECT_EQ(stream.queue().emptied(), emptied);
      }
    }
    EXPECT_EQ(told, 300);
    EXPECT_GT(core.stats().accepted_tokens, 30);
    // All but the first step, and the last ones, in which those that are left end.
    EXPECT_GE(core.stats().steps_ahead, core.stats().steps - 6) << core.stats().steps;
    EXPECT_GE(busy, told - 3 * 6 * (1 + drafts));
  }
}

// Penalties make drafts that depend on the tokens before them, so the step waits for these where drafts are worth it,
// and only there.
TEST_F(AsyncEngine, WhoseDraftsReadTokensIsLaunchedAheadWhileNobodyDrafts) {
  for (const double agreement : {0.0, 0.95}) {
    HashModelConfig config;
    config.mtp_layers = 1;
    config.agreement = agreement;
    config.step_cost = config.draft_cost = {.weight_bytes = 1e6};
    HashModel model(config);
    double now = 0;  // of the device
    model.before_forward([&](const Batch&) { now += 1; });
    model.before_draft([&](const Batch&) { now += 0.3; });
    DeferredBackend<ReferenceBackend> stream(0, DeferredFaults{});
    const DeferredModel deferred(model, stream.queue());
    ModelRunner runner(deferred, stream, {.pending_capacity = 3, .hidden_ring = 16});
    EngineOptions options;
    options.seed = 1;
    options.clock = [&] { return now; };
    options.async_scheduling = true;
    options.speculative.emplace().num_speculative_tokens = 3;
    EngineCore core(runner, nullptr, options);
    for (int32_t i = 0; i < 3; ++i) {
      Request request;
      request.prompt_token_ids = {1, 2, 3 + i};
      request.params.max_tokens = 400;
      request.params.presence_penalty = 0.5f;
      core.add(std::move(request), {});
    }
    while (core.step()) {
    }
    const EngineStats& stats = core.stats();
    EXPECT_GT(stats.draft_tokens, 0);
    if (agreement == 0) {
      EXPECT_GE(stats.steps_ahead, stats.steps * 9 / 10) << stats.steps;
    } else {
      EXPECT_GE(stats.accepted_tokens, 600);
      EXPECT_LE(stats.steps_ahead, stats.steps / 4) << stats.steps;
    }
  }
}

// In how many seeds a fault is reported. Those with grammars are left out, since a grammar ends the process when it is
// given a token that it refuses.
int reported(const SimOptions& options) {
  int reports = 0;
  for (uint64_t seed = 1; seed <= kSeeds; ++seed) {
    EngineSim sim(seed, options);
    const auto& requests = sim.world().requests;
    if (std::any_of(requests.begin(), requests.end(), [](const SimRequest& r) { return r.request.grammar; })) continue;
    reports += !sim.run().empty();
  }
  return reports;
}

TEST_F(AsyncEngine, TokensReadBeforeTheyAreThere) {
  EXPECT_GT(reported(without_drafts(async(only(By::kTokens), {.reads_early = true}))), 50);
}

TEST_F(AsyncEngine, DraftsReadBeforeTheyAreThere) {
  EXPECT_GT(reported(async(only(By::kDrafts), {.reads_drafts_early = true})), 20);
}

TEST_F(AsyncEngine, DraftsOfTheStepBeforePutIntoABatch) {
  SimOptions options = only(By::kDrafts);
  options.tokens = true;  // the tokens that a step ahead goes on with are put likewise
  EXPECT_GT(reported(async(options, {.puts_early = true})), 20);
}

TEST_F(AsyncEngine, UploadOverwrittenBeforeItWasRead) {
  // A batch that is half another one may also end the process.
  EXPECT_DEATH(CHECK_LE(reported(async(only(By::kTokens), {.reuses_early = true})), 50), "check failed");
}

// Rows that fill a recorded step up.
TEST_F(AsyncEngine, SequencesThatFillAStepUpRun) {
  SimOptions options = async(only(By::kAll));
  options.world = [](SimWorld& world) { world.limits.recorded_sizes = 1; };
  options.before_forward = [](EngineSim&, Batch& batch) {
    for (int64_t b = 0; b < batch.sequences(); ++b)
      if (ints(batch.seq_len)[b] == 0) ints(batch.active)[b] = 1;
  };
  EXPECT_GT(reported(options), 10);
}

// A checkpoint is copied to the host when the step that wrote it is done, the one after it need not be; and is read
// there when the copy is done.
TEST_F(AsyncEngine, CheckpointsAreCopiedWhenTheyWereWritten) {
  const HashModel model({});
  for (const DeferredFaults faults : {DeferredFaults{}, {.copies_early = true}, {.reads_copies_early = true}}) {
    DeferredBackend<ReferenceBackend> stream(0, faults);
    PagePool pages(model.cache_specs(), 2, 4, Buffer::host);
    SlotPool slots(model.cache_specs(), model.hidden_size(), model.dtype(), 1, 2, Buffer::host);
    CheckpointStore store(pages, slots, stream, 1 << 20);
    const Checkpoint checkpoint{.P = 6, .slot = *slots.take(), .pages = {*pages.take(), *pages.take()}};
    Workspace workspace;
    OneRank rank;
    ExecContext ctx{stream, workspace, rank};
    const Buffer input = stream.allocate_host(4);
    std::memset(input.data(), 7, input.bytes());
    int32_t later = 0;
    stream.upload(ctx, slots.N().data(), input.data(), 4);  // the last that the step writes
    store.adopt(checkpoint);
    stream.upload(ctx, &later, input.data(), 4);  // of the next step
    const std::optional<Checkpoint> copy = store.to_host(checkpoint, std::vector<int32_t>{-1, -1});
    ASSERT_TRUE(copy.has_value());
    std::vector<std::byte> on_host, on_device;
    store.append_content(*copy, on_host);
    EXPECT_EQ(later, 0);
    store.append_content(checkpoint, on_device);
    EXPECT_EQ(on_host == on_device, !faults.copies_early && !faults.reads_copies_early);
    store.release(*copy);
    store.give_back_memory();
    EXPECT_EQ(store.bytes(Tier::kHost), 0);
  }
}

TEST_F(AsyncEngine, SlotsOfCheckpointsOverwrittenBeforeTheyWereCopied) {
  EXPECT_GT(reported(async(only(By::kTokens), {.follows_late = true})), 5);
}

TEST_F(AsyncEngine, SlotOverwrittenAfterAStop) {
  EXPECT_GT(reported(without_drafts(async(only(By::kAll), {.always_active = true}))), 8);
}

// The same of steps with drafts, and what only they can have wrong.
int reported_ahead(By by, DeferredFaults faults, bool stops = false) {
  return reported(drafting_ahead(async(only(by), faults), stops));
}

TEST_F(AsyncEngine, WithoutAFaultAheadNothingIsReported) {
  EXPECT_EQ(reported_ahead(By::kAll, {}), 0);
  EXPECT_EQ(reported_ahead(By::kStates, {}, true), 0);
}

TEST_F(AsyncEngine, SlotOverwrittenAfterAStopWithDrafts) {
  EXPECT_GT(reported_ahead(By::kAll, {.always_active = true}), 20);
}

TEST_F(AsyncEngine, UploadOverwrittenBeforeItWasReadWithDrafts) {
  EXPECT_DEATH(CHECK_LE(reported_ahead(By::kTokens, {.reuses_early = true}), 50), "check failed");
}

TEST_F(AsyncEngine, StaleCountOfAcceptedDrafts) {
  for (const By by : {By::kTokens, By::kStates}) EXPECT_GT(reported_ahead(by, {.keeps_count = true}), 50);
}

TEST_F(AsyncEngine, TokenOfAnotherRow) { EXPECT_GT(reported_ahead(By::kTokens, {.first_token = true}), 50); }

TEST_F(AsyncEngine, DraftOfAnotherRow) { EXPECT_GT(reported_ahead(By::kDrafts, {.first_entry = true}), 50); }

TEST_F(AsyncEngine, DraftPassAtAnotherPlace) { EXPECT_GT(reported_ahead(By::kDrafts, {.stays_behind = true}), 30); }

TEST_F(AsyncEngine, DraftWithTheNoiseOfAnotherPlace) {
  EXPECT_GT(reported_ahead(By::kDrafts, {.noise_behind = true}), 30);
}

TEST_F(AsyncEngine, EntryOfAnEndedChoiceWritten) {
  EXPECT_GT(reported_ahead(By::kStates, {.ended_entries = true}, true), 10);
}

}  // namespace
}  // namespace calandra::hashsim

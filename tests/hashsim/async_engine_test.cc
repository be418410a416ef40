// The engine simulation on a device with a stream, where steps are launched before the tokens of the one before were
// read (engine/look_ahead.h), and what happens when a part of that is wrong.
#include <gtest/gtest.h>

#include <algorithm>
#include <cstdlib>

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

TEST_F(AsyncEngine, EveryAnswerIsThatOfTheRequestAlone) {
  for (const By by : {By::kAll, By::kTokens}) {  // the device waited for after every step, and not
    const SimCounts counts = run_seeds(0, 1500, async(only(by)));
    RecordProperty("counts", counts.words());
    EXPECT_GT(counts.steps_ahead, counts.steps / 4);
    for (const int64_t happened : {counts.hits, counts.restores, counts.evictions, counts.preemptions, counts.cancels,
                                   counts.errors, counts.forks})
      EXPECT_GT(happened, 100);
  }
}

// In how many seeds a fault is reported. Those with grammars are left out, since a grammar ends the process when it is
// given a token that it refuses.
int reported(By by, DeferredFaults faults) {
  int reports = 0;
  for (uint64_t seed = 1; seed <= kSeeds; ++seed) {
    EngineSim sim(seed, async(only(by), faults));
    const auto& requests = sim.world().requests;
    if (std::any_of(requests.begin(), requests.end(), [](const SimRequest& r) { return r.request.grammar; })) continue;
    reports += !sim.run().empty();
  }
  return reports;
}

TEST_F(AsyncEngine, TokensReadBeforeTheyAreThere) { EXPECT_GT(reported(By::kTokens, {.reads_early = true}), 50); }

TEST_F(AsyncEngine, UploadOverwrittenBeforeItWasRead) {
  // A batch that is half another one may also end the process.
  EXPECT_DEATH(CHECK_LE(reported(By::kTokens, {.reuses_early = true}), 50), "check failed");
}

TEST_F(AsyncEngine, SlotOverwrittenAfterAStop) { EXPECT_GT(reported(By::kAll, {.always_active = true}), 8); }

}  // namespace
}  // namespace calandra::hashsim

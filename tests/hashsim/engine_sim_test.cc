// Thousands of seeds of the engine simulation. CALANDRA_SIM_SEEDS=first:count runs others, and says what they did.
#include <gtest/gtest.h>

#include <cstdlib>
#include <string>

#include "tests/hashsim/engine_sim.h"

namespace calandra::hashsim {
namespace {

SimCounts run_seeds(uint64_t first, uint64_t count) {
  SimCounts counts;
  int violations = 0;
  for (uint64_t seed = first; seed < first + count && violations < 30; ++seed) {
    EngineSim sim(seed);
    const std::string found = sim.run();
    EXPECT_EQ(found, "");
    violations += !found.empty();
    counts.add(sim.counts());
  }
  return counts;
}

constexpr uint64_t kShards = 20, kSeedsPerShard = 1000;

class EngineSeeds : public ::testing::TestWithParam<uint64_t> {};

TEST_P(EngineSeeds, EveryAnswerIsThatOfTheRequestAlone) {
  const SimCounts counts = run_seeds(GetParam() * kSeedsPerShard, kSeedsPerShard);
  RecordProperty("counts", counts.words());
  for (const int64_t happened : {counts.accepted, counts.hits, counts.restores, counts.evictions, counts.preemptions,
                                 counts.forks, counts.cancels, counts.errors, counts.images, counts.checkpoints})
    EXPECT_GT(happened, 100);
  EXPECT_LE(counts.most_natural_preemptions, 8);  // of one choice: nobody is sent back again and again
}

INSTANTIATE_TEST_SUITE_P(Shards, EngineSeeds, ::testing::Range(uint64_t{0}, kShards));

TEST(EngineSim, TheSameSeedRunsTheSameWay) {
  for (uint64_t seed = 0; seed < 200; ++seed) {
    EngineSim once(seed), again(seed);
    EXPECT_EQ(once.run(), "");
    EXPECT_EQ(again.run(), "");
    ASSERT_EQ(once.log(), again.log()) << "seed " << seed;
  }
}

TEST(EngineSim, SeedsFromTheEnvironment) {
  const char* seeds = std::getenv("CALANDRA_SIM_SEEDS");
  if (seeds == nullptr) GTEST_SKIP() << "skipped: CALANDRA_SIM_SEEDS=first:count is not set";
  const std::string text(seeds);
  const size_t colon = text.find(':');
  ASSERT_NE(colon, std::string::npos);
  const SimCounts counts = run_seeds(std::stoull(text), std::stoull(text.substr(colon + 1)));
  std::printf("%s\n", counts.words().c_str());
}

}  // namespace
}  // namespace calandra::hashsim

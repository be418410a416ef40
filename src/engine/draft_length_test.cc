// Single choices of DraftLength.
#include "engine/draft_length.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <random>

#include "engine/draft_length_for_test.h"

namespace calandra {
namespace {

// Without measurements and probes: of all lengths of three sequences, the predicted best, and none when none is best.
TEST(DraftLength, FirstChoiceIsTheBestOfAll) {
  std::mt19937 random(9);
  int with = 0, without = 0;
  for (int round = 0; round < 200; ++round) {
    Machine machine = round % 2 ? moe(3, 1) : cpu(3, 1);
    machine.draft_pass.weight_bytes *= 1 + random() % 12;
    machine.flops_per_second /= 1 + random() % 4;
    DraftLength length(machine.target, machine.draft_pass,
                       {.most_drafts = 3, .speed = {machine.bytes_per_second, machine.flops_per_second}});
    std::vector<SequenceAcceptance> sequences(3);
    for (SequenceAcceptance& sequence : sequences) {
      const uint32_t accepts = random() % 4;
      for (int i = 0; i < 20; ++i) {
        const int drafted = 1 + static_cast<int>(random() % 3);
        length.observe_drafts(sequence, drafted, std::min<int>(drafted, random() % (1 + accepts)));
      }
    }
    std::vector<DraftCandidate> candidates;
    for (SequenceAcceptance& sequence : sequences)
      candidates.push_back({&sequence, 1000, static_cast<int>(random() % 4)});
    const auto speed = [&](const std::vector<int>& k) {
      StepShape step;
      std::vector<StepShape> passes;
      double tokens = 0;
      for (size_t b = 0; b < 3; ++b) {
        double gain = 1;
        const PerPosition p = length.acceptance().estimate(sequences[b]);
        step.add(1 + k[b], 1000, 1 + k[b]);
        tokens += 1;
        for (int j = 0; j < k[b]; ++j) {
          tokens += gain *= p[j];
          if (passes.size() <= static_cast<size_t>(j)) passes.resize(j + 1);
          passes[j].add(1, 1000, 1);
        }
      }
      return tokens / (length.step_seconds(step) + length.drafting_seconds(passes));
    };
    double best = 0;
    for (int x = 0; x < 64; ++x) {
      const std::vector<int> k = {x % 4, x / 4 % 4, x / 16};
      bool allowed = true;
      for (size_t b = 0; b < 3; ++b) allowed &= k[b] <= candidates[b].most_drafts;
      if (allowed) best = std::max(best, speed(k));
    }
    std::vector<int> chosen;
    const double none = speed({0, 0, 0});
    measure(length, 3, 1000);
    length.choose(candidates, false, chosen);
    for (size_t b = 0; b < 3; ++b) ASSERT_LE(chosen[b], candidates[b].most_drafts);
    if (best > 1.021 * none) {
      EXPECT_GE(speed(chosen), 0.9999 * best) << round;
      ++with;
    } else if (best < 1.019 * none) {
      EXPECT_EQ(chosen, (std::vector{0, 0, 0})) << round;
      ++without;
    }
  }
  EXPECT_GE(with, 40);
  EXPECT_GE(without, 40);
}

// A long step makes drafts no better: the rows that they save are of later steps.
TEST(DraftLength, PromptsInTheSameStepChangeNothing) {
  for (const bool pays : {true, false}) {
    const Machine machine = pays ? cpu(1, 1) : expensive_head();
    StepCost pass = machine.draft_pass;
    if (!pays) pass.weight_bytes *= 3;
    DraftLength length(machine.target, pass,
                       {.most_drafts = 1, .speed = {machine.bytes_per_second, machine.flops_per_second}});
    measure(length, 1, machine.context);
    SequenceAcceptance sequence;
    const std::vector<DraftCandidate> candidates = {{&sequence, machine.context, 1}};
    std::vector<int> k;
    for (const bool reads_prompts : {true, false}) {
      length.choose(candidates, reads_prompts, k);
      EXPECT_EQ(k[0], pays) << reads_prompts;
    }
  }
}

TEST(DraftLength, NoneBeforeStepsWithoutDraftsWereMeasured) {
  const Machine machine = cpu(1, 1);
  DraftLength length(machine.target, machine.draft_pass,
                     {.speed = {machine.bytes_per_second, machine.flops_per_second}});
  SequenceAcceptance sequence;
  std::vector<int> k;
  for (int i = 0; i < 100; ++i) {
    length.choose(std::vector<DraftCandidate>{{&sequence, machine.context, 4, 0}}, true, k);
    ASSERT_EQ(k[0], 0);
  }
  measure(length, 1, machine.context);
  length.choose(std::vector<DraftCandidate>{{&sequence, machine.context, 4, 0}}, true, k);
  EXPECT_GT(k[0], 0);
}

TEST(DraftLength, StepsRightBehindDraftsTellNothingOfThoseWithout) {
  const Machine machine = cpu(1, 1);
  DraftLength length(machine.target, machine.draft_pass,
                     {.speed = {machine.bytes_per_second, machine.flops_per_second}});
  measure(length, 1, machine.context);  // drafts at the end
  StepShape plain;
  plain.add(1, machine.context, 1);
  const double seconds = length.step_seconds(plain);
  for (int i = 0; i < 4; ++i) {
    length.observe_step(plain, 1.09 * seconds, false);
    EXPECT_EQ(length.step_seconds(plain), seconds);
  }
  length.observe_step(plain, 1.09 * seconds, false);
  EXPECT_GT(length.step_seconds(plain), 1.01 * seconds);
}

// Prompts leave rows to drafts that are made. Where none pay they do so only where nothing else would show it.
TEST(DraftLength, RoomIsWantedForDraftsThatPay) {
  const Machine machine = cpu(1, 1);
  for (const bool pay : {false, true}) {
    DraftLength length(machine.target, machine.draft_pass,
                       {.most_drafts = 2, .speed = {machine.bytes_per_second, machine.flops_per_second}});
    EXPECT_TRUE(length.wants_room()) << "nothing was decided yet";
    measure(length, 1, machine.context);
    SequenceAcceptance sequence;
    std::vector<int> k;
    const auto wanted = [&](int choices, int most_drafts) {
      int count = 0;
      for (int i = 0; i < choices; ++i) {
        length.choose(std::vector<DraftCandidate>{{&sequence, machine.context, most_drafts, 0}}, false, k);
        if (k[0] > 0) length.observe_drafts(sequence, k[0], pay ? k[0] : 0);
        count += length.wants_room();
      }
      return count;
    };
    wanted(1000, 2);
    EXPECT_EQ(wanted(100, 2), pay ? 100 : 0);
    if (pay) continue;
    EXPECT_EQ(wanted(63, 0), 0);
    EXPECT_EQ(wanted(1, 0), 1);
    EXPECT_EQ(wanted(1, 2), 0);
  }
}

// A choice of no drafts stands for some steps, but not when others can be had.
TEST(DraftLength, NoneStandsOnlyForTheSame) {
  const Machine machine = cpu(1, 1);
  DraftLength length(machine.target, machine.draft_pass,
                     {.speed = {machine.bytes_per_second, machine.flops_per_second}});
  measure(length, 1, machine.context);
  SequenceAcceptance sequence;
  std::vector<int> k;
  for (int i = 0; i < 3; ++i) {
    length.choose(std::vector<DraftCandidate>{{&sequence, machine.context, 0, 0}}, false, k);
    ASSERT_EQ(k[0], 0);
  }
  length.choose(std::vector<DraftCandidate>{{&sequence, machine.context, 4, 0}}, false, k);
  EXPECT_GT(k[0], 0);
}

TEST(DraftLength, EntriesToCatchUpWithCost) {
  const Machine machine = cpu(1, 1);
  const DraftLengthOptions options{.most_drafts = 1, .speed = {machine.bytes_per_second, machine.flops_per_second}};
  DraftLength length(machine.target, machine.draft_pass, options);
  measure(length, 1, 1000);
  SequenceAcceptance sequence;
  std::vector<int> k;
  length.choose(std::vector<DraftCandidate>{{&sequence, 1000, 1, 0}}, false, k);
  EXPECT_EQ(k[0], 1);
  length.choose(std::vector<DraftCandidate>{{&sequence, 1000, 1, 4000}}, false, k);
  EXPECT_EQ(k[0], 0);
}

TEST(DraftLength, FixedLengthsAreKept) {
  const Machine machine = expensive_head();
  DraftLengthOptions options{.most_drafts = 3, .adaptive = false, .speed = {1e9, 1e9}};
  DraftLength length(machine.target, machine.draft_pass, options);
  std::vector<SequenceAcceptance> sequences(3);
  std::vector<int> k;
  length.choose(std::vector<DraftCandidate>{{&sequences[0], 10, 8}, {&sequences[1], 10, 2}, {&sequences[2], 10, 0}},
                false, k);
  EXPECT_EQ(k, (std::vector{3, 2, 0}));
  length.choose({}, false, k);
  EXPECT_TRUE(k.empty());
}

}  // namespace
}  // namespace calandra

// DraftLength over many steps of simulated machines.
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <functional>
#include <numeric>
#include <random>
#include <string>

#include "engine/draft_length_for_test.h"

namespace calandra {
namespace {

// Acceptance of the draft at `position`, given those before, of sequence b at step i.
using Truth = std::function<double(int b, int step, int position)>;
Truth always(double a) {
  return [a](int, int, int) { return a; };
}

struct Outcome {
  double tokens = 0, seconds = 0;            // expected, of all steps
  double late_tokens = 0, late_seconds = 0;  // of the second half
  std::vector<double> mean_k;                // per sequence, second half
  double speed() const { return tokens / seconds; }
  double late_speed() const { return late_tokens / late_seconds; }
};

constexpr int kSteps = 4000;
constexpr int kSettling = 6;  // steps until one takes as long as all that follow

// fixed >= 0: always so many drafts; -1: DraftLength chooses.
// `slower`: measured times are so many times longer.
Outcome simulate(const Machine& machine, const Truth& truth, int fixed, uint32_t seed, int most = 4, int steps = kSteps,
                 const std::function<double(int step, int64_t rows)>& slower = {}) {
  std::mt19937 random(seed);
  const auto uniform = [&] { return static_cast<double>(random()) * 0x1p-32; };
  DraftLengthOptions options;
  options.most_drafts = most;
  options.speed = {machine.bytes_per_second * machine.guess,
                   machine.flops_per_second * machine.guess * machine.flops_guess};
  DraftLength length(machine.target, machine.draft_pass, options);
  std::vector<SequenceAcceptance> sequences(machine.sequences);
  std::vector<DraftCandidate> candidates;
  for (SequenceAcceptance& sequence : sequences) candidates.push_back({&sequence, machine.context, most, 0});
  std::vector<int> k(sequences.size(), std::max(fixed, 0));
  bool with_drafts = false;  // the last step,
  int alike = -1;            // and how many before it were like it; a prompt was read before the first
  Outcome outcome;
  outcome.mean_k.resize(sequences.size());
  for (int i = 0; i < steps; ++i) {
    if (fixed < 0) length.choose(candidates, false, k);
    StepShape step;
    std::vector<StepShape> passes;
    double tokens = 0;
    for (size_t b = 0; b < k.size(); ++b) {
      step.add(1 + k[b], machine.context, 1 + k[b]);
      if (passes.size() < static_cast<size_t>(k[b])) passes.resize(k[b]);
      for (int j = 0; j < k[b]; ++j) passes[j].add(1, machine.context, 1);
      double reached = 1;
      for (int j = 0; j <= k[b]; ++j) {
        tokens += reached;
        reached *= truth(static_cast<int>(b), i, j);
      }
      int accepted = 0;
      while (accepted < k[b] && uniform() < truth(static_cast<int>(b), i, accepted)) ++accepted;
      if (fixed < 0 && k[b] > 0) length.observe_drafts(sequences[b], k[b], accepted);
    }
    alike = with_drafts == !passes.empty() ? std::min(alike + 1, kSettling) : 0;
    with_drafts = !passes.empty();
    const double settling = machine.settling * (kSettling - alike) / kSettling;
    const double step_seconds = settling + machine.step_seconds(step), drafting = machine.drafting_seconds(passes);
    if (fixed < 0) {
      const double factor = slower ? slower(i, step.rows) : 1;
      const auto noisy = [&](double s) { return s * factor * (0.96 + 0.08 * uniform()) * (uniform() < 0.005 ? 4 : 1); };
      length.observe_step(step, noisy(step_seconds), length.measures_plain());
      length.observe_drafting(passes, noisy(drafting));
    }
    outcome.tokens += tokens;
    outcome.seconds += step_seconds + drafting;
    if (i < steps / 2) continue;
    outcome.late_tokens += tokens;
    outcome.late_seconds += step_seconds + drafting;
    for (size_t b = 0; b < k.size(); ++b) outcome.mean_k[b] += k[b] / (steps / 2.0);
  }
  return outcome;
}

std::vector<Machine> machines() {
  std::vector<Machine> all;
  for (const double guess : {0.4, 2.5}) {
    all.push_back(cpu(1, guess));
    all.push_back(cpu(4, guess));
    all.push_back(cpu(16, guess));
    all.push_back(cpu(64, guess));
    all.push_back(gpu(1, guess));
    all.push_back(gpu(32, guess));
  }
  all.push_back(expensive_head());
  for (const double correlation : {1.0, 0.6}) {
    all.push_back(moe(1, correlation));
    all.push_back(moe(4, correlation));
    all.push_back(moe(32, correlation));
  }
  return all;
}

// The best of 0 ... 4 drafts, always the same number.
double best_fixed(const Machine& machine, const Truth& truth, int steps = 1) {
  double best = 0;
  for (int fixed = 0; fixed <= 4; ++fixed) best = std::max(best, simulate(machine, truth, fixed, 1, 4, steps).speed());
  return best;
}

TEST(DraftLength, NeverSlowerThanNoneAndNearTheBestFixedLength) {
  for (const Machine& machine : machines())
    for (const double a : {0.0, 0.3, 0.6, 0.9}) {
      double speed = 0, late_speed = 0;  // mean of some: chance decides much where drafts gain little
      for (const uint32_t seed : {5, 6, 7}) {
        const Outcome adaptive = simulate(machine, always(a), -1, seed);
        speed += adaptive.speed() / 3;
        late_speed += adaptive.late_speed() / 3;
      }
      const std::string what = machine.name + ", speeds guessed as " + std::to_string(machine.guess) +
                               ", experts read " + std::to_string(machine.correlation) + ", acceptance " +
                               std::to_string(a);
      EXPECT_GE(speed, 0.995 * simulate(machine, always(a), 0, 5, 4, 1).speed()) << what;
      EXPECT_GE(late_speed, 0.97 * best_fixed(machine, always(a))) << what;
    }
}

// On a GPU tens of rows share a read of the weights. A guess that says otherwise keeps drafts from being made, and the
// times of more rows from being measured.
TEST(DraftLength, BeginsOnAGpuWithTheFirstSteps) {
  const HardwareSpeed guess = first_guess({DeviceKind::kCuda, 0});
  for (const int sequences : {1, 4, 16}) {
    Machine machine = gpu(sequences, 0);
    machine.guess = guess.bytes_per_second / machine.bytes_per_second;
    machine.flops_guess = guess.flops_per_second / machine.flops_per_second / machine.guess;
    const double speed = simulate(machine, always(0.7), -1, 5, 4, 200).speed();
    EXPECT_GE(speed, 0.9 * best_fixed(machine, always(0.7))) << sequences;
  }
}

// A small model in the caches of a CPU, where rows are computed one by one while the roofline believes that they are
// free: the time without drafts is measured before drafts are believed to be better.
TEST(DraftLength, FewStepsTellThatRowsAreNotFree) {
  for (const int sequences : {1, 2, 3, 8}) {
    Machine machine = cpu(sequences, 1);
    machine.target = dense(5e6, 1.5e6, 2, 1e6, 2e3);
    machine.draft_pass = dense(1e6, 1.5e6, 1, 0, 2e3);
    machine.bytes_per_second = 200e9;  // ten times what was guessed
    machine.flops_per_second = 12e9;   // an eighth of it
    machine.guess = 0.1;
    machine.flops_guess = 80;
    machine.launch_seconds = machine.pass_seconds = 0;
    machine.context = 50;
    const double none = simulate(machine, always(0.6), 0, 5, 4, 1).speed();
    EXPECT_GE(simulate(machine, always(0.6), -1, 5, 4, 300).speed(), 0.98 * none) << sequences;
  }
}

// Other programs take the processor now and then: what seems to be gained is chance, as every row costs its time.
TEST(DraftLength, ScatteredTimesAreNoGain) {
  Machine machine = cpu(16, 1);
  machine.flops_per_second = 20e9;
  machine.flops_guess = 15;
  const double none = simulate(machine, always(0.55), 0, 5, 4, 1).speed();
  double speed = 0;
  constexpr uint32_t kSeeds = 100;  // it differs by more than what is left to the bound
  for (uint32_t seed = 1; seed <= kSeeds; ++seed) {
    std::mt19937 random(seed);
    speed += simulate(machine, always(0.55), -1, seed, 4, 2000,
                      [&](int, int64_t) { return random() % 3 == 0   ? 1.0
                                                 : random() % 2 == 0 ? 1.5
                                                                     : 2.0; })
                 .speed() /
             kSeeds;
  }
  EXPECT_GE(speed, 0.985 * none);
}

// The time without drafts was measured while another program ran. Drafts cost more than they bring, and it must not
// take long to find out.
TEST(DraftLength, AStaleTimeWithoutDraftsIsFound) {
  Machine machine = cpu(4, 1);
  machine.flops_per_second = 20e9;  // twice the rows take twice the time
  machine.flops_guess = 15;
  const double none = simulate(machine, always(0.5), 0, 5, 4, 1).speed();
  const Outcome adaptive = simulate(machine, always(0.5), -1, 5, 4, 1000,
                                    [](int step, int64_t rows) { return step < 200 && rows == 4 ? 3.0 : 1.0; });
  EXPECT_GE(adaptive.late_speed(), 0.99 * none);
}

// However long it seemed to be, and so however expensive to measure again.
TEST(DraftLength, AVeryStaleTimeWithoutDraftsIsFoundAsSoon) {
  for (const double slower : {3.0, 10.0, 30.0}) {
    Machine machine = cpu(4, 1);
    machine.flops_per_second = 20e9;
    machine.flops_guess = 15;
    const double none = simulate(machine, always(0.5), 0, 5, 4, 1).speed();
    const Outcome adaptive = simulate(machine, always(0.5), -1, 5, 4, 200,
                                      [&](int step, int64_t rows) { return step < 20 && rows == 4 ? slower : 1.0; });
    EXPECT_GE(adaptive.late_speed(), 0.98 * none) << slower;
  }
}

// A small model in the caches of a CPU: a step without drafts right behind some with finds other things there than one
// of many in a row. If it counted, drafts that lose 3 % would seem to gain 10, for as long as they are made.
TEST(DraftLength, AStepBehindDraftsIsNoMeasureOfThoseWithout) {
  Machine machine = cpu(2, 0.1);
  machine.target = dense(5e6, 1.5e6, 2, 1e6, 2e3);
  machine.draft_pass = dense(1e6, 1.5e6, 1, 0, 2e3);
  machine.bytes_per_second = 200e9;
  machine.flops_per_second = 90e9;  // 0.144 ms for every row
  machine.flops_guess = 11;
  machine.launch_seconds = 0.36e-3;
  machine.pass_seconds = 0.08e-3;
  machine.settling = 0.1e-3;
  machine.context = 50;
  for (const double acceptance : {0.7, 0.75}) {
    const double none = simulate(machine, always(acceptance), 0, 5).speed();
    double speed = 0;
    constexpr uint32_t kSeeds = 10;
    for (uint32_t seed = 1; seed <= kSeeds; ++seed)
      speed += simulate(machine, always(acceptance), -1, seed).speed() / kSeeds;
    EXPECT_GE(speed, 0.994 * none) << acceptance;
  }
}

// A quarter of the drafts is accepted, half of what would pay: the probes bring in half of what they cost, and still
// there are fewer and fewer. When drafts become better, it is found.
TEST(DraftLength, WhatIsKnownIsMeasuredLess) {
  const Machine machine = expensive_head();
  DraftLength length(machine.target, machine.draft_pass,
                     {.most_drafts = 1, .speed = {machine.bytes_per_second, machine.flops_per_second}});
  std::mt19937 random(11);
  SequenceAcceptance sequence;
  std::vector<int> k;
  const auto drafted = [&](int steps, double acceptance) {
    int count = 0;
    for (int i = 0; i < steps; ++i) {
      length.choose(std::vector<DraftCandidate>{{&sequence, machine.context, 1, 0}}, false, k);
      StepShape step, pass;
      step.add(1 + k[0], machine.context, 1 + k[0]);
      length.observe_step(step, machine.step_seconds(step), length.measures_plain());
      if (k[0] == 0) continue;
      ++count;
      pass.add(1, machine.context, 1);
      length.observe_drafting({&pass, 1}, machine.drafting_seconds({pass}));
      length.observe_drafts(sequence, 1, static_cast<double>(random()) * 0x1p-32 < acceptance ? 1 : 0);
    }
    return count;
  };
  const int early = drafted(10000, 0.25);
  drafted(30000, 0.25);
  const int late = drafted(10000, 0.25);
  EXPECT_GE(late, 1);
  EXPECT_LE(late, early / 3);
  drafted(4000, 0.95);
  EXPECT_GE(drafted(500, 0.95), 450);
}

// Entries that no draft waits for are written while drafts pay, else now and then, and hardly ever where none is ever
// accepted, however much longer they take than their shapes tell.
TEST(DraftLength, EntriesAreWrittenWhereDraftsPay) {
  for (const auto& [acceptance, longer] : {std::pair(0.0, 1), {0.0, 20}, {0.9, 1}}) {
    const Machine machine = cpu(1, 1);
    DraftLength length(machine.target, machine.draft_pass,
                       {.speed = {machine.bytes_per_second, machine.flops_per_second}});
    StepShape prompt;
    prompt.add(100, 50, 0);
    EXPECT_TRUE(length.fills(prompt)) << "nothing was decided yet";
    SequenceAcceptance sequence;
    std::vector<int> k;
    double seconds = 0, filling = 0;
    int filled = 0;
    for (int i = 0; i < (acceptance > 0 ? 4000 : 200000); ++i) {
      length.choose(std::vector<DraftCandidate>{{&sequence, machine.context, 4, 0}}, false, k);
      StepShape step;
      step.add(1 + k[0], machine.context, 1 + k[0]);
      length.observe_step(step, machine.step_seconds(step), length.measures_plain());
      if (k[0] > 0) length.observe_drafts(sequence, k[0], acceptance > 0 ? k[0] : 0);
      const bool fills = length.fills(prompt);
      const double took = longer * length.drafting_seconds({&prompt, 1});
      if (fills) length.observe_filling(took);
      if (i < (acceptance > 0 ? 100 : 100000)) continue;
      seconds += machine.step_seconds(step);
      if (!fills) continue;
      ++filled;
      filling += took;
    }
    if (acceptance > 0) {
      EXPECT_GE(filled, 3890);  // but for trials
    } else {
      EXPECT_GE(filled, 1);
      EXPECT_LE(filling, 0.0002 * seconds);
    }
  }
}

TEST(DraftLength, FollowsAnAcceptanceThatChanges) {
  for (const Machine& machine : {cpu(1, 1), cpu(4, 1), gpu(32, 1), moe(1, 1)})
    for (const auto& [before, after] : {std::pair{0.9, 0.0}, {0.0, 0.9}, {0.3, 0.8}}) {
      const Outcome adaptive = simulate(
          machine, [=](int, int step, int) { return step < 1000 ? before : after; }, -1, 6, 4, 4000);
      const double none = simulate(machine, always(0), 0, 6, 4, 1).speed();
      EXPECT_GE(adaptive.speed(), 0.995 * none) << machine.name << " " << before << " to " << after;
      EXPECT_GE(adaptive.late_speed(), 0.97 * best_fixed(machine, always(after)))
          << machine.name << " " << before << " to " << after;
    }
}

TEST(DraftLength, SequencesOfOneBatchGetTheirOwnLengths) {
  const auto truth = [](int b, int, int) { return b == 0 ? 0.9 : 0.1; };
  for (const Machine& machine : {moe(4, 1), moe(8, 0.8)}) {
    const Outcome adaptive = simulate(machine, truth, -1, 7);
    EXPECT_GE(adaptive.mean_k[0], 1.5) << machine.name;
    for (size_t b = 1; b < adaptive.mean_k.size(); ++b) EXPECT_LE(adaptive.mean_k[b], 0.3) << machine.name << " " << b;
    EXPECT_GE(adaptive.late_speed(), 1.03 * best_fixed(machine, truth)) << machine.name;
  }
}

TEST(DraftLength, ASequenceThatBecomesGoodIsFoundAmongMany) {
  double mean_k = 0;
  constexpr uint32_t kSeeds = 20;
  for (uint32_t seed = 1; seed <= kSeeds; ++seed)
    mean_k +=
        simulate(
            moe(16, 0.8), [](int b, int step, int) { return b == 0 && step >= 500 ? 0.9 : 0.1; }, -1, seed, 4, 3000)
            .mean_k[0] /
        kSeeds;
  EXPECT_GE(mean_k, 2) << "half of what it may have";
}

TEST(DraftLength, FreeDraftsAreAllTaken) {
  Machine machine = gpu(4, 1);
  machine.draft_pass = {};
  const Outcome adaptive = simulate(machine, always(0.6), -1, 8, kMostDraftPositions);
  for (const double mean_k : adaptive.mean_k) EXPECT_GE(mean_k, 7);
}

// How long a draft pass takes is guessed, far too short, until it was measured: by a probe of one sequence, not by
// a trial of all.
TEST(DraftLength, ProbesOfManyAreComeToByDoubling) {
  Machine machine = cpu(8, 1);
  machine.draft_pass = dense(300e6, 1e6, 0.3, 0, 2e3);
  DraftLength length(machine.target, machine.draft_pass,
                     {.most_drafts = 1, .speed = {machine.bytes_per_second, 1000 * machine.flops_per_second}});
  std::vector<SequenceAcceptance> sequences(8);
  std::vector<DraftCandidate> candidates;
  for (SequenceAcceptance& sequence : sequences) {
    for (int i = 0; i < 100; ++i) length.observe_drafts(sequence, 1, 0);
    candidates.push_back({&sequence, machine.context, 1, 60});
  }
  std::vector<int> k;
  int most = 0;
  for (int i = 0; i < 20000; ++i) {
    length.choose(candidates, false, k);
    StepShape step, pass;
    for (const int drafts : k) {
      step.add(1 + drafts, machine.context, 1 + drafts);
      if (drafts > 0) pass.add(61, machine.context, 1);
    }
    length.observe_step(step, machine.step_seconds(step), length.measures_plain());
    const auto probed = std::accumulate(k.begin(), k.end(), 0);
    ASSERT_LE(probed, std::max(1, 2 * most));
    most = std::max(most, probed);
    if (probed > 0) length.observe_drafting({&pass, 1}, machine.drafting_seconds({pass}));
    for (size_t b = 0; b < k.size(); ++b)
      if (k[b] > 0) length.observe_drafts(sequences[b], 1, 0);
  }
  EXPECT_EQ(most, 8);
}

// Drafts gain by themselves, but while they are made all prompts go through the drafter as well, and long ones take
// more than that.
TEST(DraftLength, EntriesOfPromptsCountAgainstDrafts) {
  const Machine machine = cpu(1, 1);
  for (const int64_t prompt_rows : {10, 2000}) {
    DraftLength length(machine.target, machine.draft_pass,
                       {.most_drafts = 1, .speed = {machine.bytes_per_second, machine.flops_per_second}});
    measure(length, 1, machine.context);
    StepShape prompt;
    prompt.add(prompt_rows, prompt_rows, 0);
    SequenceAcceptance sequence;
    std::vector<int> k;
    int filled = 0;
    for (int i = 0; i < 4000; ++i) {
      length.choose(std::vector<DraftCandidate>{{&sequence, machine.context, 1, 0}}, false, k);
      if (k[0] > 0) length.observe_drafts(sequence, 1, i % 2);
      if (i % 3 == 0 && length.fills(prompt) && i >= 2000) ++filled;
    }
    if (prompt_rows == 10)
      EXPECT_GE(filled, 600);
    else
      EXPECT_LE(filled, 60);
  }
}

TEST(DraftLength, TheSameCallsGiveTheSameChoices) {
  const Outcome a = simulate(moe(4, 0.8), always(0.6), -1, 10, 4, 500),
                b = simulate(moe(4, 0.8), always(0.6), -1, 10, 4, 500);
  EXPECT_EQ(a.tokens, b.tokens);
  EXPECT_EQ(a.seconds, b.seconds);
}

}  // namespace
}  // namespace calandra

#include "engine/draft_acceptance.h"

#include <algorithm>

#include "base/check.h"

namespace calandra {
namespace {

constexpr double kFirstMean = 0.7;       // of the first draft, before anything was seen
constexpr double kDecline = 0.9;         // of each further one, relative to the one before
constexpr double kMeanStrength = 8;      // trials that these stand for
constexpr double kSequenceStrength = 8;  // trials of a new sequence that the means stand for
constexpr double kKeepMeans = 0.995;     // of older trials, at a new one: some 200 count
constexpr double kKeep = 0.98;           // the same of one sequence: some 50
constexpr double kKeepUntried = 0.99;    // of a sequence's trials, per step without a draft there,
constexpr double kLeastTrials = 4;       // down to so many
constexpr double kKeepMeansUntried = 0.998;
constexpr double kMostProbability = 0.99;

// Positions that got no draft lose weight, not below `least`.
void lose_weight(double& tried, double& accepted, double keep, double least) {
  if (tried <= least) return;
  const double left = std::max(least, keep * tried);
  accepted *= left / tried;
  tried = left;
}

}  // namespace

DraftAcceptance::DraftAcceptance() { update_means(); }

void DraftAcceptance::observe(SequenceAcceptance& sequence, int drafted, int accepted) {
  CHECK_LE(0, accepted);
  CHECK_LE(accepted, drafted);
  CHECK_LE(drafted, kMostDraftPositions);
  const PerPosition expected = estimate(sequence);
  for (int j = 0; j < std::min(drafted, accepted + 1); ++j) {
    const double success = j < accepted ? 1 : 0;
    if (sequence.tried[j] == 0) {
      sequence.tried[j] = kSequenceStrength;
      sequence.accepted[j] = kSequenceStrength * expected[j];
    }
    sequence.tried[j] = kKeep * sequence.tried[j] + 1;
    sequence.accepted[j] = kKeep * sequence.accepted[j] + success;
    tried_[j] = kKeepMeans * tried_[j] + 1;
    accepted_[j] = kKeepMeans * accepted_[j] + success;
  }
  update_means();
}

void DraftAcceptance::update_means() {
  for (int j = 0; j < kMostDraftPositions; ++j) {
    const double expected = j == 0 ? kFirstMean : means_[j - 1] * kDecline;
    means_[j] = (accepted_[j] + kMeanStrength * expected) / (tried_[j] + kMeanStrength);
  }
}

void DraftAcceptance::age(SequenceAcceptance& sequence, int drafts) {
  sequence.idle_steps = drafts > 0 ? 0 : sequence.idle_steps + 1;
  for (int j = drafts; j < kMostDraftPositions; ++j) {
    lose_weight(sequence.tried[j], sequence.accepted[j], kKeepUntried, kLeastTrials);
    if (j > 0 && sequence.tried[j] <= kLeastTrials) sequence.tried[j] = sequence.accepted[j] = 0;
  }
}

void DraftAcceptance::age_means(int drafts) {
  for (int j = std::max(1, drafts); j < kMostDraftPositions; ++j)
    lose_weight(tried_[j], accepted_[j], kKeepMeansUntried, kMeanStrength);
  update_means();
}

// A position of which nothing is known is expected to differ from the mean of all as the position before does.
PerPosition DraftAcceptance::estimate(const SequenceAcceptance& sequence) const {
  PerPosition probabilities;
  double relative = 1;  // to the mean of all, at the position before
  for (int j = 0; j < kMostDraftPositions; ++j) {
    const double known = sequence.tried[j] > 0 ? sequence.accepted[j] / sequence.tried[j] : relative * means_[j];
    probabilities[j] = std::min(kMostProbability, known);
    relative = probabilities[j] / means_[j];
  }
  return probabilities;
}

}  // namespace calandra

// Running estimates of how often the j-th draft is accepted, given that those before it were: per sequence, starting
// from the mean over all sequences.
#pragma once

#include <array>
#include <cstdint>

namespace calandra {

constexpr int kMostDraftPositions = 8;
using PerPosition = std::array<double, kMostDraftPositions>;

// Of one sequence; kept with it, from its first step to its last.
struct SequenceAcceptance {
  PerPosition tried = {};     // trials per position, older ones counting less; 0: nothing known
  PerPosition accepted = {};  // of those
  int64_t idle_steps = 0;     // since its last draft
  // Of DraftLength: what was paid for the probe under way (0: none), and whether the last one was accepted.
  double probe_seconds = 0;
  bool probe_succeeded = false;
};

class DraftAcceptance {
 public:
  DraftAcceptance();

  // The result of one sequence's step: the first `accepted` of `drafted` drafts. A draft behind a refused one was not
  // tried.
  void observe(SequenceAcceptance& sequence, int drafted, int accepted);
  // A step in which the sequence gets `drafts`: what is known of further positions ages. First drafts keep their ratio,
  // as probes tell when it changes; others are forgotten in the end, so that bad luck does not last.
  void age(SequenceAcceptance& sequence, int drafts);
  // The same for the means over all, but not of first drafts; `drafts` are the most of any sequence.
  void age_means(int drafts);

  // Estimated probabilities in (0, 1), each given the positions before.
  PerPosition estimate(const SequenceAcceptance& sequence) const;

 private:
  void update_means();

  PerPosition tried_ = {}, accepted_ = {};  // of all sequences
  PerPosition means_;
};

}  // namespace calandra

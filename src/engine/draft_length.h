// How many drafts each sequence gets in the next step: as many as give the most expected tokens per second.
//
// A draft at position j of a sequence counts if it and all before it are accepted; that probability is what it gains.
// What it costs is a row more of the step that verifies it, and a row of the j-th draft pass. Ranked by gain, the best
// drafts of all sequences are taken for as long as tokens per second grow; no drafts at all is always a candidate.
// For a bounded share of time, sequences without drafts are probed, since acceptance changes, and other numbers of
// drafts are tried, since times do. The longer no drafts are best the smaller is the share for probes, whatever they
// bring in; and a choice of no drafts stands for a few steps. The time without drafts, which all is compared with, is
// measured before. A step without, right behind one with drafts, takes longer than the next ones of its kind: of a
// small model on a processor 12 %, and 1 % after four. So such steps are no measure.
//
// Steps that also read prompts are decided as if they did not: what a draft saves is a row of a later step, and what it
// costs beside a prompt is not known better. Their times teach nothing, as rows of prompts are cheaper.
//
// Nothing here reads a clock or draws a number: the same calls give the same choices.
#pragma once

#include <cstdint>
#include <optional>
#include <span>
#include <vector>

#include "engine/draft_acceptance.h"
#include "engine/draft_time.h"

namespace calandra {

struct DraftLengthOptions {
  int most_drafts = 4;   // per sequence, at most kMostDraftPositions
  bool adaptive = true;  // false: always as many as a candidate may have
  HardwareSpeed speed;   // first guess; measured durations correct it
};

// A decoding sequence of the next step.
struct DraftCandidate {
  SequenceAcceptance* acceptance = nullptr;
  int64_t context = 0;        // keys that its rows see
  int most_drafts = 0;        // fewer near max_tokens, or when an n-gram drafter has no more
  int64_t catch_up_rows = 0;  // drafter entries that its first draft pass must write before
};

class DraftLength {
 public:
  // `draft_pass` is one pass of the drafter, its output head included: all zeros when drafts cost nothing (n-grams).
  DraftLength(const StepCost& target, const StepCost& draft_pass, const DraftLengthOptions& options);

  // Drafts of each candidate in k. `reads_prompts`: the step has other rows too, and its time will not be observed.
  void choose(std::span<const DraftCandidate> candidates, bool reads_prompts, std::vector<int>& k);

  // Whether entries of the drafter that no draft waits for are to be written, in a pass like this: while drafts are
  // made, and else for a bounded share of time, so that some sequences show what drafts would be worth; a small one
  // once it is known that they do not pay.
  bool fills(const StepShape& pass);
  // How long the host took over the passes since fills() said so; nothing, if that is no measure. On a device it is
  // most of their time, as they are launched one by one, and more than their shapes tell.
  void observe_filling(std::optional<double> seconds);

  // Whether a step that also reads prompts is to keep rows for drafts, which the prompts then lack: while there were
  // drafts lately, and now and then where no other steps show what they would be worth.
  bool wants_room() const;

  // The last choice was no drafts, only to measure how long that takes. Not of the steps that are let go by before.
  bool measures_plain() const { return measuring_plain_; }
  // Measured: a step of the target that reads no prompts, from its launch to its tokens, without drafting; and all
  // draft passes after a step. `plain`: it was chosen to be measured.
  void observe_step(const StepShape& shape, double seconds, bool plain);
  void observe_drafting(std::span<const StepShape> passes, double seconds);
  // The first `accepted` of `drafted` > 0 drafts of a sequence were accepted.
  void observe_drafts(SequenceAcceptance& sequence, int drafted, int accepted);

  // Predictions, for metrics.
  double step_seconds(const StepShape& shape) const;
  double drafting_seconds(std::span<const StepShape> passes) const;
  const DraftAcceptance& acceptance() const { return acceptance_; }

 private:
  // One draft that could be made.
  struct Draft {
    double gain;  // probability that it counts
    int32_t candidate;
    int32_t position;  // from 0
  };
  // A step and the draft passes for it.
  struct Plan {
    StepShape step;
    std::vector<StepShape> passes;
    double tokens = 0;  // expected
  };
  void begin(std::span<const DraftCandidate> candidates);
  bool stands(std::span<const DraftCandidate> candidates, bool reads_prompts);
  void age(std::span<const DraftCandidate> candidates, const std::vector<int>& k);
  void add(Plan& plan, const DraftCandidate& candidate, const Draft& draft) const;
  double seconds(const Plan& plan) const;
  void rank(std::span<const DraftCandidate> candidates);
  bool reaches_pass(int64_t rows) const;
  void pay_for_filling(double seconds);
  double doubt(int64_t rows) const;
  void choose_best(std::span<const DraftCandidate> candidates, std::vector<int>& k);
  bool measure_plain();
  bool try_another(std::span<const DraftCandidate> candidates, std::vector<int>& k);
  void probe(std::span<const DraftCandidate> candidates, std::vector<int>& k);
  void pay_for_probes(std::span<const DraftCandidate> candidates, std::span<const int32_t> probes, bool on_credit,
                      std::vector<int>& k);

  StepCost target_, draft_pass_;
  DraftLengthOptions options_;
  TimeCorrection step_correction_, drafting_correction_;
  DraftAcceptance acceptance_;
  bool drafting_ = false;         // the last choice had drafts
  bool decided_ = false;          // there was one
  int stands_ = 0;                // steps that it may stand for, if they all read prompts
  int64_t idle_sequences_ = 0;    // of the last step,
  int64_t idle_drafts_ = 0;       // and how many drafts they could have had
  double plain_saved_ = 0;        // seconds saved up for steps without drafts; less than 0: owed
  int plain_steps_ = 0;           // such steps to come, in a row
  int plain_again_ = 0;           // measured steps so far that were faster than predicted, in a row
  int settling_ = 0;              // steps without drafts to come that tell nothing, so soon behind some with
  bool measuring_plain_ = false;  // in the last choice
  int64_t drafted_steps_ = 0;     // since drafts began
  int64_t next_plain_ = 0;        // how many of them there are before a step without
  int64_t since_drafts_ = 0;      // choices since the last one with drafts,
  int64_t without_room_ = 0;      // and how many of the last ones could have none
  double fill_seconds_ = 0;       // saved up for entries that no draft waits for
  double filling_seconds_ = 0;    // predicted of those that were not measured yet
  double entry_seconds_ = 0;      // what they took while drafts were made,
  double drafted_seconds_ = 0;    // of so much time
  double probe_seconds_ = 0;      // saved up for probes
  double interest_ = 0.25;        // in both: 1 while drafts are made, less with every probe after which none are
  double trial_seconds_ = 0;      // saved up for other numbers of drafts
  int next_trial_ = 1;            // drafts of each sequence
  double plain_seconds_ = 0;      // of the step at hand without drafts
  double token_seconds_ = 0;      // of one token without drafts

  Plan plain_, chosen_, plan_;  // scratch, kept for its memory
  std::vector<Draft> drafts_;
  std::vector<int32_t> idle_;
};

}  // namespace calandra

// Speculator: drafts for the choices that decode, by MTP layers or by prompt lookup, and how many for whom.
//
// A draft is what the sampler would choose from the drafter's logits for this choice at this place: same parameters,
// same noise, same penalties over the tokens and the drafts before. So it depends on nothing but the tokens, the seed
// and the choice, and it is accepted whenever drafter and target agree well enough.
#pragma once

#include <optional>
#include <span>
#include <vector>

#include "engine/clock.h"
#include "engine/draft_length.h"
#include "engine/sampling_row.h"
#include "engine/scheduler.h"
#include "engine/speculative_config.h"

namespace calandra {

class Speculator {
 public:
  // With the method "mtp" the model must have a drafter, and the runner keep hidden rows. All must outlive the
  // speculator.
  Speculator(ModelRunner& runner, const SpeculativeConfig& config, const HardwareSpeed& speed,
             const SamplingContext& context, const Clock& clock);

  // The most drafts of a choice.
  int most_drafts() const { return config_.num_speculative_tokens; }
  // Chooses how many drafts each planned choice gets, and makes them: Choice::drafts.
  void draft(std::span<const Scheduler::Planned> step);
  // Writes the MTP entries [mtp_end, computed) of choices, as far as their hidden rows are there and drafts pay.
  void complete_entries(std::span<Choice* const> choices);
  // The first `accepted` of the choice's drafts were.
  void observe(Choice& choice, int accepted);
  // How long a step took, from its launch to its tokens.
  void observe_step(const StepShape& shape, double seconds) { length_.observe_step(shape, seconds); }

  const DraftLength& length() const { return length_; }

 private:
  // Entries [begin, end) of a choice to be written from true hidden rows.
  struct Entries {
    Choice* choice;
    int64_t begin, end;
  };
  bool uses_mtp() const { return config_.method == DraftMethod::kMtp; }
  void look_up(Choice& choice, int most);
  void run_drafter();
  Entries entries_of(Choice& choice, int64_t end);
  Tensor write(std::span<const Entries> entries, int64_t rows);
  void choose_drafts(const Tensor& hidden);

  ModelRunner& runner_;
  SpeculativeConfig config_;
  const SamplingContext& context_;
  const Clock& clock_;
  const uint64_t hash_seed_;  // of the n-gram tables; no client knows it
  DraftLength length_;

  // Of one step; kept for their memory.
  std::vector<DraftCandidate> candidates_;
  std::vector<Choice*> choices_;  // of the candidates
  std::vector<int> k_;            // drafts each of them gets
  struct Drafting {
    Choice* choice;
    int k;
    int32_t row;  // of the last pass
  };
  std::vector<Drafting> drafting_;
  std::vector<Entries> entries_;
  std::vector<ModelRunner::DraftPart> parts_;
  std::vector<ModelRunner::HiddenRows> hidden_;
  std::vector<int32_t> rows_;
  std::vector<Choice*> sampling_;  // of each row
  std::vector<StepShape> passes_;
  ops::SamplingBatch batch_;
  ops::SamplingResult result_;
};

}  // namespace calandra

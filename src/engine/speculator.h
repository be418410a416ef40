// Speculator: drafts for the choices that decode, by MTP layers or by prompt lookup, and how many for whom.
//
// A draft is what the sampler would choose from the drafter's logits for this choice at this place: same parameters,
// same noise, same penalties over the tokens and the drafts before. So it depends on nothing but the tokens, the seed
// and the choice, and it is accepted whenever drafter and target agree well enough.
//
// On a device with a stream the host need not wait for one draft before it starts the pass for the next, nor for the
// last one before the step is launched: the device reads them where its sampler put them. A row of the sampler that
// depends on the drafts before it (reads_drafts) is made when the host has read them, while the next pass runs.
#pragma once

#include <array>
#include <functional>
#include <optional>
#include <span>
#include <utility>
#include <vector>

#include "engine/draft_length.h"
#include "engine/sampling_row.h"
#include "engine/scheduler.h"
#include "engine/speculative_config.h"
#include "engine/step_timer.h"

namespace calandra {

// A choice of a step whose tokens the host does not know yet, and what the step behind it gets (LookAhead).
struct AheadMember {
  Choice* choice;               // null: it left
  int32_t sampled;              // row of the sampler for its last known token; those of its drafts follow
  int64_t verified;             // drafts of the step
  int most_drafts;              // that the step behind may have,
  int k = 0;                    // and has
  int64_t entry_row = 0;        // ModelRunner::VerifiedPart
  size_t stop_begin, stop_end;  // of LookAhead's stop ids
};

class Speculator {
 public:
  // With the method "mtp" the model must have a drafter, and the runner keep hidden rows. `chains`: drafts stay on the
  // device until finish(), where it has a stream. All must outlive the speculator.
  Speculator(ModelRunner& runner, const SpeculativeConfig& config, const SamplingContext& context, const Clock& clock,
             bool chains);

  // Whether a step that also reads prompts is to leave rows to drafts.
  bool wants_room() const { return length_.wants_room(); }
  // The most drafts of a choice.
  int most_drafts() const { return config_.num_speculative_tokens; }
  // Chooses how many drafts each planned choice gets, and makes them: Choice::drafts, or drafts_at.
  void draft(std::span<const Scheduler::Planned> step);
  // After the step was launched: waits for drafts of which drafts_at was told. False: there are none.
  bool finish();
  // Writes the MTP entries [mtp_end, computed) of choices, as far as their hidden rows are there and drafts pay.
  // `before_pass` is called before the first pass, if there is one.
  void complete_entries(std::span<Choice* const> choices, const std::function<void()>& before_pass = {});
  // The first `accepted` of the choice's drafts were.
  void observe(Choice& choice, int accepted);
  // How long a step took, from its launch to its tokens.
  void observe_step(const StepShape& shape, double seconds) { length_.observe_step(shape, seconds, plain_); }

  // Drafts for the step behind one whose tokens the host does not know yet, of chains only.
  // Chooses how many drafts each member gets, and puts those with most first. False: somebody is to get drafts that
  // depend on those tokens; draft() makes them then, at most as many as were chosen here.
  bool choose_ahead(std::span<AheadMember> members);
  // After accept_ahead: starts them, for Choice::ahead_drafts_at. False: the device does not do it.
  bool draft_ahead(std::span<const AheadMember> members);
  // The device turns to them about now.
  void start_ahead() { timer_.start(); }
  // Waits for them, when the step that they are for begins. False: there are none.
  bool begin_ahead();
  // Waits for them, and nobody gets them.
  void drop_ahead();
  // This choice does not.
  void drop_ahead(const Choice& choice);

  const DraftLength& length() const { return length_; }

 private:
  // Ids of tokens that only the device knows.
  static constexpr std::array<int32_t, kMostDraftPositions> kZeros{};
  static constexpr std::span<const int32_t> kUnknown = kZeros;
  // Entries [begin, end) of a choice to be written from true hidden rows.
  struct Entries {
    Choice* choice;
    int64_t begin, end;
  };
  // Rows of the sampler for the drafts at one position.
  struct Drafts {
    std::vector<Choice*> choices;  // of each row
    ops::SamplingBatch batch;
    void clear(std::span<const int32_t> token_ids);
  };
  bool uses_mtp() const { return config_.method == DraftMethod::kMtp; }
  // Are the sampler's rows for drafts of this choice the same whatever the tokens before them are?
  bool can_draft_ahead(const Choice& choice) const;
  void look_up(Choice& choice, int most);
  void run_drafter();
  Entries entries_of(Choice& choice, int64_t end);
  Tensor write(std::span<const Entries> entries, int64_t rows);
  void choose_drafts(const Tensor& hidden, int64_t pass);
  void start_drafts(const Tensor& hidden, int64_t pass);
  void take_drafts(const Drafts& drafts, int64_t position);
  void read_started();
  void observe_drafting();

  ModelRunner& runner_;
  SpeculativeConfig config_;
  const SamplingContext& context_;
  const uint64_t hash_seed_;  // of the n-gram tables; no client knows it
  const bool chains_;
  DraftLength length_;

  // Of one step; kept for their memory.
  std::vector<DraftCandidate> candidates_;
  std::vector<Choice*> choices_;  // of the candidates
  std::vector<int> k_;            // drafts each of them gets
  // What choose_ahead chose when it said no, until the next draft(), by address; a choice may have gone meanwhile.
  using ChosenAhead = std::pair<const Choice*, int>;
  std::vector<ChosenAhead> chosen_ahead_;
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
  std::array<Drafts, kMostDraftPositions> sampling_;
  bool chained_ = false;                      // of the step at hand: drafts stay on the device
  size_t started_ = 0;                        // positions whose drafts were started,
  size_t read_ = 0;                           // and read
  StepTimer timer_;                           // of the passes
  StepTimer entry_timer_;                     // of those of complete_entries
  bool plain_ = false, plain_ahead_ = false;  // DraftLength::measures_plain of the step at hand, and the one behind
  std::vector<int32_t> tokens_, tokens_at_;   // of the entries of a pass ahead
  std::vector<StepShape> passes_;
  ops::SamplingResult result_;
};

}  // namespace calandra

// LookAhead: launches the forward of the next step before the host has read the tokens of this one, so that a device
// with a stream works while the host takes tokens, streams text and builds the sampler's rows.
//
//   host     [start sample N][launch N+1][wait for sample N][take tokens N][rows N+1][start sample N+1] ...
//   device    sample N        drafts and forward N+1 ...............................  sample N+1 ...
//
// How many drafts each sequence keeps, with which token it goes on, and whether that ends it, the device finds out from
// what sample N chose. What is launched behind was built for none kept, and is moved by their number
// (ops::complete_batch); its pages are there for the most. Only the target's sampler waits for the host, so every
// sampling parameter, grammar, penalty and logits processor works as ever, and no token changes. How drafts are made
// ahead: draft_ahead.cc.
//
// A step can be launched ahead when all that it does is known: every running choice decodes and gets one more row and
// drafts, nobody who waits could start, pages are there without preempting anybody, and nobody leaves a checkpoint at
// this place. With a drafter, nobody gets a draft whose row of the sampler depends on which tokens stand before it
// (can_draft_ahead), and the ring has the hidden rows of more than one step. Steps with more rows than one block of
// logits has, and drafts by prompt lookup, which the host does, are not launched ahead; nor is a step whose drafts the
// device cannot sample.
// Whoever surely ends by its length gets no row. Between the steps choices may still end:
//   - by a stop id, by its length or for want of a token: the device finds that out too, and the row is inactive. The
//     state is the one before the row, and becomes the finish checkpoint as ever. The first draft pass has written the
//     entries of the drafts it kept; who got no draft has his written by a pass of its own, and the hidden rows of the
//     launched step are set aside for it.
//   - by a stop string, a repetition or a cancel, by a stop id behind drafts that first bring it to its min_tokens, by
//     its form before these, or they are sent back to the queue: the slot has taken a token more than the host has
//     results of. The row's result is dropped, and the slot becomes no checkpoint.
// The pages and slots that they give back are written by later steps only, which the stream keeps behind this one.
// While a step is launched the scheduler does not run: a request that comes waits for its end.
//
// The hidden rows of a launched step go into the ring behind it, at places that the device finds; the host knows them
// when it begins. An adaptive number of drafts is chosen without what the step at hand shows: acceptance and times are
// those of one step earlier.
#pragma once

#include <optional>
#include <span>
#include <vector>

#include "engine/speculator.h"

namespace calandra {

class LookAhead {
 public:
  // `speculator` may be null. All must outlive it.
  LookAhead(ModelRunner& runner, Scheduler& scheduler, Speculator* speculator, std::span<const int32_t> eos_token_ids,
            const Clock& clock);

  // ModelRunner::sample for all rows of a step, and launches the next one in between, if it can.
  void sample(std::span<const Scheduler::Planned> step, const Tensor& logits, const ops::SamplingBatch& batch,
              ops::SamplingResult& result);
  // A choice has taken its tokens, and kept so many drafts. False: no step was launched for it, so the device has yet
  // to hear of it.
  bool took(Choice& choice, int accepted);
  // After that: it ended with `token`, -1: there was none.
  void ended(Choice& choice, int32_t token);
  // A choice is taken out of the engine, or of those that run.
  void drop(Choice& choice);

  // The step that was launched, without those that left it meanwhile; empty: there is none. It counts as begun then.
  // Valid until the step after the next begins.
  struct Launched {
    Tensor hidden;
    std::vector<Scheduler::Planned> plan;
    std::vector<int64_t> rows;  // of hidden, of each of the plan
    StepShape shape;
    std::optional<double> seconds() const { return timer.seconds(); }  // so far; nothing: it is no measure
    StepTimer timer;
  };
  Launched& begin();
  // A step was launched and has not begun.
  bool pending() const { return !members_.empty(); }
  // Before a pass of the drafter while it is pending: that would overwrite its hidden rows.
  void set_aside() { hidden_ = runner_.set_aside(hidden_); }

 private:
  static constexpr int kFlight = 0;  // of ops::start_sample; drafts have the others
  bool plan(std::span<const Scheduler::Planned> step, size_t sampling_rows);
  void launch();
  AheadMember* find(const Choice& choice);
  void forget(AheadMember& member);

  ModelRunner& runner_;
  Scheduler& scheduler_;
  Speculator* speculator_;
  const std::span<const int32_t> eos_token_ids_;
  std::vector<AheadMember> members_;  // of the step that is planned or launched, in the order of its rows
  std::vector<int32_t> stop_ids_;
  std::vector<ModelRunner::VerifiedPart> verified_;
  std::vector<ModelRunner::AheadPart> parts_;
  Tensor hidden_;
  StepTimer timer_;  // of the step that is launched, as is its shape
  StepShape shape_;
  Launched begun_;
};

}  // namespace calandra

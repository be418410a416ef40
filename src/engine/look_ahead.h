// LookAhead: launches the forward of the next step before the host has read the tokens of this one, so that a device
// with a stream works while the host takes tokens, streams text and builds the sampler's rows.
//
//   host     [start sample N][launch forward N+1][wait for sample N][take tokens N, rows of N+1][start sample N+1] ...
//   device    sample N        forward N+1 .........................................             sample N+1  forward N+2
//
// The token ids of forward N+1 are read on the device from what sample N chose (ops::next_tokens). Only its sampler
// waits for the host, so every sampling parameter, grammar, penalty and logits processor works as ever, and no token
// changes.
//
// A step can be launched ahead when all that it does is known: every running choice decodes and gets one more row, no
// draft is made, nobody who waits could start, pages are there without preempting anybody, and nobody leaves a
// checkpoint at this place. Whoever ends by its length gets no row. Between the steps choices may still end:
//   - by a stop id, or for want of a token: the device finds that out too, and the row is inactive. The state is the
//     one before the row, and becomes the finish checkpoint as ever.
//   - by a stop string, a repetition or a cancel, or they are sent back to the queue: the slot has taken a token more
//     than the host has results of. The row's result is dropped, and the slot becomes no checkpoint.
// The pages and slots that they give back are written by later steps only, which the stream keeps behind this one.
// While a step is launched the scheduler does not run: a request that comes waits for its end.
//
// Steps with more rows than one block of logits has are not launched ahead, nor are steps with drafts. Of those the
// device goes on by itself from pass to pass and into the step (Speculator), and waits while the host takes the tokens,
// plans, and builds the first pass. To launch that before the tokens were read would take, for members whose rows do
// not read drafts (reads_drafts), have reached min_tokens and are further from their ends than two steps can bring
// them:
//   - accept as an op behind the sampler: a = leading drafts that equal what was sampled, up to a stop id or a row
//     without a token; it writes the slot's count, and `active` and a for what follows.
//   - batches built for a = 0, with pages for the largest a, and an op that adds a to token_index, positions,
//     mtp.positions and seq_len of a sequence's rows. The first pass has as many rows of a sequence whatever a is: the
//     k + 1 entries that end with the last token, of which those below mtp_end are written again as they are, so none
//     of them may be shared. Whoever ended gets those one further down, since no later pass may write them for its
//     checkpoint; its other passes and its row of the step are inactive.
//   - hidden rows from and to places of the ring that are counted on the device; the ring holds 2k + 2 rows more.
//   - token_index of the sampler's rows for drafts as device data: the noise of a draft is that of its place.
//   - ModelRunner::accept without the upload, since the step has read the count and set it to 0, and complete_entries
//     without a pass, since that would take the workspace in which the hidden rows of the launched step lie.
//   - drafts of two steps at once in Choice: those whose tokens are taken, and those of the step that is launched.
#pragma once

#include <span>
#include <vector>

#include "engine/scheduler.h"

namespace calandra {

class LookAhead {
 public:
  // All must outlive it.
  LookAhead(ModelRunner& runner, Scheduler& scheduler, std::span<const int32_t> eos_token_ids)
      : runner_(runner), scheduler_(scheduler), eos_token_ids_(eos_token_ids) {}

  // ModelRunner::sample for all rows of a step, and launches the next one in between, if it can.
  void sample(std::span<const Scheduler::Planned> step, const Tensor& logits, const ops::SamplingBatch& batch,
              ops::SamplingResult& result);
  // A choice that ended has taken `token`, -1: there was none.
  void ended(Choice& choice, int32_t token);
  // A choice is taken out of the engine, or of those that run.
  void drop(Choice& choice);

  // The step that was launched, without those that left it meanwhile; empty: there is none. It counts as begun then.
  // Valid until the step after the next begins.
  struct Launched {
    Tensor hidden;
    std::vector<Scheduler::Planned> plan;
    std::vector<int64_t> rows;  // of hidden, of each of the plan
  };
  Launched& begin();
  // A step was launched and has not begun.
  bool pending() const { return !members_.empty(); }

 private:
  static constexpr int kFlight = 0;  // of ops::start_sample; drafts have the others
  struct Member {
    Choice* choice;  // null: it left
    int32_t sampled;
    size_t stop_begin, stop_end;  // of stop_ids_
  };
  bool plan(std::span<const Scheduler::Planned> step, size_t sampling_rows);
  void launch();
  Member* find(const Choice& choice);

  ModelRunner& runner_;
  Scheduler& scheduler_;
  const std::span<const int32_t> eos_token_ids_;
  std::vector<Member> members_;  // of the step that is planned or launched; row i is that of member i
  std::vector<int32_t> stop_ids_;
  std::vector<ModelRunner::AheadPart> parts_;
  Tensor hidden_;
  Launched begun_;
};

}  // namespace calandra

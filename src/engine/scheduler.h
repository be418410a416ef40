// Scheduler: who runs how many rows in the next step, with which pages, slots and checkpoints.
//
// There is no phase of prompts and one of decoding: every choice has known tokens that were not run yet, and a step
// hands out rows so that it catches up (vLLM's rule). Running choices come first, those that decode before those that
// still read their prompt; then waiting ones, unless a running one had to be preempted. All in order of priority and
// arrival. While others want rows too, a prompt gets at most half of what is left of the budget, so that a long one
// does not hold up those behind it; what they leave it gets as well.
//
// A choice takes the pages of all its known tokens when it starts, and more as it grows. When there are none, the least
// valuable checkpoints go, then the choice that comes last is preempted: its state becomes a checkpoint, it waits, and
// starts again from the deepest checkpoint that is left. Who was preempted often starts again only when nobody before
// it can need its pages any more.
#pragma once

#include <functional>
#include <set>
#include <span>
#include <vector>

#include "engine/choice.h"
#include "engine/model_runner.h"
#include "engine/prefix_cache.h"

namespace calandra {

enum class SchedulingPolicy { kFcfs, kPriority };

struct SchedulerOptions {
  SchedulingPolicy policy = SchedulingPolicy::kFcfs;
  int64_t checkpoint_interval = 4096;  // tokens; 0: off
  int64_t checkpoints_per_prompt = 8;
  int most_drafts = 0;  // of a choice; rows of the budget that prompts leave to them
};

class Scheduler {
 public:
  // Who was preempted so often starts again only with room for all that come before it to reach their ends.
  static constexpr int64_t kMostPreemptions = 3;

  // `cache` may be null. `complete_entries` writes the MTP entries of choices below their `computed`, before others
  // may read their pages (Speculator). All must outlive the scheduler.
  using CompleteEntries = std::function<void(std::span<Choice* const>)>;
  // `prepare` makes the inputs of a choice's next rows, and says how many of them can run in this step.
  using Prepare = std::function<int64_t(Choice& choice, int64_t rows)>;
  Scheduler(ModelRunner& runner, PrefixCache* cache, SchedulerOptions options, CompleteEntries complete_entries,
            Prepare prepare);
  ~Scheduler();

  // Queues a choice with known tokens.
  void add(Choice& choice);
  // Takes a choice out, wherever it is, and gives back what it holds. `keep`: its state becomes a checkpoint; its
  // entries must be complete.
  void remove(Choice& choice, bool keep);
  // Back to the queue; its state becomes a checkpoint.
  void preempt(Choice& choice);
  // The prompt's state becomes the source of its choices: those behind the first begin to run, or are queued when there
  // is no room. `choices` are those that have not finished; the first one of the request runs the prompt.
  void fork(Choice& prompt, std::span<Choice* const> choices);

  struct Planned {
    Choice* choice;
    int64_t rows = 0;                         // of known tokens
    int most_drafts = 0;                      // that may follow them
    std::vector<ModelRunner::Cut> cuts = {};  // states that become checkpoints
    std::vector<bool> finite = {};            // of each cut; filled in by whoever runs the step
  };
  // The next step. Empty when nobody can run. `room_for_drafts`: also beside prompts.
  std::span<Planned> schedule(bool room_for_drafts);
  // After forward: sources that were read are let go.
  void after_forward();
  // After the choices of a step took their tokens, with complete entries: states that it wrote for checkpoints enter
  // the cache, and choices that stand where one is wanted leave theirs.
  void publish(std::span<Planned> step);
  // Pages for so many tokens of a running choice, of those that are free or that checkpoints keep. False when there are
  // none: nobody is preempted.
  bool reserve(Choice& choice, int64_t tokens);
  // Of a planned choice: will publish() share its pages, once it has run `more` tokens more?
  bool will_publish(const Planned& planned, int64_t more = 0) const;
  // Rows that drafts of `decoding` choices may take, where they may have some.
  int64_t draft_budget(int64_t decoding) const;

  std::span<Choice* const> running() const { return running_; }
  int64_t waiting() const { return std::ssize(waiting_); }
  // Tokens at which a sequence ends at the latest: max_model_len, or what all pages hold.
  int64_t longest() const { return longest_; }

  struct Stats {
    int64_t preemptions = 0;
    int64_t waits_for_prefix = 0;     // a choice waited for a prefix that another one computes, in steps
    int64_t checkpoints_skipped = 0;  // no slot was free for them
  };
  const Stats& stats() const { return stats_; }

 private:
  bool wants_checkpoint(const Choice& choice) const;
  void insert(Choice& choice, int64_t P, int32_t slot);
  void leave_checkpoint(Choice& choice);
  void unpin(Choice& choice);
  std::optional<int32_t> take_slot(const Choice& choice);
  bool grow(Choice& choice, int64_t tokens);
  void drop_plan();
  void plan_step(bool room_for_drafts);
  void plan_rest(int64_t budget);
  void admit(int64_t& budget);
  bool start(Choice& choice, const PrefixMatch& match);
  bool start_from(Choice& choice, CheckpointId id);
  bool has_room_for_all(const Choice& choice) const;
  bool still_waits_for_prefix(const Choice& choice) const;
  bool waits_for_prefix(Choice& choice, const PrefixMatch& match);
  void choose_cuts(Choice& choice, const PrefixMatch& match);
  void plan_prompt(Choice& choice, int64_t& budget, bool others);
  void plan_cuts();
  void plan_drafts(bool beside_prompts);
  std::span<const TokenKey> keys_of(Choice& choice, int64_t tokens);
  bool others_than(int64_t decoding) const;
  int64_t pages_for(int64_t tokens) const;

  ModelRunner& runner_;
  PrefixCache* cache_;
  SchedulerOptions options_;
  CompleteEntries complete_entries_;
  Prepare prepare_;
  int64_t longest_;
  std::set<Choice*, Earlier> waiting_;
  std::vector<Choice*> running_;  // in the same order
  std::vector<Choice*> readers_;  // of a prompt that others may wait for, in this step
  std::vector<Planned> plan_;
  bool preempted_ = false;  // in this step
  Stats stats_;
};

}  // namespace calandra

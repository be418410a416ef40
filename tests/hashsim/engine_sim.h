// EngineSim: one seed of the engine under simulation. The real EngineCore, scheduler, caches, speculator and sampler
// run the hash model (hash_model.h) under a drawn load, and between steps anything may happen: preemption, cancels,
// eviction, pages and slots that are gone for a while, jumps of the clock. After every step:
//   tokens     every token, logprob and finish reason is that of the request alone (solo_answer.h); each choice ends
//              exactly once; whoever waits is served in a bounded number of steps; nothing is shared between salts
//   drafts     every drafted id is what the drafter must propose for this prefix, seed and choice
//   states     slots, pages and MTP entries of running choices hold what the tokens make of them, and at the end those
//              of every checkpoint; batches keep their contract; the cache's own invariants hold
//   ownership  every reference to a page or slot has an owner; what came free is overwritten; idle is empty
// The same seed runs the same way, byte for byte: log().
#pragma once

#include <functional>
#include <map>
#include <string>
#include <vector>

#include "tests/deferred_backend.h"
#include "tests/hashsim/hash_model.h"
#include "tests/hashsim/sim_world.h"

namespace calandra::hashsim {

struct SimCounts {
  int64_t seeds = 0, requests = 0, choices = 0, steps = 0, tokens = 0, drafted = 0, accepted = 0, hits = 0,
          hit_tokens = 0, restores = 0, evictions = 0, preemptions = 0, forks = 0, cancels = 0, errors = 0, images = 0,
          checkpoints = 0, steps_ahead = 0, filled_up = 0, waits = 0, states_compared = 0, most_natural_preemptions = 0;
  void add(const SimCounts& other);
  std::string words() const;
};

class EngineSim;

// What is checked, and what a planted fault does.
struct SimOptions {
  bool tokens = true, drafts = true, states = true, ownership = true;
  std::function<void(SimWorld&)> world;                         // before anything is made of it
  std::function<void(Request&)> submit;                         // what the engine is given
  std::function<void(EngineSim&, Batch&)> before_forward;       // after the drafts of the step were made
  std::function<void(EngineSim&, Batch&)> before_draft;         // of every draft pass
  std::function<void(EngineSim&)> after_step;                   // before the checks
  std::function<void(EngineSim&, const TokenEvent&)> on_token;  // before the checks
  Backend* backend = nullptr;                                   // the engine's; the reference backend by default
  // Runs on a device with a stream: drafts stay there, and steps without them are launched ahead. Where states and
  // ownership are checked the device is waited for after every step, otherwise it may be behind.
  bool async = false;
  DeferredFaults faults = {};
};

class EngineSim {
 public:
  explicit EngineSim(uint64_t seed, SimOptions options = {});

  // To the end, or to the first violation: that in words, or nothing.
  std::string run();
  const SimCounts& counts() const { return counts_; }
  uint64_t log() const { return log_; }

  // For planted faults, and for tables that meddle.
  EngineCore& core() { return core_; }
  void preempt_one(Choice& choice);
  void cancel_one();  // the client of one of the requests so far goes away
  ModelRunner& runner() { return runner_; }
  const SimWorld& world() const { return world_; }
  Choice* find(RequestId id, int32_t choice);

 private:
  void violation(const std::string& what);
  void note(uint64_t word) { log_ = mix(log_, word); }

  void arrive();
  void submit(SimRequest& request);
  void disturb();
  void take_away();
  void give_back();

  bool on_token(SimRequest& request, const TokenEvent& event);
  void check_token(SimRequest& request, size_t index, const TokenEvent& event);
  void check_end(SimRequest& request, size_t index, const TokenEvent& event);
  int64_t most_cached(const SimRequest& request) const;

  SoloAnswer& solo_of(const Choice& choice);
  void note_drafts(const Batch& batch);
  void check_drafts(const Choice& choice);
  bool waits() const { return !options_.async || options_.states || options_.ownership; }
  void check_step();
  void check_states(const Choice& choice);
  void check_ownership();
  void scribble();
  void check_checkpoints();
  void check_checkpoint(const Checkpoint& held, std::span<const TokenKey> keys);
  bool row_is_nan(const SoloAnswer& solo, int32_t slot);
  void finish();

  uint64_t seed_;
  SimOptions options_;
  SimWorld world_;
  Draw draw_;
  double now_ = 0;
  struct Verified {
    int64_t step;
    int32_t slot, place;  // that the sequence writes; of its first draft
    std::vector<int32_t> drafts;
  };
  std::vector<Verified>
      verified_;  // rows of drafts that ran in this step, or in the one before if it was launched ahead
  ReferenceBackend backend_;
  DeferredBackend<ReferenceBackend> stream_;
  HashModel model_;
  DeferredModel stream_model_;
  ModelRunner runner_;
  EngineCore core_;
  std::map<RequestId, SimRequest*> by_id_;
  size_t next_request_ = 0;
  int64_t step_ = 0;
  std::vector<int32_t> pages_taken_, slots_taken_;
  std::vector<bool> page_was_free_, slot_was_free_;
  std::string violation_;
  uint64_t log_ = 0;
  SimCounts counts_;
};

}  // namespace calandra::hashsim

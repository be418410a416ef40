// EngineCore: runs requests in steps. Each step the scheduler picks choices and rows, the speculator adds drafts, the
// runner runs the model, and every choice takes the tokens that the sampler chose for it.
//
// One thread, and deterministic: the tokens of an answer depend on its request alone, never on who else runs, on what
// the cache holds, on drafts or on preemption. Only how many drafts are made, with an adaptive number, depends on the
// clock.
//
// Verification (specs: DESIGN section 5): the rows of the last known token and of its drafts are sampled with the full
// sampler. Drafts are accepted while they equal what was sampled; the first token that differs is the next one. So
// speculation changes no token.
#pragma once

#include <map>
#include <memory>
#include <set>
#include <variant>
#include <vector>

#include "engine/engine_state.h"
#include "engine/engine_stats.h"
#include "engine/look_ahead.h"
#include "engine/scheduler.h"
#include "engine/speculator.h"

namespace calandra {

struct EngineOptions {
  std::vector<int32_t> eos_token_ids = {};  // end an answer unless ignore_eos
  std::optional<uint64_t> seed = {};        // of the generator that gives seeds to requests without one
  ThinkingTokens thinking = {};             // around the model's reasoning
  SchedulerOptions scheduler = {};          // most_drafts is the speculator's
  int64_t checkpoint_bytes = 0;             // of the prefix cache, on the device and on the host; both 0: none
  int64_t host_checkpoint_bytes = 0;
  std::optional<SpeculativeConfig> speculative = {};
  int64_t encoder_cache_bytes = 256 << 20;  // of the vision tower's results that nobody uses at the moment
  int64_t encoder_budget = 16384;           // rows of pictures that are encoded in one step; one picture may be larger
  bool async_scheduling = false;            // LookAhead, and drafts that stay on the device; where that has a stream
  Clock clock = {};                         // empty: the system's
};

class EngineCore {
 public:
  // `tokenizer` may be null: then answers have no text, and stop strings are refused. Both must outlive the engine.
  EngineCore(ModelRunner& runner, const Tokenizer* tokenizer, EngineOptions options);
  ~EngineCore();  // gives back all that requests and checkpoints hold

  // What is wrong with a request, or nothing. Reads nothing that changes: any thread may ask.
  std::optional<RequestError> check(const Request& request) const;
  // Queues a request. `on_token` hears of every token of every choice, from within step(); it may call add and cancel.
  std::variant<RequestId, RequestError> add(Request request, OnToken on_token);
  // Ends a request, all choices of it, before the next step; unknown ones are ignored.
  void cancel(RequestId id);
  // Runs one step. False: there was nothing to run. What on_token throws ends up here; the requests of that step can
  // then only be given up.
  bool step();
  bool idle() const { return requests_.empty(); }

  // All requests to their end; answers by request and choice. A request's fault becomes its Answer's error.
  // on_prefill: prompt tokens run so far, of all; for progress bars.
  using OnPrefill = std::function<void(int64_t done, int64_t total)>;
  std::vector<std::vector<Answer>> run(const std::vector<Request>& requests, const OnToken& on_token = {},
                                       const OnPrefill& on_prefill = {});

  // While it is idle, and after a first request: steps that are likely are recorded where the backend can, so that
  // those who come find the engine as fast as it gets. Takes at most half a second and a step.
  void warm_up();
  // Sends a running choice back to the queue. For tests: no token may change.
  void preempt(RequestId id, int32_t choice);
  // Null without one.
  PrefixCache* cache() { return cache_.get(); }
  EncoderCache* encoder_cache() { return encoder_.get(); }
  const Speculator* speculator() const { return speculator_.get(); }  // likewise
  // While it is idle: drops both caches, and memory that holds nothing goes back to the system. It is there again
  // before the next step; take_back_memory throws LoadError when there is not enough.
  void give_back_memory();
  void take_back_memory();
  const Scheduler& scheduler() const { return *scheduler_; }
  const EngineOptions& options() const { return options_; }
  const EngineStats& stats();
  // What stands where now. Into memory that `to` keeps.
  void describe(EngineState& to) const;

 private:
  using Plan = std::span<Scheduler::Planned>;
  void make_choices(RequestState& state);
  uint64_t next_seed();
  void end_cancelled();
  void fail(RequestState& state, const RequestError& error);
  int64_t encode_pictures(Choice& choice, int64_t rows);
  void forward(Plan plan);
  void pool(const Scheduler::Planned& planned, const Tensor& hidden, int64_t row);
  void score_prompt(const Scheduler::Planned& planned, const Tensor& hidden, int64_t row);
  void sample(Plan plan, const Tensor& hidden);
  void sample_block(const Tensor& hidden, Plan step);
  void take_tokens(Choice& choice, std::span<const ops::SampledRow> rows);
  void finish_step(Plan plan);
  void end(Choice& choice);
  void note_times(const Choice& choice);
  void forget(RequestId id);
  void tell(Choice& choice, int32_t token, std::string_view text);

  ModelRunner& runner_;
  const Tokenizer* tokenizer_;
  EngineOptions options_;
  SamplingContext sampling_;
  uint64_t seeds_drawn_ = 0;
  RequestId next_id_ = 1;
  std::unique_ptr<PrefixCache> cache_;
  std::unique_ptr<EncoderCache> encoder_;  // null without a vision tower
  int64_t encoder_budget_ = 0;             // left in this step
  std::unique_ptr<Speculator> speculator_;
  std::unique_ptr<Scheduler> scheduler_;
  std::unique_ptr<LookAhead> look_ahead_;  // null: steps are launched when the one before has its tokens
  std::map<RequestId, std::unique_ptr<RequestState>> requests_;
  std::set<std::pair<double, RequestId>> deadlines_;
  std::vector<RequestId> cancelled_;
  EngineStats stats_;
  double now_ = 0;  // when the step's tokens were there

  // Of one step; kept for their memory.
  std::vector<ModelRunner::Part> parts_;
  std::vector<int64_t> first_rows_;  // of each part
  struct Sampled {                   // rows of one choice in a block
    Choice* choice;
    size_t rows;
  };
  std::vector<Sampled> sampled_;
  std::vector<int32_t> logit_rows_;
  ops::SamplingBatch sampling_batch_;
  ops::SamplingResult sampling_result_;
  std::vector<Choice*> complete_, born_, finished_;
  std::vector<RequestId> ended_ids_;
};

}  // namespace calandra

// Choice and RequestState: a request while the engine has it. Values; the scheduler and the engine move them along.
#pragma once

#include <algorithm>
#include <memory>
#include <optional>
#include <vector>

#include "engine/draft_acceptance.h"
#include "engine/encoder_cache.h"
#include "engine/ngram_drafter.h"
#include "engine/prefix_cache.h"
#include "engine/request.h"
#include "text/detokenizer.h"

namespace calandra {

struct RequestState;

struct Choice {
  enum class Status {
    kUnborn,   // waits for the prompt, which the first choice runs for all
    kWaiting,  // holds nothing
    kRunning,  // holds pages, a slot and a lane
    kFinished,
  };

  explicit Choice(RequestState& request) : request(request) {}

  RequestState& request;
  Sequence sequence;
  Status status = Status::kUnborn;
  int64_t longest = 0;                 // tokens at which max_tokens or max_model_len ends it
  std::vector<TokenKey> keys;          // of the tokens, as far as they were needed
  std::optional<CheckpointId> source;  // pinned: the sequence continues from this checkpoint's slot
  std::vector<int64_t> cuts;           // where checkpoints are to be taken inside the prompt, ascending
  int64_t next_interval = 0;           // tokens at which it leaves the next checkpoint while it decodes; 0: never
  std::vector<int32_t> drafts;         // of the next step
  // Where the device has them (ModelRunner::sampled_at), when it went on with them before the host knew them: then
  // `drafts` are those that the host has read, in the end all that are tokens.
  std::vector<int32_t> drafts_at;
  std::vector<int32_t> ahead_drafts_at;  // of the step behind, when that was launched before this one has its tokens
  SequenceAcceptance acceptance;
  std::optional<NgramDrafter> ngrams;
  std::vector<std::shared_ptr<const ImageEmbeds>> embeds;  // of the pictures that were encoded for its prompt
  std::vector<float> pooled;                               // sum of the hidden rows so far
  bool finite = true;                                      // the hidden row of the last token that was run
  std::optional<Detokenizer> detokenizer;
  Answer answer;
  double first_token_at = 0, last_token_at = 0;  // seconds of the engine's clock
  // It waits until that choice of that request has run so many tokens, which both begin with; 0: it does not.
  struct Awaited {
    RequestId request = 0;
    int32_t choice = 0;
    int64_t tokens = 0;
  } awaited;

  // Known tokens that were not run yet.
  int64_t left() const { return sequence.size() - sequence.computed; }
  // Rows of drafts in the step.
  int64_t draft_rows() const { return std::max(std::ssize(drafts), std::ssize(drafts_at)); }
  bool decodes() const { return left() == 1 && sequence.outputs() > 0; }
  bool finished() const { return status == Status::kFinished; }
};

struct RequestState {
  RequestId id = 0;
  Request request;
  OnToken on_token;
  std::string space;                             // prefix_space()
  bool caches = false;                           // may be looked up and kept
  std::vector<std::unique_ptr<Choice>> choices;  // of the request; the first one runs the prompt
  double arrival = 0;                            // seconds of the engine's clock
  std::optional<double> started;                 // when its prompt first took part in a step
  bool cancelled = false;
};

// Who goes first: by priority, then in order of arrival, then by choice.
struct Earlier {
  bool by_priority = false;
  bool operator()(const Choice* a, const Choice* b) const {
    const RequestState &x = a->request, &y = b->request;
    if (by_priority && x.request.priority != y.request.priority) return x.request.priority < y.request.priority;
    return x.id != y.id ? x.id < y.id : a->sequence.choice < b->sequence.choice;
  }
};

}  // namespace calandra

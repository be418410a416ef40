// Engine, first form: runs requests to their end, several sequences at once, prompts in chunks mixed with decoding
// rows.
#pragma once

#include <functional>
#include <optional>
#include <string>
#include <vector>

#include "base/error.h"
#include "engine/model_runner.h"
#include "engine/sampling_params.h"
#include "text/detokenizer.h"

namespace calandra {

struct Request {
  std::vector<int32_t> prompt_token_ids;
  SamplingParams params;
  // With images or videos (Sequence): their places, and the rotary positions of the whole prompt.
  std::vector<ImageSpan> images = {};
  std::vector<std::array<int32_t, 3>> positions = {};
  int32_t position_delta = 0;
};

enum class FinishReason { kStop, kLength, kCancelled };
// "stop", "length", "abort"
std::string_view name_of(FinishReason reason);

// One choice of a request.
struct Answer {
  std::vector<int32_t> token_ids;  // the token that stopped it included
  std::string text;                // empty without a tokenizer
  FinishReason finish_reason = FinishReason::kLength;
  std::string stop_reason;                   // the stop string; empty otherwise
  std::optional<int32_t> stop_token;         // the stop token of the request (not EOS)
  std::vector<ops::TokenLogprobs> logprobs;  // one per token, when asked for
  std::optional<RequestError> error;         // set: it ended here, perhaps before anything was computed
};

// One step of one choice, as it happens.
struct TokenEvent {
  size_t request;
  int32_t choice;
  int32_t token;          // -1: it ended without one, see Answer::error
  std::string_view text;  // what may be shown now; may be empty
  bool finished;
};

struct EngineOptions {
  std::vector<int32_t> eos_token_ids;  // end an answer unless ignore_eos
  std::optional<uint64_t> seed;        // of the generator that gives seeds to requests without one
};

class Engine {
 public:
  // `tokenizer` may be null: then answers have no text and stop strings are refused. Both must outlive the engine.
  Engine(ModelRunner& runner, const Tokenizer* tokenizer, EngineOptions options);

  // Returns false to cancel that request, all choices of it.
  using OnToken = std::function<bool(const TokenEvent&)>;
  // Prompt tokens run so far, of all; for progress bars.
  using OnPrefill = std::function<void(int64_t done, int64_t total)>;

  // All requests to their end; answers by request and choice. A request's fault becomes its Answer's error.
  std::vector<std::vector<Answer>> run(const std::vector<Request>& requests, const OnToken& on_token = {},
                                       const OnPrefill& on_prefill = {});

 private:
  struct Running;
  std::optional<RequestError> check(const Request& request) const;
  void choose(const Tensor& hidden, std::span<Running* const> running, std::span<const int32_t> rows,
              const OnToken& on_token);
  void accept(Running& running, const ops::SampledRow& sampled, const OnToken& on_token);
  uint64_t next_seed();

  ModelRunner& runner_;
  const Tokenizer* tokenizer_;
  EngineOptions options_;
  uint64_t seeds_drawn_ = 0;
  ops::SamplingBatch sampling_batch_;
  ops::SamplingResult sampling_result_;
};

}  // namespace calandra

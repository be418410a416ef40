// SamplingParams: what a request may ask of the sampler, with vLLM's names, defaults and rules.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <utility>
#include <variant>
#include <vector>

#include "base/error.h"
#include "base/json.h"
#include "ops/sampling.h"

namespace calandra {

class Tokenizer;

// Bounds of what a client controls; all from flags.
struct SamplingLimits {
  int64_t vocab_size = 0;  // columns of the logits
  int32_t max_n = 16;
  int32_t max_logprobs = 20;  // -1: no bound
  int32_t max_logprob_token_ids = 128;
  size_t max_stop = 16, max_stop_bytes = 256;
  size_t max_logit_bias = 1024;
  size_t max_bad_words = 1024, max_token_list = 262144;
};

struct SamplingParams {
  int32_t n = 1;  // choices of one prompt

  float temperature = 1;  // below 1e-5: greedy
  int32_t top_k = 0;      // 0, -1: all
  float top_p = 1;
  float min_p = 0;
  std::optional<uint64_t> seed;  // absent: the engine draws one

  float repetition_penalty = 1;                           // prompt and output
  float frequency_penalty = 0;                            // output
  float presence_penalty = 0;                             // output
  std::vector<ops::TokenBias> logit_bias;                 // ids ascending, once each
  std::vector<int32_t> allowed_token_ids;                 // empty: all
  std::vector<std::string> bad_words;                     // as the user wrote them
  std::vector<std::vector<int32_t>> bad_words_token_ids;  // the last one is forbidden after the others

  // Absent: as far as the model reaches (vLLM's 16 for raw completions is the caller's).
  std::optional<int32_t> max_tokens;
  int32_t min_tokens = 0;  // before these, no stop id and no EOS is sampled, but where an output form ends
  std::vector<std::string> stop;
  std::vector<int32_t> stop_token_ids;
  bool ignore_eos = false;
  bool include_stop_str_in_output = false;

  std::optional<int32_t> logprobs;         // 0: the sampled token; n: and the n likeliest; -1: all
  std::optional<int32_t> prompt_logprobs;  // the same for the prompt's tokens
  std::vector<int32_t> logprob_token_ids;  // further tokens at every output position
  std::vector<int32_t> prompt_logprob_token_ids;
  ops::LogprobsMode logprobs_mode = ops::LogprobsMode::kRawLogprobs;

  bool detokenize = true;
  bool skip_special_tokens = true;
  bool spaces_between_special_tokens = true;  // accepted; byte-level vocabularies put no spaces there

  std::optional<int32_t> thinking_token_budget;  // tokens of reasoning, then it is ended
  struct RepetitionDetection {                   // ends an answer that repeats a pattern
    int32_t max_pattern_size = 0;                // 0: off
    int32_t min_pattern_size = 0;
    int32_t min_count = 0;
    bool operator==(const RepetitionDetection&) const = default;
  } repetition_detection;

  // The first thing that is wrong, or nothing.
  std::optional<RequestError> check(const SamplingLimits& limits) const;
  std::optional<RequestError> check(int64_t vocab_size) const {
    return check(SamplingLimits{.vocab_size = vocab_size});
  }
};

// The sampling fields of a request body in vLLM's names over `defaults` (generation_config.json); other fields are not
// looked at, or refused without `others`; null means the default. Types are checked here, values by check().
// `bad_words_ids` gives bad_words_token_ids (ours, as in the goldens).
std::variant<SamplingParams, RequestError> read_sampling_params(const json::object& body, SamplingParams defaults = {},
                                                                bool others = true);

// bad_words -> bad_words_token_ids, as vLLM does: each word without, and where that gives another first token and as
// many tokens, with a space before it.
std::vector<std::vector<int32_t>> tokenize_bad_words(const Tokenizer& tokenizer, const std::vector<std::string>& words);

}  // namespace calandra

#include "apps/known_fields.h"

#include <fmt/format.h>

#include <algorithm>

#include "apps/body_fields.h"
#include "base/log.h"

namespace calandra::apps {
namespace {

// Fields of read_sampling_params.
constexpr std::string_view kSampling[] = {"n",
                                          "temperature",
                                          "top_k",
                                          "top_p",
                                          "min_p",
                                          "seed",
                                          "repetition_penalty",
                                          "frequency_penalty",
                                          "presence_penalty",
                                          "logit_bias",
                                          "allowed_token_ids",
                                          "bad_words",
                                          "bad_words_ids",
                                          "max_tokens",
                                          "min_tokens",
                                          "stop",
                                          "stop_token_ids",
                                          "ignore_eos",
                                          "include_stop_str_in_output",
                                          "logprobs",
                                          "prompt_logprobs",
                                          "logprob_token_ids",
                                          "prompt_logprob_token_ids",
                                          "detokenize",
                                          "skip_special_tokens",
                                          "spaces_between_special_tokens",
                                          "thinking_token_budget",
                                          "repetition_detection"};
// Of BatchReader.
constexpr std::string_view kRead[] = {"model",
                                      "prompt",
                                      "messages",
                                      "input",
                                      "echo",
                                      "best_of",
                                      "max_completion_tokens",
                                      "top_logprobs",
                                      "priority",
                                      "cache_salt",
                                      "request_id",
                                      "return_token_ids",
                                      "return_tokens_as_token_ids",
                                      "add_special_tokens",
                                      "truncate_prompt_tokens",
                                      "tools",
                                      "tool_choice",
                                      "chat_template_kwargs",
                                      "reasoning_effort",
                                      "documents",
                                      "mm_processor_kwargs",
                                      "add_generation_prompt",
                                      "continue_final_message",
                                      "skip_reading_prefix_cache",
                                      "encoding_format",
                                      "dimensions",
                                      "normalize",
                                      "response_format",
                                      "structured_outputs",
                                      "guided_json",
                                      "guided_regex",
                                      "guided_choice",
                                      "guided_grammar",
                                      "parallel_tool_calls",
                                      "include_reasoning",
                                      "stream",
                                      "stream_options"};
// That mean nothing here.
constexpr std::string_view kIgnored[] = {
    "user",          "store",       "metadata",        "service_tier",   "prompt_cache_key", "safety_identifier",
    "flat_logprobs", "output_kind", "stream_interval", "length_penalty", "early_stopping",   "prompt_cache_retention"};
// That would change the answer.
constexpr std::pair<std::string_view, const char*> kRefused[] = {
    {"suffix", "these models do not fill in the middle"},
    {"use_beam_search", "there is no beam search"},
    {"logits_processors", "there are no plug-ins"},
    {"vllm_xargs", "there are no plug-ins"},
    {"prompt_embeds", "prompts are text or token ids"},
    {"kv_transfer_params", "caches are not transferred"},
    {"chat_template", "the model's own template is used"},
    {"functions", "use tools"},
    {"function_call", "use tool_choice"},
};

bool is_neutral(const json::value& value) {
  return value.is_null() || value == false || (value.is_string() && value.get_string().empty()) ||
         (value.is_array() && value.get_array().empty()) || (value.is_object() && value.get_object().empty());
}

bool contains(std::span<const std::string_view> names, std::string_view name) {
  return std::find(names.begin(), names.end(), name) != names.end();
}

bool is_known(std::string_view name) {
  return contains(kSampling, name) || contains(kRead, name) || contains(kIgnored, name) ||
         std::any_of(std::begin(kRefused), std::end(kRefused), [&](const auto& r) { return r.first == name; });
}

}  // namespace

std::span<const std::string_view> sampling_field_names() { return kSampling; }

void refuse_unsupported(const json::object& body) {
  for (const auto& [name, reason] : kRefused)
    if (const json::value* value = body.if_contains(name); value != nullptr && !is_neutral(*value))
      refuse_field(name, fmt::format("{} cannot be set: {}", name, reason), "unsupported_parameter");
}

void UnknownFields::warn(const json::object& body) {
  constexpr size_t kMostWarnings = 100, kLongestName = 64;  // a longer one is no mistake in writing
  for (const auto& member : body) {
    const std::string_view name = member.key();
    if (name.size() > kLongestName || is_known(name)) continue;
    const std::lock_guard lock(mutex_);
    if (warned_.size() == kMostWarnings) return;
    if (std::find(warned_.begin(), warned_.end(), name) != warned_.end()) continue;
    log_warning("the field {} of a body is not known and has no effect", to_json(json::string(name)));
    warned_.emplace_back(name);
  }
}

}  // namespace calandra::apps

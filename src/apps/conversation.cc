#include "apps/conversation.h"

#include <ctime>

#include "base/error.h"
#include "text/jinja/failure.h"

namespace calandra::apps {
namespace {

const Tokenizer& tokenizer_of(const LoadedModel& loaded) {
  if (!loaded.tokenizer)
    throw LoadError(loaded.folder.string() + " has no tokenizer.json; give the prompt with --prompt-ids");
  return *loaded.tokenizer;
}

std::string template_of(const LoadedModel& loaded) {
  const std::string source(tokenizer_of(loaded).chat_template());
  if (source.empty())
    throw LoadError(loaded.folder.string() + " has no chat template; use --raw for a plain completion");
  return source;
}

}  // namespace

json::object special_token_texts(const Tokenizer& tokenizer) {
  json::object texts;
  const auto add = [&](const char* name, std::optional<int32_t> id) {
    if (id) texts[name] = json::string(tokenizer.id_to_token(*id));
  };
  add("bos_token", tokenizer.bos_id());
  add("eos_token", tokenizer.eos_id());
  add("pad_token", tokenizer.pad_id());
  add("unk_token", tokenizer.unk_id());
  return texts;
}

SamplingParams sampling_params(const Options& options, const json::object& generation_config) {
  const SamplingOptions& o = options.sampling;
  json::object fields;
  for (const char* key : {"temperature", "top_k", "top_p", "min_p", "repetition_penalty"})
    if (const json::value* value = generation_config.if_contains(key)) fields[key] = *value;
  if (const json::value* sample = generation_config.if_contains("do_sample"); sample != nullptr && *sample == false)
    fields["temperature"] = 0.0;

  const auto set = [&](const char* key, const auto& value) {
    if (value) fields[key] = *value;
  };
  set("temperature", o.temperature);
  set("top_k", o.top_k);
  set("top_p", o.top_p);
  set("min_p", o.min_p);
  set("repetition_penalty", o.repetition_penalty);
  set("presence_penalty", o.presence_penalty);
  set("frequency_penalty", o.frequency_penalty);
  set("max_tokens", o.max_tokens);
  set("min_tokens", o.min_tokens);
  set("logprobs", o.logprobs);
  set("n", o.n);
  if (options.model.seed) fields["seed"] = *options.model.seed;
  if (!o.logit_bias.empty()) fields["logit_bias"] = parse_json(o.logit_bias, "--logit-bias");
  if (!o.stop.empty()) fields["stop"] = json::array(o.stop.begin(), o.stop.end());
  if (!o.stop_token_ids.empty())
    fields["stop_token_ids"] = json::array(o.stop_token_ids.begin(), o.stop_token_ids.end());
  if (!o.allowed_token_ids.empty())
    fields["allowed_token_ids"] = json::array(o.allowed_token_ids.begin(), o.allowed_token_ids.end());
  if (!o.bad_words.empty()) fields["bad_words"] = json::array(o.bad_words.begin(), o.bad_words.end());
  if (o.ignore_eos) fields["ignore_eos"] = true;
  if (o.include_stop_str_in_output) fields["include_stop_str_in_output"] = true;

  auto read = read_sampling_params(fields);
  if (const auto* error = std::get_if<RequestError>(&read)) throw UsageError(error->message);
  return std::get<SamplingParams>(read);
}

Conversation::Conversation(const LoadedModel& loaded, const Options& options) try
    : tokenizer_(tokenizer_of(loaded)), template_(template_of(loaded), special_token_texts(tokenizer_of(loaded))) {
  if (!options.chat_template_kwargs.empty()) {
    json::value kwargs = parse_json(options.chat_template_kwargs, "--chat-template-kwargs");
    if (!kwargs.is_object()) throw UsageError("--chat-template-kwargs must be a JSON object");
    kwargs_ = std::move(kwargs.get_object());
  }
  kwargs_["add_generation_prompt"] = true;
  if (options.thinking) set_thinking(*options.thinking);
} catch (const jinja::Failure& failure) {
  throw LoadError("the chat template has an error in line " + std::to_string(failure.line()) + ": " + failure.what());
}

std::vector<int32_t> Conversation::encode(const json::array& messages) const {
  const std::time_t now = std::time(nullptr);
  std::tm local{};
  localtime_r(&now, &local);
  try {
    const RenderedPrompt prompt = template_.render(messages, nullptr, kwargs_, local);
    return tokenizer_.encode(prompt.pieces);
  } catch (const jinja::Failure& failure) {
    throw LoadError(std::string("the chat template refused the conversation: ") + failure.what());
  }
}

}  // namespace calandra::apps

#include "apps/conversation.h"

#include <algorithm>
#include <ctime>
#include <limits>
#include <optional>

#include "base/error.h"
#include "text/jinja/failure.h"
#include "text/parsers/answer_parser.h"

namespace calandra::apps {
namespace {

const Tokenizer& tokenizer_of(const LoadedModel& loaded, Verb verb) {
  if (!loaded.tokenizer)
    throw LoadError(loaded.folder.string() + " has no tokenizer.json" +
                    (verb == Verb::kGenerate ? "; give the prompt with --prompt-ids" : ", which a conversation needs"));
  return *loaded.tokenizer;
}

std::string template_of(const LoadedModel& loaded, Verb verb) {
  const std::string source(tokenizer_of(loaded, verb).chat_template());
  if (source.empty())
    throw LoadError(loaded.folder.string() + " has no chat template; " +
                    (verb == Verb::kGenerate ? "use --raw for a plain completion"
                                             : "`calandra generate --raw` completes plain text"));
  return source;
}

ChatTemplate compiled(std::string_view source, const Tokenizer& tokenizer) {
  try {
    return ChatTemplate(source, special_token_texts(tokenizer));
  } catch (const jinja::Failure& failure) {
    throw LoadError("the chat template has an error in line " + std::to_string(failure.line()) + ": " + failure.what());
  }
}

// The fields of generation_config.json that flags do not replace.
json::object fields_of(const json::object& generation_config, const SamplingOptions& o) {
  json::object fields;
  const std::pair<const char*, bool> keys[] = {{"temperature", o.temperature.has_value()},
                                               {"top_k", o.top_k.has_value()},
                                               {"top_p", o.top_p.has_value()},
                                               {"min_p", o.min_p.has_value()},
                                               {"repetition_penalty", o.repetition_penalty.has_value()}};
  for (const auto& [key, given] : keys)
    if (const json::value* value = generation_config.if_contains(key); value != nullptr && !given) fields[key] = *value;
  if (const json::value* sample = generation_config.if_contains("do_sample");
      sample != nullptr && *sample == false && !o.temperature)
    fields["temperature"] = 0.0;
  return fields;
}

void add_flags(json::object& fields, const Options& options) {
  const SamplingOptions& o = options.sampling;
  const auto set = [&](const char* key, const auto& value) {
    if (value) fields[key] = *value;
  };
  const auto set_list = [&](const char* key, const auto& list) {
    if (!list.empty()) fields[key] = json::array(list.begin(), list.end());
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
  set("seed", options.model.seed);
  if (!o.logit_bias.empty()) fields["logit_bias"] = o.logit_bias;
  set_list("stop", o.stop);
  set_list("stop_token_ids", o.stop_token_ids);
  set_list("allowed_token_ids", o.allowed_token_ids);
  set_list("bad_words", o.bad_words);
  if (o.ignore_eos) fields["ignore_eos"] = true;
  if (o.include_stop_str_in_output) fields["include_stop_str_in_output"] = true;
}

// "top_p must be …" as the flag is called: "--top-p must be …".
std::string of_flag(const RequestError& error) {
  std::string flag = "--" + error.param;
  std::replace(flag.begin(), flag.end(), '_', '-');
  return error.message.starts_with(error.param) ? flag + error.message.substr(error.param.size()) : error.message;
}

// The parameters that the fields give, or what is wrong with them.
std::variant<SamplingParams, RequestError> checked(const json::object& fields, int64_t vocab_size) {
  auto read = read_sampling_params(fields);
  if (const auto* params = std::get_if<SamplingParams>(&read)) {
    const auto error = params->check({.vocab_size = vocab_size, .max_n = 1024, .max_logprobs = -1});
    if (error) return *error;
  }
  return read;
}

std::vector<TextPiece> first_bytes(std::span<const TextPiece> pieces, size_t bytes) {
  std::vector<TextPiece> cut;
  for (const TextPiece& piece : pieces) {
    cut.push_back({piece.text.substr(0, bytes), piece.is_input});
    bytes -= cut.back().text.size();
    if (bytes == 0) break;
  }
  return cut;
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

SamplingParams sampling_params(const Options& options, const LoadedModel& loaded) {
  const int64_t V = loaded.model->vocab_size();
  const bool from_model = options.generation_config == "auto";
  json::object fields = fields_of(from_model ? loaded.generation_config : json::object(), options.sampling);
  const auto of_file = checked(fields, V);
  if (const auto* error = std::get_if<RequestError>(&of_file))
    throw LoadError((loaded.folder / "generation_config.json").string() + ": " + error->message);
  add_flags(fields, options);
  const auto params = checked(fields, V);
  if (const auto* error = std::get_if<RequestError>(&params)) throw LoadError(of_flag(*error));
  return std::get<SamplingParams>(params);
}

void check_sampling_flags(const Options& options) {
  json::object fields;
  add_flags(fields, options);
  const auto params = checked(fields, std::numeric_limits<int32_t>::max());
  if (const auto* error = std::get_if<RequestError>(&params)) throw UsageError(of_flag(*error));
}

Conversation::Conversation(const LoadedModel& loaded, const Options& options)
    : tokenizer_(tokenizer_of(loaded, options.verb)),
      template_(compiled(template_of(loaded, options.verb), tokenizer_)),
      kwargs_(options.chat_template_kwargs) {
  kwargs_["add_generation_prompt"] = true;
  if (options.thinking) set_thinking(*options.thinking);
}

EncodedChat Conversation::encode(const json::value& messages, const json::value& tools, const json::object& variables,
                                 size_t most, std::string_view other) const {
  std::optional<ChatTemplate> given;
  if (!other.empty()) given = compiled(other, tokenizer_);
  const std::time_t now = std::time(nullptr);
  std::tm local{};
  localtime_r(&now, &local);
  json::object kwargs = kwargs_;
  for (const auto& [name, value] : variables) kwargs[name] = value;
  try {
    const RenderedPrompt prompt = (given ? *given : template_).render(messages, tools, kwargs, local);
    EncodedChat chat{tokenizer_.encode(prompt.pieces, most), {}, ends_in_reasoning(prompt.pieces)};
    if (chat.ids.size() > most) return chat;
    for (const size_t end : prompt.message_ends) {
      const std::vector<int32_t> cut = tokenizer_.encode(first_bytes(prompt.pieces, end));
      const size_t size = std::min(cut.size(), chat.ids.size());
      const int64_t common =
          std::mismatch(cut.begin(), cut.begin() + static_cast<std::ptrdiff_t>(size), chat.ids.begin()).first -
          cut.begin();
      if (common > (chat.message_ends.empty() ? 0 : chat.message_ends.back())) chat.message_ends.push_back(common);
    }
    return chat;
  } catch (const jinja::Failure& failure) {
    throw LoadError(std::string("the chat template refused the conversation: ") + failure.what());
  }
}

}  // namespace calandra::apps

#include "apps/api/batch_request.h"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <limits>

#include "apps/api/api_fields.h"
#include "apps/api/body_fields.h"
#include "apps/api/chat_messages.h"
#include "apps/api/known_fields.h"
#include "apps/api/tool_choice.h"
#include "base/error.h"
#include "base/log.h"
#include "structured/requested_form.h"
#include "text/parsers/tool_list.h"

namespace calandra::apps {
namespace {

constexpr size_t kMostPrompts = 65536;  // of one body

int32_t read_id(const json::value& value, std::string_view name) {
  const std::optional<int64_t> id = whole_number(value);
  if (!id || *id < 0 || *id > std::numeric_limits<int32_t>::max())
    wrong_type(name, "a string, token ids, or a list of either");
  return static_cast<int32_t>(*id);
}

[[noreturn]] void refuse_empty(std::string_view field) {
  refuse_field(field, fmt::format("{} must not be empty", field));
}

// The sampling fields as read_sampling_params takes them: those of a chat have other names.
json::object sampling_fields(const json::object& body, Endpoint endpoint) {
  json::object fields;
  for (const ApiField& field : api_fields())
    if (const json::value* value = find_field(body, field.name); value != nullptr && field.use == FieldUse::kSampling)
      fields[field.name] = *value;
  if (endpoint != Endpoint::kChatCompletions) return fields;
  if (const auto most = integer_field(body, "max_completion_tokens")) {
    if (*most < 1 || *most > std::numeric_limits<int32_t>::max())
      refuse_field("max_completion_tokens", "max_completion_tokens must be at least 1 and have 32 bits");
    fields["max_tokens"] = *most;
  }
  const bool asked = flag_field(body, "logprobs", false);
  const std::optional<int64_t> top = integer_field(body, "top_logprobs");
  constexpr int64_t kMostTop = 20;
  if (top && (*top < 0 || *top > kMostTop))
    refuse_field("top_logprobs", fmt::format("top_logprobs must be from 0 to {}", kMostTop));
  if (top && *top != 0 && !asked) refuse_field("top_logprobs", "top_logprobs needs logprobs to be true");
  fields.erase("logprobs");
  if (asked) fields["logprobs"] = top.value_or(0);
  return fields;
}

SamplingParams read_params(const json::object& body, Endpoint endpoint, const SamplingParams& defaults) {
  if (endpoint == Endpoint::kEmbeddings) return {};
  auto read = read_sampling_params(sampling_fields(body, endpoint), defaults);
  if (auto* error = std::get_if<RequestError>(&read)) throw RefusedBody{std::move(*error)};
  auto params = std::get<SamplingParams>(std::move(read));
  const std::optional<int64_t> best_of = integer_field(body, "best_of");
  if (best_of && *best_of != params.n)
    refuse_field("best_of", "best_of must be n: there is no choice among more answers");
  if (endpoint == Endpoint::kCompletions && !params.max_tokens) params.max_tokens = 16;  // as OpenAI and vLLM
  return params;
}

// What `read` gives, or throws as a fault of the body.
template <class Read>
std::variant<BatchBody, RequestError> as_value(const Read& read) {
  try {
    return read();
  } catch (RefusedBody& refused) {
    return std::move(refused.error);
  } catch (const LoadError& error) {  // JSON, a template
    return RequestError{400, "invalid_request_error", "", error.what()};
  } catch (const UsageError& error) {  // text that cannot be tokenised
    return RequestError{400, "invalid_request_error", "", error.what()};
  }
}

void read_stream_options(const json::object& body, BatchBody& to) {
  to.stream = flag_field(body, "stream", false);
  const json::object* options = object_field(body, "stream_options");
  if (options == nullptr) return;
  if (!to.stream) refuse_field("stream_options", "stream_options needs stream to be true");
  to.include_usage = flag_field(*options, "include_usage", false);
  to.continuous_usage_stats = flag_field(*options, "continuous_usage_stats", false);
}

SamplingParams defaults_of(const LoadedModel& loaded, Options options) {
  options.model.seed.reset();  // it seeds the engine, which gives every request a seed of its own
  return sampling_params(options, loaded);
}

}  // namespace

BatchReader::BatchReader(const LoadedModel& loaded, const Options& options, std::vector<std::string> served,
                         int64_t longest)
    : loaded_(loaded),
      options_(options),
      served_(std::move(served)),
      longest_(longest),
      media_(loaded, options.media, longest),
      embeddings_(options.pooler_config, loaded.config.config, loaded.model->hidden_size()),
      defaults_(defaults_of(loaded, options)) {}

BatchLine BatchReader::read(const std::string& line) {
  BatchLine result;
  result.body = as_value([&] {
    const json::value row = parse_json(line, "the line");
    if (!row.is_object()) wrong_type("the line", "a JSON object");
    if (const json::value* id = find_field(row.get_object(), "custom_id")) result.custom_id = *id;
    return read_line(row.get_object());
  });
  return result;
}

std::variant<BatchBody, RequestError> BatchReader::read(Endpoint endpoint, const json::object& body, const Gone& gone) {
  return as_value([&] { return read_body(endpoint, body, gone); });
}

std::variant<BatchBody, RequestError> BatchReader::read_prompt(const json::object& body, const Gone& gone) {
  return as_value([&]() -> std::variant<BatchBody, RequestError> {
    refuse_unsupported(body);
    BatchBody result;
    if (find_field(body, "messages") == nullptr) {
      read_prompts(body, "prompt", SIZE_MAX, result);
      return result;
    }
    result.endpoint = Endpoint::kChatCompletions;
    read_messages(body, gone, SIZE_MAX, result);
    std::optional<OutputForm> form;
    if (auto error = add_form(body, result, form)) return *std::move(error);
    return result;
  });
}

std::variant<BatchBody, RequestError> BatchReader::read_line(const json::object& line) {
  if (string_field(line, "custom_id").empty())
    refuse_field("custom_id", "custom_id must be a string", "missing_parameter");
  const json::value* method = find_field(line, "method");
  if (method == nullptr || *method != "POST") refuse_field("method", "method must be POST");
  constexpr std::pair<std::string_view, Endpoint> kEndpoints[] = {{"/v1/completions", Endpoint::kCompletions},
                                                                  {"/v1/chat/completions", Endpoint::kChatCompletions},
                                                                  {"/v1/embeddings", Endpoint::kEmbeddings}};
  const std::string url = string_field(line, "url");
  for (const auto& [name, endpoint] : kEndpoints) {
    if (url != name) continue;
    const json::object* body = object_field(line, "body");
    if (body == nullptr) refuse_field("body", "body must be an object", "missing_parameter");
    if (flag_field(*body, "stream", false))
      refuse_field("stream", "stream cannot be set: answers of a batch are not streamed", "unsupported_parameter");
    return read_body(endpoint, *body, {});
  }
  refuse_field("url", fmt::format("url must be /v1/completions, /v1/chat/completions or /v1/embeddings, got {}",
                                  to_json(json::string(url))));
}

std::optional<RequestError> BatchReader::unknown_model(const json::object& body) const {
  const std::string model = string_field(body, "model");
  if (model.empty() || std::find(served_.begin(), served_.end(), model) != served_.end()) return std::nullopt;
  return RequestError{
      404, "model_not_found", "model",
      fmt::format("the model {} does not exist; served is {}", to_json(json::string(model)), fmt::join(served_, ", "))};
}

std::variant<BatchBody, RequestError> BatchReader::read_body(Endpoint endpoint, const json::object& body,
                                                             const Gone& gone) {
  unknown_.warn(body);
  if (auto error = unknown_model(body)) return std::move(*error);
  refuse_unsupported(body);
  if (endpoint == Endpoint::kChatCompletions && flag_field(body, "echo", false))
    refuse_field("echo", "echo is for completions", "unsupported_parameter");
  BatchBody result;
  result.endpoint = endpoint;
  if (endpoint == Endpoint::kChatCompletions)
    read_messages(body, gone, most_ids(body), result);
  else
    read_prompts(body, endpoint == Endpoint::kEmbeddings ? "input" : "prompt", most_ids(body), result);
  for (Request& request : result.requests) {
    if (request.prompt_token_ids.empty()) refuse_empty(endpoint == Endpoint::kEmbeddings ? "input" : "prompt");
    if (request.pictures.empty()) media_.none().place(request);  // a placeholder without its picture
  }
  if (auto error = finish(body, result)) return *std::move(error);
  return result;
}

size_t BatchReader::most_ids(const json::object& body) const {
  return find_field(body, "truncate_prompt_tokens") == nullptr ? static_cast<size_t>(longest_) : SIZE_MAX;
}

void BatchReader::refuse_longer(std::string_view field, const std::vector<int32_t>& ids, size_t most) const {
  if (ids.size() <= most) return;
  refuse_field(field,
               fmt::format("This model's maximum context length is {} tokens. However, your {} has at least {}. Please "
                           "reduce it, or raise --max-model-len.",
                           longest_, field == "messages" ? "chat" : "prompt", ids.size()),
               "context_length_exceeded");
}

// A text, token ids, or a list of either.
void BatchReader::read_prompts(const json::object& body, std::string_view field, size_t most, BatchBody& to) const {
  constexpr const char* kRule = "a string, token ids, or a list of either";
  const json::value* prompt = find_field(body, field);
  if (prompt == nullptr) refuse_field(field, fmt::format("{} is missing", field), "missing_parameter");
  const bool add_special = flag_field(body, "add_special_tokens", true);
  to.echo = to.endpoint == Endpoint::kCompletions && flag_field(body, "echo", false);
  const auto add_text = [&](const json::value& value) {
    const std::string text(value.get_string());
    if (!loaded_.tokenizer)
      refuse_field(field, loaded_.folder.string() + " has no tokenizer.json; give the prompt as token ids");
    std::vector<int32_t>& ids = to.requests.emplace_back().prompt_token_ids;
    ids = loaded_.tokenizer->encode(text, {.add_special = add_special, .most = most});
    refuse_longer(field, ids, most);
    to.echoes.push_back(text);
  };
  const auto add_ids = [&](const json::array& values) {
    std::vector<int32_t>& ids = to.requests.emplace_back().prompt_token_ids;
    for (const json::value& value : values) ids.push_back(read_id(value, field));
    to.echoes.push_back(loaded_.tokenizer && to.echo ? loaded_.tokenizer->decode(ids) : "");
  };
  if (prompt->is_string()) return add_text(*prompt);
  if (!prompt->is_array()) wrong_type(field, kRule);
  if (prompt->get_array().empty()) refuse_empty(field);
  const json::array& items = prompt->get_array();
  if (items[0].is_number()) return add_ids(items);
  if (items.size() > kMostPrompts)
    refuse_field(field, fmt::format("{} may have at most {} prompts", field, kMostPrompts));
  for (const json::value& item : items) {
    if (item.kind() != items[0].kind()) wrong_type(field, kRule);
    if (item.is_string())
      add_text(item);
    else if (item.is_array())
      add_ids(item.get_array());
    else
      wrong_type(field, kRule);
  }
}

void BatchReader::read_messages(const json::object& body, const Gone& gone, size_t most, BatchBody& to) {
  const json::value* messages = find_field(body, "messages");
  if (messages == nullptr) refuse_field("messages", "messages is missing", "missing_parameter");
  if (!messages->is_array()) wrong_type("messages", "a list of objects");
  if (messages->get_array().empty())
    refuse_field("messages", R"(messages is empty: send at least one, as {"role": "user", "content": "..."})",
                 "missing_parameter");
  auto read = chat_messages(messages->get_array());
  if (auto* error = std::get_if<RequestError>(&read)) throw RefusedBody{std::move(*error)};
  auto& chat_read = std::get<ChatMessages>(read);
  const json::value* tools = find_field(body, "tools");
  if (tools != nullptr && !tools->is_array()) wrong_type("tools", "a list of objects");
  if (tools != nullptr)
    for (const json::value& tool : tools->get_array())
      if (!read_tool(tool))
        refuse_field(
            "tools",
            "tools must each have a function with a name; its description is a text, its parameters an object");

  json::object variables;
  variables["add_generation_prompt"] =
      flag_field(body, "add_generation_prompt", !flag_field(body, "continue_final_message", false));
  if (flag_field(body, "continue_final_message", false)) {
    if (flag_field(body, "add_generation_prompt", false))
      refuse_field("continue_final_message", "continue_final_message and add_generation_prompt exclude each other");
    variables["continue_final_message"] = true;
  }
  for (const std::string_view name : {"reasoning_effort", "documents"})
    if (const json::value* value = find_field(body, name)) variables[name] = *value;
  if (const json::object* kwargs = object_field(body, "chat_template_kwargs"))
    for (const auto& [name, value] : *kwargs) variables[name] = value;

  const std::string other = request_template(body);
  const json::object* kwargs = object_field(body, "mm_processor_kwargs");
  auto loaded_pictures = media_.load(chat_read.media, kwargs == nullptr ? json::object() : *kwargs, gone);
  if (auto* error = std::get_if<RequestError>(&loaded_pictures)) throw RefusedBody{std::move(*error)};
  {
    const std::lock_guard lock(mutex_);
    if (!conversation_) conversation_.emplace(loaded_, options_);
  }
  EncodedChat chat;
  try {
    chat = conversation_->encode(std::move(chat_read.messages), tools == nullptr ? json::value() : *tools, variables,
                                 most, other);
  } catch (const LoadError& error) {
    if (other.empty()) throw;
    refuse_field("chat_template", error.what());
  }
  refuse_longer("messages", chat.ids, most);
  to.include_reasoning = flag_field(body, "include_reasoning", true);
  to.in_reasoning = chat.in_reasoning;
  if (options_.verb == Verb::kServe) to.parser = parser_options(body, chat.in_reasoning);
  Request& request = to.requests.emplace_back();
  request.prompt_token_ids = std::move(chat.ids);
  request.checkpoint_hints = std::move(chat.message_ends);
  std::get<Pictures>(loaded_pictures).place(request);
  to.echoes.emplace_back();
}

// The template that a body brings along; empty: none.
std::string BatchReader::request_template(const json::object& body) const {
  std::string given = string_field(body, "chat_template");
  constexpr size_t kMostBytes = size_t{256} << 10;
  if (given.size() > kMostBytes)
    refuse_field("chat_template", fmt::format("chat_template may have at most {} bytes", kMostBytes));
  if (!given.empty() && !options_.serve.trust_request_chat_template)
    refuse_field("chat_template",
                 "chat_template cannot be set: the model's own is used; `calandra serve --trust-request-chat-template` "
                 "takes those of requests",
                 "unsupported_parameter");
  return given;
}

ToolFormat BatchReader::tool_format_of_model() const {
  const std::string& given = options_.serve.tool_call_parser;
  return given.empty() ? tool_format_of_template(loaded_.tokenizer->chat_template()) : tool_format(given).value();
}

// How the answer to a chat is read: by the flags, else by what the model's template writes.
AnswerParser::Options BatchReader::parser_options(const json::object& body, bool in_reasoning) const {
  const std::string_view source = loaded_.tokenizer->chat_template();
  const ServeFlags& flags = options_.serve;
  AnswerParser::Options options;
  options.reasoning = flags.reasoning_parser.empty() ? reasoning_format_of_template(source)
                                                     : reasoning_format(flags.reasoning_parser).value();
  options.thinking = in_reasoning;
  options.parallel_tool_calls = flag_field(body, "parallel_tool_calls", true);
  const json::value* tools = find_field(body, "tools");
  const json::value* choice = find_field(body, "tool_choice");
  if (tools == nullptr || tools->get_array().empty() || (choice != nullptr && *choice == "none")) return options;
  options.tools = tool_format_of_model();
  options.tool_list = std::make_shared<const json::array>(tools->get_array());
  return options;
}

// Of tool_choice, which is a form of its own.
std::optional<RequestError> BatchReader::add_form(const json::object& body, BatchBody& to,
                                                  std::optional<OutputForm>& form) const {
  if (to.endpoint != Endpoint::kChatCompletions) return std::nullopt;
  auto read = read_tool_choice(body, tool_format_of_model(), to.in_reasoning);
  if (auto* error = std::get_if<RequestError>(&read)) return std::move(*error);
  auto& choice = std::get<ToolChoice>(read);
  to.named_call = choice.named;
  if (!choice.form || (form && !choice.required)) return std::nullopt;
  if (form)
    return RequestError{400, "invalid_value", "tool_choice",
                        "a form of the answer and a call that must come exclude each other"};
  form = std::move(choice.form);
  return std::nullopt;
}

// The form that the answers are to have, from the end of the reasoning on where a prompt ends inside of a think block.
std::optional<RequestError> BatchReader::add_grammars(const json::object& body, BatchBody& to) {
  if (to.endpoint == Endpoint::kEmbeddings) return std::nullopt;
  auto read = requested_form(body);
  if (auto* error = std::get_if<RequestError>(&read)) return std::move(*error);
  auto& form = std::get<std::optional<OutputForm>>(read);
  if (auto error = add_form(body, to, form)) return error;
  if (!form) return std::nullopt;
  if (!loaded_.tokenizer)
    return RequestError{400, "unsupported_parameter", "response_format",
                        "output forms need the model's tokenizer.json"};
  {
    const std::lock_guard lock(mutex_);
    if (!grammars_)
      grammars_ = std::make_unique<GrammarCompiler>(grammar_vocabulary(*loaded_.tokenizer), loaded_.eos_token_ids);
    if (stopped_) grammars_->stop();
  }
  const std::optional<int32_t> end = loaded_.tokenizer->token_to_id(kThinkEnd);
  for (Request& request : to.requests) {
    std::vector<int32_t> thinking_end;
    if (end && to.in_reasoning) thinking_end = {*end};
    GrammarCompiler::Compiled compiled = grammars_->compile(*form, std::move(thinking_end));
    if (compiled.error) return std::move(compiled.error);
    request.grammar = std::move(compiled.grammar);
  }
  return std::nullopt;
}

void BatchReader::stop() {
  const std::lock_guard lock(mutex_);
  stopped_ = true;
  if (grammars_) grammars_->stop();
}

// What all prompts of the body share.
std::optional<RequestError> BatchReader::finish(const json::object& body, BatchBody& to) {
  SamplingParams params = read_params(body, to.endpoint, defaults_);
  if (to.endpoint != Endpoint::kEmbeddings) read_stream_options(body, to);
  to.return_token_ids = flag_field(body, "return_token_ids", false);
  to.tokens_as_token_ids = flag_field(body, "return_tokens_as_token_ids", false);
  to.request_id = string_field(body, "request_id");
  if (to.echo && params.max_tokens == 0) {
    to.without_answer = true;
    params.max_tokens = 1;
  }
  if (to.echo && !params.prompt_logprobs) params.prompt_logprobs = params.logprobs;
  if (to.endpoint == Endpoint::kEmbeddings) {
    const std::string format = string_field(body, "encoding_format");
    if (!format.empty() && format != "float" && format != "base64")
      refuse_field("encoding_format", "encoding_format must be float or base64");
    to.base64 = format == "base64";
    to.normalize = flag_field(body, "normalize", embeddings_.normalize);
    to.dimensions = embeddings_.dimensions_of(integer_field(body, "dimensions"));
  }

  const int64_t priority = integer_field(body, "priority").value_or(0);
  if (priority < std::numeric_limits<int32_t>::min() || priority > std::numeric_limits<int32_t>::max())
    wrong_type("priority", "an integer of 32 bits");
  if (priority != 0 && options_.engine.scheduling_policy != "priority")
    refuse_field("priority", "priority needs --scheduling-policy priority");
  const std::string salt = string_field(body, "cache_salt");
  if (find_field(body, "cache_salt") != nullptr && salt.empty())
    refuse_field("cache_salt", "cache_salt must not be empty");
  const bool skip_reading = flag_field(body, "skip_reading_prefix_cache", false);

  const std::optional<int64_t> keep = integer_field(body, "truncate_prompt_tokens");
  if (keep && *keep != -1 && *keep < 1)
    refuse_field("truncate_prompt_tokens", "truncate_prompt_tokens must be -1 or at least 1");
  const int64_t answer = to.endpoint == Endpoint::kEmbeddings ? 0 : params.max_tokens.value_or(1);
  const int64_t n = std::max(1, params.n);
  if (std::ssize(to.requests) * n > std::numeric_limits<int32_t>::max())
    refuse_field("n", "n is too large for the prompts");
  for (size_t j = 0; j < to.requests.size(); ++j) {
    Request& request = to.requests[j];
    std::vector<int32_t>& ids = request.prompt_token_ids;
    if (keep) {
      const int64_t most = *keep == -1 ? std::max<int64_t>(1, longest_ - answer) : *keep;
      if (std::ssize(ids) > most) {
        if (!request.pictures.empty())
          refuse_field("truncate_prompt_tokens", "truncate_prompt_tokens cannot cut a prompt with pictures");
        ids.erase(ids.begin(), ids.end() - most);
        request.checkpoint_hints.clear();
        to.echoes[j] = to.echo && loaded_.tokenizer ? loaded_.tokenizer->decode(ids) : "";
      }
    }
    if (std::ssize(ids) + answer > longest_)
      return RequestError{400, "context_length_exceeded",
                          to.endpoint == Endpoint::kChatCompletions ? "messages" : "prompt",
                          fmt::format("This model's maximum context length is {} tokens. However, you requested {} "
                                      "tokens ({} in the prompt, {} for the answer). Please reduce them, or raise "
                                      "--max-model-len.",
                                      longest_, std::ssize(ids) + answer, ids.size(), answer)};
    request.params = params;
    request.cache_salt = salt;
    request.skip_reading_prefix_cache = skip_reading;
    request.first_choice = static_cast<int32_t>(static_cast<int64_t>(j) * n);
    request.priority = static_cast<int32_t>(priority);
    if (to.endpoint == Endpoint::kEmbeddings) request.pooling = embeddings_.pooling;
  }
  return add_grammars(body, to);
}

}  // namespace calandra::apps

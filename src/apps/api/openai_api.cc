#include "apps/api/openai_api.h"

#include <fmt/format.h>
#include <fmt/ranges.h>
#include <malloc.h>

#include <algorithm>
#include <ctime>

#include "apps/api/api_reply.h"
#include "apps/api/body_fields.h"
#include "apps/api/chat_messages.h"
#include "apps/api/openapi.h"
#include "server/api_error.h"
#include "server/metrics.h"
#include "text/utf8.h"

namespace calandra::apps {
namespace {

using server::error_reply;
using server::HttpReply;

HttpReply json_reply(const json::value& value) { return {.body = to_json(value)}; }

RequestError bad(std::string_view param, std::string message, const char* code = "invalid_type") {
  return {400, code, std::string(param), std::move(message)};
}

// What stands in the place of a route's {name}.
std::string name_in(const ApiRoute& route, std::string_view path) {
  const size_t behind = route.path.size() - route.path.find('}') - 1;
  path.remove_suffix(behind);
  return std::string(path.substr(route.path.find('{')));
}

}  // namespace

HttpReply metrics_reply(const EngineStats& stats, std::string_view model, int64_t requests) {
  return {.content_type = "text/plain; version=0.0.4; charset=utf-8",
          .body = server::prometheus_text(stats, model, requests)};
}

HttpReply version_reply() { return json_reply({{"version", CALANDRA_VERSION}}); }

OpenAiApi::OpenAiApi(Engine& engine, BatchReader& reader, BatchWriter& writer, const Tokenizer* tokenizer,
                     bool has_admin)
    : engine_(engine),
      reader_(reader),
      writer_(writer),
      responses_(engine, reader),
      messages_(engine, reader),
      tokenizer_(tokenizer),
      created_(static_cast<int64_t>(std::time(nullptr))),
      document_(to_json(openapi_document(CALANDRA_VERSION, reader.vocab_size(), has_admin))) {}

OpenAiApi::Result OpenAiApi::handle(const server::HttpRequest& request, server::Wake wake) {
  if (!is_valid_utf8(request.path)) return error_reply(bad("", "the path is not UTF-8", "bad_request"), "");
  std::vector<std::string_view> methods, allowed;
  for (const ApiRoute& route : api_routes()) {
    if (!is_path_of(route, request.path)) continue;
    if (is_method_of(route, request.method)) return handle(route, request, std::move(wake));
    methods.push_back(route.method);
    allowed.push_back(allowed_methods(route));
  }
  if (methods.empty())
    return error_reply(
        {404, "not_found", "",
         fmt::format("there is no {}; /openapi.json lists the paths", to_json(json::string(request.path)))},
        request.path);
  HttpReply reply =
      error_reply({405, "method_not_allowed", "", fmt::format("use {}", fmt::join(methods, " or "))}, request.path);
  reply.headers.emplace_back("Allow", fmt::format("{}", fmt::join(allowed, ", ")));
  return reply;
}

OpenAiApi::Result OpenAiApi::handle(const ApiRoute& route, const server::HttpRequest& request, server::Wake wake) {
  const std::string_view path = route.path;
  if (route.body != kNoBody) return post(route, request, std::move(wake));
  if (path.starts_with("/v1/responses/")) return responses_.handle(route.method, name_in(route, request.path));
  if (path == "/v1/models") return models();
  if (path.starts_with("/v1/models/")) return model(name_in(route, request.path));
  if (path == "/version") return version_reply();
  if (path == "/openapi.json") return HttpReply{.body = document_};
  const EngineStats stats = engine_.stats();
  if (path == "/load") return json_reply({{"server_load", stats.requests_running + stats.requests_waiting}});
  if (path == "/metrics") return metrics_reply(stats, reader_.served().front(), requests_);
  return health();
}

HttpReply OpenAiApi::health() const {
  if (draining_) return error_reply({503, "service_unavailable", "", "the server is shutting down"});
  if (!engine_.healthy()) return error_reply({503, "service_unavailable", "", "the engine makes no progress"});
  return json_reply(json::object());
}

json::object OpenAiApi::model_object(const std::string& name) const {
  return {{"id", name},
          {"object", "model"},
          {"created", created_},
          {"owned_by", "calandra"},
          {"root", reader_.served().front()},
          {"parent", nullptr},
          {"max_model_len", reader_.longest()},
          {"permission", json::array()}};
}

HttpReply OpenAiApi::models() const {
  json::array data;
  for (const std::string& name : reader_.served()) data.push_back(model_object(name));
  return json_reply({{"object", "list"}, {"data", std::move(data)}});
}

HttpReply OpenAiApi::model(std::string_view name) const {
  for (const std::string& served : reader_.served())
    if (served == name) return json_reply(model_object(served));
  return error_reply(
      {404, "model_not_found", "model", fmt::format("the model {} does not exist", to_json(json::string(name)))});
}

// Where pictures can stand: in messages, in items, and in those of the response that goes before.
bool OpenAiApi::may_show_media(const json::object& body) const {
  for (const std::string_view name : {"messages", "input"})
    if (const json::value* value = body.if_contains(name); value != nullptr && may_have_media(*value)) return true;
  return responses_.goes_on_from_media(body);
}

namespace {

// Whether the answer may have to follow a grammar. Too often yes costs a change of threads.
bool may_ask_for_form(const json::object& body) {
  for (const ApiField& field : api_fields())
    if (field.use == FieldUse::kForm && find_field(body, field.name) != nullptr) return true;
  const json::value* choice = find_field(body, "tool_choice");
  if (choice != nullptr && *choice != "auto" && *choice != "none") return true;
  const auto is_strict = [](const json::value& entry) {
    const json::object* tool = entry.if_object();
    const json::value* function = tool == nullptr ? nullptr : tool->if_contains("function");
    if (function != nullptr && function->is_object()) tool = &function->get_object();
    const json::value* strict = tool == nullptr ? nullptr : tool->if_contains("strict");
    return strict != nullptr && *strict == json::value(true);
  };
  const json::value* tools = find_field(body, "tools");
  return tools != nullptr && tools->is_array() &&
         std::any_of(tools->get_array().begin(), tools->get_array().end(), is_strict);
}

// What is read of a body. Many values lie in small pieces all over the heap, which keeps their places until it is told
// to give them back.
struct Body {
  static constexpr size_t kMany = 50'000;
  Body() = default;
  ~Body() {
    if (values < kMany) return;
    value = nullptr;
    malloc_trim(0);
  }
  Body(const Body&) = delete;
  Body& operator=(const Body&) = delete;

  json::value value;
  size_t values = 0;
};

}  // namespace

OpenAiApi::Result OpenAiApi::post(const ApiRoute& route, const server::HttpRequest& request, server::Wake wake) {
  ++requests_;
  if (request.body.empty())
    return error_reply(bad("", "the body is empty: send a JSON object", "invalid_json"), request.path);
  const auto body = std::make_shared<Body>();
  const size_t most = most_values(route.body);
  size_t values_left = most;
  try {
    body->value = parse_json(request.body, "the body", values_left);
  } catch (const LoadError& error) {
    body->values = most - values_left;
    return error_reply(bad("", error.what(), values_left == 0 ? "invalid_value" : "invalid_json"), request.path);
  }
  body->values = most - values_left;
  if (!body->value.is_object()) return error_reply(bad("", "the body must be a JSON object"), request.path);
  const json::object& fields = body->value.get_object();
  const bool shows_media = may_show_media(fields);
  if (!shows_media && !may_ask_for_form(fields)) return post(fields, request, {}, std::move(wake));
  server::HttpRequest head{request.method, request.path, {}, request.request_id};
  return (shows_media ? media_ : forms_)
      .defer([this, body, head = std::move(head),
              wake](const BatchReader::Gone& gone) { return post(body->value.get_object(), head, gone, wake); },
             wake);
}

OpenAiApi::Result OpenAiApi::post(const json::object& fields, const server::HttpRequest& request,
                                  const BatchReader::Gone& gone, server::Wake wake) {
  try {
    return answer(fields, request, gone, std::move(wake));
  } catch (const RefusedBody& refused) {
    return error_reply(refused.error, request.path);
  }
}

OpenAiApi::Result OpenAiApi::answer(const json::object& fields, const server::HttpRequest& request,
                                    const BatchReader::Gone& gone, server::Wake wake) {
  if (const auto error = reader_.unknown_model(fields)) return error_reply(*error, request.path);
  if (request.path == "/tokenize") return tokenize(fields, gone);
  if (request.path == "/detokenize") return detokenize(fields);
  if (find_field(fields, "model") == nullptr)
    return error_reply(
        bad("model", fmt::format("model is missing; served is {}", reader_.served().front()), "missing_parameter"),
        request.path);
  if (request.path == "/v1/responses") return responses_.create(fields, gone, std::move(wake));
  if (request.path == "/v1/messages") return messages_.create(fields, gone, std::move(wake));
  if (request.path == "/v1/messages/count_tokens") return messages_.count_tokens(fields, gone);
  const Endpoint endpoint = request.path == "/v1/completions"  ? Endpoint::kCompletions
                            : request.path == "/v1/embeddings" ? Endpoint::kEmbeddings
                                                               : Endpoint::kChatCompletions;
  return answer(endpoint, fields, request, gone, std::move(wake));
}

OpenAiApi::Result OpenAiApi::answer(Endpoint endpoint, const json::object& body, const server::HttpRequest& request,
                                    const BatchReader::Gone& gone, server::Wake wake) {
  auto read = reader_.read(endpoint, body, gone);
  if (const auto* error = std::get_if<RequestError>(&read)) return error_reply(*error);
  auto& parsed = std::get<BatchBody>(read);
  if (parsed.request_id.empty() && request.request_id.starts_with("req-"))
    parsed.request_id = request.request_id.substr(4);
  if (const auto error = over_limits(parsed)) return error_reply(*error);
  if (parsed.stream && parsed.echo && parsed.requests[0].params.logprobs && !parsed.without_answer)
    return error_reply(
        bad("logprobs", "logprobs of an echo cannot be streamed; leave out stream", "unsupported_parameter"));
  return ApiReply::start(engine_, writer_, std::move(parsed), std::move(wake));
}

HttpReply OpenAiApi::tokenize(const json::object& given, const BatchReader::Gone& gone) {
  if (tokenizer_ == nullptr) return error_reply({400, "unsupported_parameter", "", "the model has no tokenizer"});
  json::object body = given;
  const json::value* content = find_field(given, "content");  // llama.cpp's form
  if (content != nullptr && !content->is_string()) wrong_type("content", "a string");
  const bool add_special = flag_field(given, "add_special", false);
  flag_field(given, "add_special_tokens", false);  // read with a prompt; its type is looked at beside messages too
  const bool shows_strings = flag_field(given, "return_token_strs", false);
  const bool is_content = content != nullptr && find_field(given, "prompt") == nullptr;
  if (is_content) {
    body["prompt"] = json::value(*content);
    body["add_special_tokens"] = add_special;
  }
  auto read = reader_.read_prompt(body, gone);
  if (const auto* error = std::get_if<RequestError>(&read)) return error_reply(*error);
  const std::vector<Request>& requests = std::get<BatchBody>(read).requests;
  if (requests.size() != 1) return error_reply(bad("prompt", "prompt must be one text"));
  const std::vector<int32_t>& ids = requests[0].prompt_token_ids;
  json::object reply{{"tokens", json::array(ids.begin(), ids.end())}};
  if (is_content) return json_reply(reply);
  reply["count"] = ids.size();
  reply["max_model_len"] = reader_.longest();
  reply["token_strs"] = nullptr;
  if (!shows_strings) return json_reply(reply);
  json::array strings;
  for (const int32_t id : ids) strings.push_back(json::string(tokenizer_->id_to_token(id)));
  reply["token_strs"] = std::move(strings);
  return json_reply(reply);
}

HttpReply OpenAiApi::detokenize(const json::object& body) const {
  if (tokenizer_ == nullptr) return error_reply({400, "unsupported_parameter", "", "the model has no tokenizer"});
  const json::array* tokens = array_field(body, "tokens");
  if (tokens == nullptr) return error_reply(bad("tokens", "tokens is missing", "missing_parameter"));
  std::vector<int32_t> ids;
  for (const json::value& value : *tokens) {
    const std::optional<int64_t> id = whole_number(value);
    if (!id || *id < 0 || *id >= tokenizer_->size())
      return error_reply(bad("tokens", fmt::format("tokens must be ids from 0 to {}", tokenizer_->size() - 1)));
    ids.push_back(static_cast<int32_t>(*id));
  }
  const json::string text(tokenizer_->decode(ids));
  return json_reply({{"prompt", text}, {"content", text}});
}

}  // namespace calandra::apps

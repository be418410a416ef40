#include "apps/api/responses_api.h"

#include <fmt/format.h>

#include <ctime>

#include "apps/api/api_reply.h"
#include "apps/api/batch_response.h"
#include "apps/api/chat_messages.h"
#include "apps/api/responses_request.h"
#include "server/api_error.h"

namespace calandra::apps {
namespace {

using server::error_reply;
using server::HttpReply;

constexpr size_t kMostKept = 4096, kMostKeptBytes = size_t{64} << 20;
constexpr size_t kMostInBackground = 256;

HttpReply json_reply(const json::value& value) { return {.body = to_json(value)}; }

HttpReply not_found(const std::string& id) {
  return error_reply({404, "not_found", "response_id",
                      fmt::format("there is no response {}: none was made, it was not stored, or newer ones took its "
                                  "place",
                                  to_json(json::string(id)))});
}

// 128 random bits: whoever knows the id may read the response.
std::string new_id() { return fmt::format("resp_{:016x}{:016x}", BatchWriter::call_seed(), BatchWriter::call_seed()); }

}  // namespace

ResponsesApi::ResponsesApi(Engine& engine, BatchReader& reader)
    : engine_(engine), reader_(reader), store_(std::make_shared<ResponseStore>(kMostKept, kMostKeptBytes)) {}

bool ResponsesApi::goes_on_from_media(const json::object& body) const {
  const json::value* previous = body.if_contains("previous_response_id");
  if (previous == nullptr || !previous->is_string()) return false;
  const auto kept = store_->find(std::string(previous->get_string()));
  return kept && may_have_media(parse_json(kept->turns, "the turns of a kept response"));
}

ResponsesApi::Result ResponsesApi::create(const json::object& body, const BatchReader::Gone& gone, server::Wake wake) {
  json::array earlier;
  if (const json::value* previous = body.if_contains("previous_response_id"); previous && !previous->is_null()) {
    const auto kept = store_->find(previous->is_string() ? std::string(previous->get_string()) : "");
    if (!kept)
      return error_reply(
          {400, "previous_response_not_found", "previous_response_id",
           fmt::format("there is no response {} to go on from: it was not stored, has not ended, or newer "
                       "ones took its place; send the whole conversation as input",
                       to_json(*previous))});
    const json::value response = parse_json(kept->response, "a kept response");
    auto turns = messages_of_items(response.at("output").as_array(),
                                   parse_json(kept->turns, "the turns of a kept response").as_array());
    if (const auto* error = std::get_if<RequestError>(&turns)) return error_reply(*error);
    earlier = std::get<json::array>(std::move(turns));
  }
  auto form = chat_of_responses(body, std::move(earlier));
  if (const auto* error = std::get_if<RequestError>(&form)) return error_reply(*error);
  auto& chat = std::get<ResponsesChat>(form);
  auto read = reader_.read(Endpoint::kChatCompletions, chat.body, gone);
  if (const auto* error = std::get_if<RequestError>(&read)) return error_reply(in_words_of_responses(*error));
  auto& parsed = std::get<BatchBody>(read);
  if (const auto error = over_limits(parsed)) return error_reply(*error);

  const SamplingParams& params = parsed.requests[0].params;
  chat.echo["temperature"] = as_written(params.temperature);
  chat.echo["top_p"] = as_written(params.top_p);
  const std::string id = new_id();
  ResponseWriter writer({.id = id,
                         .model = std::string(body.at("model").as_string()),
                         .created_at = static_cast<int64_t>(std::time(nullptr)),
                         .echo = std::move(chat.echo),
                         .custom_tools = std::move(chat.custom_tools),
                         .seed = BatchWriter::call_seed()});
  std::function<void(const FormReply::Writer&)> on_end;
  if (chat.store)
    on_end = [store = store_, id, turns = to_json(chat.turns)](const FormReply::Writer& ended) {
      store->put(id, {to_json(std::get<ResponseWriter>(ended).object()), turns});
    };
  if (chat.background) return start_in_background(std::move(parsed), std::move(writer), std::move(on_end));
  auto started = FormReply::start(
      engine_, std::move(parsed), std::move(writer), std::move(wake),
      [this](std::function<void()> work) { ends_.add(std::move(work)); }, std::move(on_end));
  if (const auto* error = std::get_if<RequestError>(&started)) return error_reply(in_words_of_responses(*error));
  return std::unique_ptr<server::PendingReply>(std::get<std::unique_ptr<FormReply>>(std::move(started)));
}

HttpReply ResponsesApi::start_in_background(BatchBody body, ResponseWriter writer,
                                            std::function<void(const FormReply::Writer&)> on_end) {
  const std::lock_guard lock(mutex_);
  sweep();
  if (running_.size() >= kMostInBackground)
    return error_reply({429, "rate_limit_exceeded", "background", "too many responses run in the background"});
  auto started = FormReply::start(
      engine_, std::move(body), std::move(writer), [] {}, {}, std::move(on_end));
  if (const auto* error = std::get_if<RequestError>(&started)) return error_reply(in_words_of_responses(*error));
  auto& reply = std::get<std::unique_ptr<FormReply>>(started);
  const HttpReply first = json_reply(reply->object());
  running_.emplace(reply->object().at("id").as_string(), std::move(reply));
  return first;
}

// Those in the background that have ended go to the store.
void ResponsesApi::sweep() {
  HttpReply unused;
  std::erase_if(running_, [&](auto& one) { return one.second->advance(unused); });
}

HttpReply ResponsesApi::handle(std::string_view method, const std::string& id) {
  const std::lock_guard lock(mutex_);
  sweep();
  return method == "POST" ? cancel(id) : method == "GET" ? get(id) : remove(id);
}

HttpReply ResponsesApi::get(const std::string& id) {
  if (const auto found = running_.find(id); found != running_.end()) return json_reply(found->second->object());
  auto kept = store_->find(id);
  return kept ? HttpReply{.body = std::move(kept->response)} : not_found(id);
}

HttpReply ResponsesApi::cancel(const std::string& id) {
  if (const auto found = running_.find(id); found != running_.end()) {
    found->second->cancel();
    running_.erase(found);
  }
  const auto kept = store_->find(id);
  if (!kept) return not_found(id);
  if (parse_json(kept->response, "a kept response").at("background") != true)
    return error_reply({400, "invalid_value", "response_id", "only a response in the background can be cancelled"});
  return HttpReply{.body = kept->response};
}

HttpReply ResponsesApi::remove(const std::string& id) {
  const bool ran = running_.erase(id) > 0;
  if (!store_->erase(id) && !ran) return not_found(id);
  return json_reply({{"id", id}, {"object", "response"}, {"deleted", true}});
}

}  // namespace calandra::apps

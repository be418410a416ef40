#include "apps/api/messages_api.h"

#include "apps/api/api_reply.h"
#include "apps/api/batch_response.h"
#include "apps/api/body_fields.h"
#include "apps/api/messages_request.h"
#include "server/api_error.h"

namespace calandra::apps {
namespace {

server::HttpReply refusal(RequestError error) {
  rename_param(error, "stop", "stop_sequences");
  rename_param(error, "response_format.json_schema", "output_config.format");
  rename_param(error, "response_format", "output_config.format");
  rename_param(error, "reasoning_effort", "output_config.effort");
  return server::error_reply(error, "/v1/messages");
}

}  // namespace

MessagesApi::Result MessagesApi::create(const json::object& body, const BatchReader::Gone& gone, server::Wake wake) {
  const auto chat = chat_of_messages(body);
  if (const auto* error = std::get_if<RequestError>(&chat)) return refusal(*error);
  auto read = reader_.read(Endpoint::kChatCompletions, std::get<json::object>(chat), gone);
  if (const auto* error = std::get_if<RequestError>(&read)) return refusal(*error);
  auto& parsed = std::get<BatchBody>(read);
  if (const auto error = over_limits(parsed)) return refusal(*error);
  MessageWriter writer(std::string(body.at("model").as_string()), BatchWriter::call_seed(),
                       std::ssize(parsed.requests[0].prompt_token_ids));
  auto started = FormReply::start(engine_, std::move(parsed), std::move(writer), std::move(wake));
  if (const auto* error = std::get_if<RequestError>(&started)) return refusal(*error);
  return std::unique_ptr<server::PendingReply>(std::get<std::unique_ptr<FormReply>>(std::move(started)));
}

server::HttpReply MessagesApi::count_tokens(const json::object& body, const BatchReader::Gone& gone) {
  const auto chat = chat_of_messages(body, /*counting=*/true);
  if (const auto* error = std::get_if<RequestError>(&chat)) return refusal(*error);
  auto read = reader_.read_prompt(std::get<json::object>(chat), gone);
  if (const auto* error = std::get_if<RequestError>(&read)) return refusal(*error);
  const Request& request = std::get<BatchBody>(read).requests[0];
  return {.body = to_json({{"input_tokens", request.prompt_token_ids.size()}})};
}

}  // namespace calandra::apps

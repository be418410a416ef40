// /v1/responses: OpenAI's Responses API over the chat of BatchReader.
#pragma once

#include <map>
#include <memory>
#include <mutex>
#include <string>
#include <variant>

#include "apps/form_reply.h"
#include "apps/response_store.h"

namespace calandra::apps {

class ResponsesApi {
 public:
  using Result = std::variant<server::HttpReply, std::unique_ptr<server::PendingReply>>;
  // Both must outlive it.
  ResponsesApi(Engine& engine, BatchReader& reader);

  // Whether `previous_response_id` names a conversation that may show pictures.
  bool goes_on_from_media(const json::object& body) const;
  // POST /v1/responses
  Result create(const json::object& body, const BatchReader::Gone& gone, server::Wake wake);
  // Whether the path is that of one response: /v1/responses/ID, /v1/responses/ID/cancel.
  static bool is_response(std::string_view path);
  server::HttpReply handle_response(const server::HttpRequest& request);

 private:
  server::HttpReply start_in_background(BatchBody body, ResponseWriter writer,
                                        std::function<void(const FormReply::Writer&)> on_end);
  server::HttpReply get(const std::string& id);
  server::HttpReply cancel(const std::string& id);
  server::HttpReply remove(const std::string& id);
  void sweep();

  Engine& engine_;
  BatchReader& reader_;
  const std::shared_ptr<ResponseStore> store_;
  std::mutex mutex_;
  std::map<std::string, std::unique_ptr<FormReply>> running_;  // in the background
};

}  // namespace calandra::apps

// /v1/responses: OpenAI's Responses API over the chat of BatchReader.
#pragma once

#include <map>
#include <memory>
#include <mutex>
#include <string>
#include <variant>

#include "apps/api/form_reply.h"
#include "apps/api/response_store.h"
#include "apps/api/work_thread.h"

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
  // GET or DELETE of a response; POST cancels it.
  server::HttpReply handle(std::string_view method, const std::string& id);
  // Makes the ends of responses that have ended, and waits for it: then no `wake` is called any more.
  void stop() { ends_.stop(); }

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
  WorkThread ends_;  // a response says its whole request again, and is kept: too much for the sockets' thread
};

}  // namespace calandra::apps

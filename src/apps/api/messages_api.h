// /v1/messages: Anthropic's Messages API over the chat of BatchReader.
#pragma once

#include <memory>
#include <variant>

#include "apps/api/form_reply.h"

namespace calandra::apps {

class MessagesApi {
 public:
  using Result = std::variant<server::HttpReply, std::unique_ptr<server::PendingReply>>;
  // Both must outlive it.
  MessagesApi(Engine& engine, BatchReader& reader) : engine_(engine), reader_(reader) {}

  // POST /v1/messages
  Result create(const json::object& body, const BatchReader::Gone& gone, server::Wake wake);
  // POST /v1/messages/count_tokens
  server::HttpReply count_tokens(const json::object& body, const BatchReader::Gone& gone);

 private:
  Engine& engine_;
  BatchReader& reader_;
};

}  // namespace calandra::apps

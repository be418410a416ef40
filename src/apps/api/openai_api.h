// The endpoints of `calandra serve`. Source: OpenAI's API reference; vLLM's api_server.py for the rest.
#pragma once

#include <atomic>
#include <string>

#include "apps/api/api_routes.h"
#include "apps/api/batch_request.h"
#include "apps/api/batch_response.h"
#include "apps/api/handler_pool.h"
#include "apps/api/messages_api.h"
#include "apps/api/responses_api.h"
#include "engine/engine.h"
#include "server/http.h"

namespace calandra::apps {

server::HttpReply metrics_reply(const EngineStats& stats, std::string_view model, int64_t requests);
server::HttpReply version_reply();

class OpenAiApi {
 public:
  using Result = std::variant<server::HttpReply, std::unique_ptr<server::PendingReply>>;
  // All must outlive it. `tokenizer` may be null. `has_admin`: /openapi.json has the routes of AdminApi too.
  OpenAiApi(Engine& engine, BatchReader& reader, BatchWriter& writer, const Tokenizer* tokenizer, bool has_admin);

  // Any thread may call it.
  Result handle(const server::HttpRequest& request, server::Wake wake);
  // From now on /health says that no more requests are taken.
  void set_draining() { draining_ = true; }
  // Ends what is done for requests on threads of its own, and waits for it.
  void stop() {
    give_up();
    media_.stop();
    forms_.stop();
    responses_.stop();
  }
  // Requests that wait for their pictures or grammars get a 503.
  void give_up() {
    media_.give_up();
    forms_.give_up();
    reader_.stop();
  }

 private:
  bool may_show_media(const json::object& body) const;
  Result handle(const ApiRoute& route, const server::HttpRequest& request, server::Wake wake);
  Result post(const ApiRoute& route, const server::HttpRequest& request, server::Wake wake);
  Result post(const json::object& fields, const server::HttpRequest& request, const BatchReader::Gone& gone,
              server::Wake wake);
  Result answer(const json::object& fields, const server::HttpRequest& request, const BatchReader::Gone& gone,
                server::Wake wake);
  Result answer(Endpoint endpoint, const json::object& body, const server::HttpRequest& request,
                const BatchReader::Gone& gone, server::Wake wake);
  server::HttpReply health() const;
  server::HttpReply models() const;
  server::HttpReply model(std::string_view name) const;
  json::object model_object(const std::string& name) const;
  server::HttpReply tokenize(const json::object& body, const BatchReader::Gone& gone);
  server::HttpReply detokenize(const json::object& body) const;

  Engine& engine_;
  BatchReader& reader_;
  BatchWriter& writer_;
  ResponsesApi responses_;
  MessagesApi messages_;
  const Tokenizer* tokenizer_;
  const int64_t created_;
  const std::string document_;  // /openapi.json
  std::atomic<bool> draining_ = false;
  std::atomic<int64_t> requests_ = 0;
  // The last, for their threads use all before them. A grammar may be waited for as long as the compiler's patience.
  HandlerPool media_;
  HandlerPool forms_{16};
};

}  // namespace calandra::apps

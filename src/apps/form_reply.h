// The answer to a chat in the form of another API, while the engine makes it: whole, or as an event stream.
#pragma once

#include <functional>
#include <memory>
#include <variant>

#include "apps/batch_request.h"
#include "apps/messages_writer.h"
#include "apps/responses_writer.h"
#include "engine/engine.h"
#include "server/http.h"

namespace calandra::apps {

class FormReply : public server::PendingReply {
 public:
  using Writer = std::variant<ResponseWriter, MessageWriter>;
  // Hands the body's one request to the engine. `on_end` is called with the ended answer, by the thread that advances.
  static std::variant<std::unique_ptr<FormReply>, RequestError> start(Engine& engine, BatchBody body, Writer writer,
                                                                      server::Wake wake,
                                                                      std::function<void(const Writer&)> on_end = {});

  bool is_stream() const override { return body_.stream; }
  bool advance(server::HttpReply& reply) override;
  // What there is of the answer, whole.
  const json::object& object() const;
  // Ends it before its time; the engine gives it up with the reply.
  void cancel();

 private:
  FormReply(BatchBody body, Writer writer, server::Wake wake, std::function<void(const Writer&)> on_end);
  void add(const OutputEvents& parts);
  void take(Stream::Event event);

  const BatchBody body_;
  Writer writer_;
  const server::Wake wake_;
  const std::function<void(const Writer&)> on_end_;
  FormParts parts_;
  std::shared_ptr<Stream> stream_;
  int64_t reasoning_tokens_ = 0;
  bool ended_ = false;
  std::optional<RequestError> error_;  // that ended it
};

}  // namespace calandra::apps

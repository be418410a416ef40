// The answer to a chat in the form of another API, while the engine makes it: whole, or as an event stream.
#pragma once

#include <atomic>
#include <chrono>
#include <exception>
#include <functional>
#include <memory>
#include <variant>

#include "apps/api/batch_request.h"
#include "apps/api/messages_writer.h"
#include "apps/api/responses_writer.h"
#include "engine/engine.h"
#include "server/http.h"

namespace calandra::apps {

class FormReply : public server::PendingReply {
 public:
  using Writer = std::variant<ResponseWriter, MessageWriter>;
  // Runs what it is given on another thread.
  using Elsewhere = std::function<void(std::function<void()>)>;
  // Hands the body's one request to the engine. The end of the answer, which may be large, is made by `elsewhere`
  // (absent: by the thread that advances); `on_end` is called there with the ended answer, before anybody is told.
  static std::variant<std::unique_ptr<FormReply>, RequestError> start(Engine& engine, BatchBody body, Writer writer,
                                                                      server::Wake wake, Elsewhere elsewhere = {},
                                                                      std::function<void(const Writer&)> on_end = {});

  bool is_stream() const override { return body_.stream; }
  bool advance(server::HttpReply& reply) override;
  // What there is of the answer, whole. Not for one whose end is made elsewhere.
  const json::object& object() const;
  // Ends it before its time; the engine gives it up with the reply. Not for one whose end is made elsewhere.
  void cancel();

 private:
  // What the thread that makes the end works on; it may outlive the reply.
  struct Made {
    Made(Writer to, std::function<void(const Writer&)> then, bool streams)
        : writer(std::move(to)), on_end(std::move(then)), is_stream(streams) {}
    void make();

    Writer writer;
    const std::function<void(const Writer&)> on_end;
    const bool is_stream;
    FormEnd end;
    std::optional<RequestError> error;  // that ended it
    std::string text;                   // the events that were not taken, or the whole answer
    std::exception_ptr thrown;
    std::atomic<bool> is_whole = false;
  };

  FormReply(BatchBody body, Writer writer, server::Wake wake, Elsewhere elsewhere,
            std::function<void(const Writer&)> on_end);
  void add(const OutputEvents& parts);
  void take(Stream::Event event);
  void make_end(const Answer& answer);

  const BatchBody body_;
  const server::Wake wake_;
  const Elsewhere elsewhere_;
  const std::shared_ptr<Made> made_;
  FormParts parts_;
  std::shared_ptr<Stream> stream_;
  int64_t reasoning_tokens_ = 0;
  bool ended_ = false;  // by the engine, or cancelled
  const std::chrono::steady_clock::time_point started_ = std::chrono::steady_clock::now();
  double first_seconds_ = -1;  // to the first event
};

}  // namespace calandra::apps

#include "apps/form_reply.h"

#include <limits>

#include "apps/api_reply.h"
#include "server/api_error.h"

namespace calandra::apps {

FormReply::FormReply(BatchBody body, Writer writer, server::Wake wake, std::function<void(const Writer&)> on_end)
    : body_(std::move(body)),
      writer_(std::move(writer)),
      wake_(std::move(wake)),
      on_end_(std::move(on_end)),
      parts_(body_.parser.value_or(AnswerParser::Options()), body_.include_reasoning) {
  std::visit([](auto& w) { w.begin(); }, writer_);
}

std::variant<std::unique_ptr<FormReply>, RequestError> FormReply::start(Engine& engine, BatchBody body, Writer writer,
                                                                        server::Wake wake,
                                                                        std::function<void(const Writer&)> on_end) {
  std::unique_ptr<FormReply> reply(
      new FormReply(std::move(body), std::move(writer), std::move(wake), std::move(on_end)));
  auto submitted = engine.submit(reply->body_.requests[0], reply->wake_);
  if (auto* error = std::get_if<RequestError>(&submitted)) return std::move(*error);
  reply->stream_ = std::get<std::shared_ptr<Stream>>(std::move(submitted));
  return reply;
}

void FormReply::add(const OutputEvents& parts) {
  for (const OutputEvent& part : parts) std::visit([&](auto& w) { w.add(part); }, writer_);
}

void FormReply::take(Stream::Event event) {
  add(parts_.add(event.text));
  if (event.token >= 0 && parts_.in_reasoning()) ++reasoning_tokens_;
  if (!event.answer) return;
  const Answer& answer = *event.answer;
  ended_ = true;
  error_ = answer.error;
  if (answer.finish_reason == FinishReason::kCancelled && !error_) error_ = cut_off();
  if (error_) {
    std::visit([&](auto& w) { w.fail(*error_); }, writer_);
  } else {
    add(parts_.finish());
    const FormEnd end{.reason = answer.finish_reason,
                      .stop = answer.stop_reason,
                      .prompt_tokens = std::ssize(body_.requests[0].prompt_token_ids),
                      .cached_tokens = answer.cached_tokens,
                      .output_tokens = std::ssize(answer.token_ids),
                      .reasoning_tokens = reasoning_tokens_};
    std::visit([&](auto& w) { w.end(end); }, writer_);
  }
  if (on_end_) on_end_(writer_);
}

bool FormReply::advance(server::HttpReply& reply) {
  int most = body_.stream ? kMostEvents : std::numeric_limits<int>::max();
  while (!ended_ && most-- > 0)
    if (auto event = stream_->next_for(0))
      take(*std::move(event));
    else
      break;
  if (!ended_ && most < 0) wake_();  // there may be more
  std::string events = std::visit([](auto& w) { return w.take_events(); }, writer_);
  if (body_.stream) {
    reply.content_type = "text/event-stream";
    reply.body += events;
  } else if (error_) {
    reply = server::error_reply(*error_, std::holds_alternative<MessageWriter>(writer_) ? "/v1/messages" : "");
  } else if (ended_) {
    reply.body = to_json(object());
  }
  return ended_;
}

const json::object& FormReply::object() const {
  return std::visit([](const auto& w) -> const json::object& { return w.object(); }, writer_);
}

void FormReply::cancel() {
  if (ended_) return;
  ended_ = true;
  if (auto* response = std::get_if<ResponseWriter>(&writer_)) response->cancel();
  if (on_end_) on_end_(writer_);
}

}  // namespace calandra::apps

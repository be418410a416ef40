#include "apps/api/form_reply.h"

#include <limits>

#include "apps/api/api_reply.h"
#include "server/api_error.h"

namespace calandra::apps {

FormReply::FormReply(BatchBody body, Writer writer, server::Wake wake, Elsewhere elsewhere,
                     std::function<void(const Writer&)> on_end)
    : body_(std::move(body)),
      wake_(std::move(wake)),
      elsewhere_(std::move(elsewhere)),
      made_(std::make_shared<Made>(std::move(writer), std::move(on_end), body_.stream)),
      parts_(body_.parser.value_or(AnswerParser::Options()), body_.include_reasoning) {
  std::visit([](auto& w) { w.begin(); }, made_->writer);
}

std::variant<std::unique_ptr<FormReply>, RequestError> FormReply::start(Engine& engine, BatchBody body, Writer writer,
                                                                        server::Wake wake, Elsewhere elsewhere,
                                                                        std::function<void(const Writer&)> on_end) {
  std::unique_ptr<FormReply> reply(
      new FormReply(std::move(body), std::move(writer), std::move(wake), std::move(elsewhere), std::move(on_end)));
  auto submitted = engine.submit(reply->body_.requests[0], reply->wake_);
  if (auto* error = std::get_if<RequestError>(&submitted)) return std::move(*error);
  reply->stream_ = std::get<std::shared_ptr<Stream>>(std::move(submitted));
  return reply;
}

void FormReply::add(const OutputEvents& parts) {
  for (const OutputEvent& part : parts) std::visit([&](auto& w) { w.add(part); }, made_->writer);
}

void FormReply::take(Stream::Event event) {
  if (first_seconds_ < 0) first_seconds_ = seconds_since(started_);
  add(parts_.add(event.text));
  if (event.token >= 0 && parts_.in_reasoning()) ++reasoning_tokens_;
  if (!event.answer) return;
  ended_ = true;
  const Answer& answer = *event.answer;
  made_->error = answer.error;
  if (answer.finish_reason == FinishReason::kCancelled && !answer.error) made_->error = cut_off();
  if (!made_->error) add(parts_.finish());
  made_->end = {.reason = answer.finish_reason,
                .stop = answer.stop_reason,
                .prompt_tokens = std::ssize(body_.requests[0].prompt_token_ids),
                .cached_tokens = answer.cached_tokens,
                .output_tokens = std::ssize(answer.token_ids),
                .reasoning_tokens = reasoning_tokens_};
  if (!elsewhere_) return made_->make();
  elsewhere_([made = made_, wake = wake_] {
    made->make();
    wake();
  });
}

void FormReply::Made::make() {
  try {
    if (error)
      std::visit([&](auto& w) { w.fail(*error); }, writer);
    else
      std::visit([&](auto& w) { w.end(end); }, writer);
    if (on_end) on_end(writer);
    text = std::visit([&](auto& w) { return is_stream ? w.take_events() : to_json(w.object()); }, writer);
  } catch (const std::exception&) {
    thrown = std::current_exception();
  }
  is_whole = true;
}

bool FormReply::advance(server::HttpReply& reply) {
  int most = body_.stream ? kMostEvents : std::numeric_limits<int>::max();
  while (!ended_ && most-- > 0)
    if (auto event = stream_->next_for(0))
      take(*std::move(event));
    else
      break;
  if (!ended_ && most < 0) wake_();  // there may be more
  if (body_.stream) reply.content_type = "text/event-stream";
  if (!ended_) {
    const std::string events = std::visit([](auto& w) { return w.take_events(); }, made_->writer);
    if (body_.stream) reply.body += events;
    return false;
  }
  if (!made_->is_whole) return false;
  if (made_->thrown) std::rethrow_exception(made_->thrown);
  if (made_->error && !body_.stream)
    reply =
        server::error_reply(*made_->error, std::holds_alternative<MessageWriter>(made_->writer) ? "/v1/messages" : "");
  else
    reply.body += made_->text;
  reply.measures = measures_of(1, made_->end.prompt_tokens, made_->end.output_tokens, first_seconds_);
  return true;
}

const json::object& FormReply::object() const {
  return std::visit([](const auto& w) -> const json::object& { return w.object(); }, made_->writer);
}

void FormReply::cancel() {
  if (ended_) return;
  ended_ = true;
  if (auto* response = std::get_if<ResponseWriter>(&made_->writer)) response->cancel();
  if (made_->on_end) made_->on_end(made_->writer);
}

}  // namespace calandra::apps

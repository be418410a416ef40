#include "apps/api/api_reply.h"

#include <fmt/format.h>

#include <algorithm>

#include "server/api_error.h"

namespace calandra::apps {

double seconds_since(std::chrono::steady_clock::time_point start) {
  return std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
}

Measures measures_of(int64_t choices, int64_t prompt_tokens, int64_t completion_tokens, double first_seconds) {
  return {{"gen_ai.usage.num_sequences", static_cast<double>(choices)},
          {"gen_ai.usage.prompt_tokens", static_cast<double>(prompt_tokens)},
          {"gen_ai.usage.completion_tokens", static_cast<double>(completion_tokens)},
          {"gen_ai.latency.time_to_first_token", first_seconds}};
}

RequestError cut_off() {
  return {503, "service_unavailable", "", "the answer was cut off: the server is shutting down"};
}

std::optional<RequestError> over_limits(const BatchBody& body) {
  constexpr int64_t kMostChoices = 4096;
  constexpr int64_t kMostLogprobs = 20;  // of a token, as vLLM: an answer's memory is their product with its tokens
  const SamplingParams& params = body.requests[0].params;
  if (std::ssize(body.requests) * std::max(1, params.n) > kMostChoices)
    return RequestError{400, "invalid_value", "n",
                        fmt::format("a request may ask for at most {} answers", kMostChoices)};
  for (const auto& [name, count] :
       {std::pair{"logprobs", params.logprobs}, {"prompt_logprobs", params.prompt_logprobs}})
    if (count.value_or(0) > kMostLogprobs || count.value_or(0) < 0)
      return RequestError{400, "invalid_value", name, fmt::format("{} must be from 0 to {}", name, kMostLogprobs)};
  return {};
}

ApiReply::ApiReply(BatchWriter& writer, BatchBody body, server::Wake wake)
    : writer_(writer), body_(std::move(body)), wake_(std::move(wake)), head_(writer.response_head(body_, true)) {
  for (const Request& request : body_.requests) {
    const auto n = static_cast<size_t>(std::max(1, request.params.n));
    answers_.emplace_back(n);
    ended_.emplace_back(n);
    told_.emplace_back(n);
    open_.emplace_back(n);
    if (!body_.parser) continue;
    for (Open& open : open_.back()) {
      open.parser.emplace(*body_.parser);
      open.call_seed = BatchWriter::call_seed();
    }
  }
}

std::variant<server::HttpReply, std::unique_ptr<server::PendingReply>> ApiReply::start(Engine& engine,
                                                                                       BatchWriter& writer,
                                                                                       BatchBody body,
                                                                                       server::Wake wake) {
  std::unique_ptr<ApiReply> reply(new ApiReply(writer, std::move(body), std::move(wake)));
  for (const Request& request : reply->body_.requests) {
    auto submitted = engine.submit(request, reply->wake_);
    if (auto* error = std::get_if<RequestError>(&submitted)) return server::error_reply(*error);
    reply->streams_.push_back(std::get<std::shared_ptr<Stream>>(std::move(submitted)));
  }
  return std::unique_ptr<server::PendingReply>(std::move(reply));
}

// True when all choices have ended.
bool ApiReply::take_events() {
  int taken = 0;
  bool all = true;
  for (size_t j = 0; j < streams_.size(); ++j) {
    while (taken < kMostEvents) {
      auto event = streams_[j]->next_for(0);
      if (!event) break;
      ++taken;
      const auto i = static_cast<size_t>(event->choice - body_.requests[j].first_choice);
      Open& open = open_[j][i];
      if (first_seconds_ < 0) first_seconds_ = seconds_since(started_);
      open.text += event->text;
      if (event->token >= 0) {
        open.token_ids.push_back(event->token);
        ++open.tokens;
      }
      if (event->logprobs) open.logprobs.push_back(std::move(*event->logprobs));
      if (!event->answer) continue;
      answers_[j][i] = std::move(*event->answer);
      ended_[j][i] = true;
      if (answers_[j][i].finish_reason == FinishReason::kCancelled && !answers_[j][i].error)
        answers_[j][i].error = cut_off();
    }
    all = all && streams_[j]->ended();
  }
  if (!all && taken == kMostEvents) wake_();  // there may be more
  return all;
}

const RequestError* ApiReply::error() const {
  for (const std::vector<Answer>& choices : answers_)
    for (const Answer& answer : choices)
      if (answer.error) return &*answer.error;
  return nullptr;
}

bool ApiReply::advance(server::HttpReply& reply) {
  const bool all = take_events();
  const RequestError* failed = error();
  if (!body_.stream) {
    if (failed != nullptr)
      reply = server::error_reply(*failed);
    else if (all)
      reply.body = to_json(writer_.response(body_, answers_));
    if (all) add_measures(reply);
    return failed != nullptr || all;
  }
  reply.content_type = "text/event-stream";
  for (size_t j = 0; j < open_.size(); ++j)
    for (size_t i = 0; i < open_[j].size(); ++i)
      if (!answers_[j][i].error) add_chunk(j, i, reply.body);
  if (failed != nullptr) {
    reply.body += "data: " + to_json(json::object{{"error", server::error_object(*failed)}}) + "\n\ndata: [DONE]\n\n";
    return true;
  }
  if (!all) return false;
  add_measures(reply);
  if (body_.include_usage) {
    json::object chunk = head_;
    chunk["choices"] = json::array();
    chunk["usage"] = usage_of(body_, answers_);
    add_event(chunk, reply.body);
  }
  reply.body += "data: [DONE]\n\n";
  return true;
}

void ApiReply::add_measures(server::HttpReply& reply) const {
  int64_t prompt = 0, completion = 0, choices = 0;
  for (size_t j = 0; j < answers_.size(); ++j) {
    prompt += std::ssize(body_.requests[j].prompt_token_ids);
    choices += std::ssize(answers_[j]);
    for (const Answer& answer : answers_[j]) completion += std::ssize(answer.token_ids);
  }
  reply.measures = measures_of(choices, prompt, completion, first_seconds_);
}

// A chunk with what is new of a choice, if anything is.
void ApiReply::add_chunk(size_t prompt, size_t choice, std::string& to) {
  Open& open = open_[prompt][choice];
  const bool chats = body_.endpoint == Endpoint::kChatCompletions;
  const SamplingParams& params = body_.requests[prompt].params;
  const int64_t index = std::ssize(open_[0]) * static_cast<int64_t>(prompt) + static_cast<int64_t>(choice);
  const auto send = [&](json::value content, json::value logprobs, json::value reason, json::value stop) {
    json::object one{{"index", index}};
    one[chats ? "delta" : "text"] = std::move(content);
    one["logprobs"] = std::move(logprobs);
    one["finish_reason"] = std::move(reason);
    if (!stop.is_null()) one["stop_reason"] = std::move(stop);
    if (body_.return_token_ids) one["token_ids"] = json::array(open.token_ids.begin(), open.token_ids.end());
    json::object chunk = head_;
    chunk["choices"] = json::array{std::move(one)};
    if (body_.continuous_usage_stats) chunk["usage"] = usage_so_far();
    add_event(chunk, to);
  };
  if (!open.begun) {
    open.begun = true;
    const std::vector<int32_t> none;
    std::vector<int32_t> kept = std::exchange(open.token_ids, none);
    if (chats)
      send({{"role", "assistant"}, {"content", ""}}, nullptr, nullptr, nullptr);
    else if (body_.echo)
      send(json::string(body_.echoes[prompt]), nullptr, nullptr, nullptr);
    open.token_ids = std::move(kept);
  }
  if (body_.without_answer) open.text.clear(), open.token_ids.clear(), open.logprobs.clear();
  const bool last = ended_[prompt][choice] && !told_[prompt][choice];
  json::array contents = chats ? deltas(open, last) : json::array();
  if (!chats && !open.text.empty()) contents.push_back(json::string(open.text));
  const bool silent = !open.logprobs.empty() || (body_.return_token_ids && !open.token_ids.empty());
  if (contents.empty() && silent)  // text is held back, what belongs to its tokens is not
    contents.push_back(chats ? json::value{{"content", ""}} : json::value(json::string()));
  for (json::value& content : contents) {
    json::value logprobs;
    if (params.logprobs && !open.logprobs.empty()) {
      Answer some;
      some.token_ids = open.token_ids;
      some.logprobs = std::move(open.logprobs);
      logprobs = writer_.logprobs(body_, some, open.offset);
    }
    send(std::move(content), std::move(logprobs), nullptr, nullptr);
    open.token_ids.clear();
    open.logprobs.clear();
  }
  open.text.clear();
  open.token_ids.clear();
  if (!last) return;
  told_[prompt][choice] = true;
  const Answer& answer = answers_[prompt][choice];
  std::string_view reason = body_.without_answer ? "length" : name_of(answer.finish_reason);
  if (open.has_calls && !body_.named_call && answer.finish_reason == FinishReason::kStop) reason = "tool_calls";
  send(chats ? json::value(json::object()) : json::value(json::string()), nullptr, json::string(reason),
       stop_reason(answer));
}

// What the new text of a chat's choice means.
json::array ApiReply::deltas(Open& open, bool last) const {
  json::array out;
  if (!open.parser) {
    if (!open.text.empty()) out.push_back(json::object{{"content", open.text}});
    return out;
  }
  OutputEvents events = open.parser->add(open.text);
  if (last)
    for (OutputEvent& event : open.parser->finish()) events.push_back(std::move(event));
  const auto call = [&](const OutputEvent& event, json::object fields) {
    fields["index"] = event.call;
    open.has_calls = true;
    out.push_back(json::object{{"tool_calls", json::array{json::value(std::move(fields))}}});
  };
  for (const OutputEvent& event : events) {
    switch (event.kind) {
      case OutputEvent::Kind::kReasoning:
        if (body_.include_reasoning)
          out.push_back(json::object{{"reasoning", event.text}, {"reasoning_content", event.text}});
        break;
      case OutputEvent::Kind::kContent:
        out.push_back(json::object{{"content", event.text}});
        break;
      case OutputEvent::Kind::kToolCallBegin:
        call(event, {{"id", tool_call_id(open.call_seed, event.call)},
                     {"type", "function"},
                     {"function", {{"name", event.text}, {"arguments", ""}}}});
        break;
      case OutputEvent::Kind::kArguments:
        call(event, {{"function", {{"arguments", event.text}}}});
        break;
      case OutputEvent::Kind::kToolCallEnd:
        break;
    }
  }
  return out;
}

void ApiReply::add_event(const json::object& chunk, std::string& to) const {
  to += "data: ";
  to += to_json(chunk);
  to += "\n\n";
}

json::object ApiReply::usage_so_far() const {
  int64_t prompt = 0, completion = 0;
  for (const Request& request : body_.requests) prompt += std::ssize(request.prompt_token_ids);
  for (const std::vector<Open>& choices : open_)
    for (const Open& open : choices) completion += body_.without_answer ? 0 : open.tokens;
  return {{"prompt_tokens", prompt}, {"completion_tokens", completion}, {"total_tokens", prompt + completion}};
}

}  // namespace calandra::apps

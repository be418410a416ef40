#include "apps/bench/served_user.h"

#include <fmt/format.h>

#include "base/error.h"

namespace calandra::apps {
namespace {

constexpr size_t kLongestLine = size_t{16} << 20;
constexpr size_t kShownBytes = 200;  // of what a server says in an error

const json::object* object_in(const json::object& object, std::string_view key) {
  const json::value* value = object.if_contains(key);
  return value != nullptr && value->is_object() ? &value->get_object() : nullptr;
}

int64_t count_in(const json::object& object, std::string_view key) {
  const json::value* value = object.if_contains(key);
  return value != nullptr && value->is_int64() ? value->get_int64() : 0;
}

std::string_view text_in(const json::object& object, std::string_view key) {
  const json::value* value = object.if_contains(key);
  return value != nullptr && value->is_string() ? std::string_view(value->get_string()) : std::string_view();
}

// OpenAI's error object, or the text as it is.
std::string error_text(std::string_view body) {
  try {
    const json::value value = parse_json(body, "the error");
    if (value.is_object())
      if (const json::object* error = object_in(value.get_object(), "error"))
        return std::string(text_in(*error, "message").substr(0, kShownBytes));
  } catch (const LoadError&) {
  }
  return to_json(json::string(body.substr(0, kShownBytes)));
}

// New text of an answer's part, of whatever kind.
std::string text_of(const json::object& choice) {
  std::string text(text_in(choice, "text"));
  const json::object* delta = object_in(choice, "delta");
  if (delta == nullptr) return text;
  for (const char* key : {"content", "reasoning", "reasoning_content"}) {
    if (text.empty()) text = text_in(*delta, key);
  }
  if (const json::value* calls = delta->if_contains("tool_calls"); text.empty() && calls != nullptr)
    text = to_json(*calls);
  return text;
}

}  // namespace

std::string fault_of(int status, std::string_view body) {
  const char* const hint = status == 401 ? " (the key is read from the environment's OPENAI_API_KEY)" : "";
  return fmt::format("status {}: {}{}", status, error_text(body), hint);
}

bool ServedUser::next(server::HttpCall& call, double now) {
  const size_t turn = asked_.size();
  if (turn == conversation_.turns.size() || (turn > 0 && !asked_.back().error.empty())) return false;
  const ServedTurn& said = conversation_.turns[turn];
  json::object body = common_.body;
  if (common_.endpoint == "/v1/completions") {
    text_ += (text_.empty() ? "" : "\n") + said.text;
    body["prompt"] = text_;
    body["max_tokens"] = said.output_len;
  } else {
    messages_.push_back({{"role", "user"}, {"content", said.text}});
    body["messages"] = messages_;
    body["max_completion_tokens"] = said.output_len;
  }
  call.path = common_.endpoint;
  call.headers = common_.headers;
  call.body = to_json(body);
  asked_.emplace_back().times.arrival = now;
  answer_.clear();
  rest_.clear();
  status_ = 0;
  is_stream_ = done_ = counted_ = false;
  return true;
}

void ServedUser::head(int status, std::string_view content_type) {
  status_ = status;
  is_stream_ = status == 200 && content_type.starts_with("text/event-stream");
  if (status == 200 && !is_stream_)
    asked_.back().error = fmt::format("the server did not stream, but sent {}", to_json(json::string(content_type)));
}

void ServedUser::body(std::string_view part, double now) {
  if (rest_.size() + part.size() > kLongestLine) {
    asked_.back().error = "a line of the stream is too long";
    rest_.clear();
    is_stream_ = false;
  }
  if (status_ == 200 && !is_stream_) return;
  rest_ += part;
  if (!is_stream_) return;
  size_t begin = 0;
  for (size_t end; (end = rest_.find('\n', begin)) != std::string::npos; begin = end + 1)
    take_line(std::string_view(rest_).substr(begin, end - begin), now);
  rest_.erase(0, begin);
}

void ServedUser::take_line(std::string_view line, double now) {
  constexpr std::string_view kData = "data:";
  if (line.ends_with('\r')) line.remove_suffix(1);
  if (!line.starts_with(kData)) return;  // a comment, another field, or the end of an event
  line.remove_prefix(kData.size());
  if (line.starts_with(' ')) line.remove_prefix(1);
  if (line == "[DONE]") {
    done_ = true;
    return;
  }
  try {
    take_event(parse_json(line, "an event"), now);
  } catch (const LoadError&) {
    if (asked_.back().error.empty()) asked_.back().error = "an event of the stream is no JSON";
  }
}

void ServedUser::take_event(const json::value& event, double now) {
  if (!event.is_object()) return;
  const json::object& object = event.get_object();
  Asked& asked = asked_.back();
  if (const json::object* error = object_in(object, "error")) {
    asked.error = fmt::format("an error in the stream: {}", text_in(*error, "message").substr(0, kShownBytes));
    return;
  }
  if (const json::object* usage = object_in(object, "usage")) take_usage(*usage);
  const json::value* choices = object.if_contains("choices");
  if (choices == nullptr || !choices->is_array()) return;
  for (const json::value& choice : choices->get_array()) {
    const std::string text = choice.is_object() ? text_of(choice.get_object()) : "";
    if (text.empty()) continue;
    answer_ += text;
    if (!counted_) ++asked.times.output_tokens;
    if (asked.times.first_token == 0)
      asked.times.first_token = now;
    else
      asked.times.gaps.push_back(now - asked.times.last_token);
    asked.times.last_token = now;
  }
}

void ServedUser::take_usage(const json::object& usage) {
  RequestTimes& times = asked_.back().times;
  counted_ = true;
  times.prompt_tokens = count_in(usage, "prompt_tokens");
  times.output_tokens = count_in(usage, "completion_tokens");
  if (const json::object* details = object_in(usage, "prompt_tokens_details"))
    times.cached_tokens = count_in(*details, "cached_tokens");
}

void ServedUser::end(std::string_view error, double) {
  Asked& asked = asked_.back();
  if (asked.error.empty()) {
    if (!error.empty())
      asked.error = error;
    else if (status_ != 200)
      asked.error = fault_of(status_, rest_);
    else if (!done_)
      asked.error = "the stream ended before [DONE]";
    else if (asked.times.first_token == 0)
      asked.error = "the answer has no token";
  }
  asked.times.failed = !asked.error.empty();
  if (common_.endpoint == "/v1/completions")
    text_ += answer_;
  else
    messages_.push_back({{"role", "assistant"}, {"content", answer_}});
  const size_t given_up = asked.times.failed ? conversation_.turns.size() - asked_.size() : 0;
  for (size_t i = 0; i <= given_up; ++i) common_.ended();
}

}  // namespace calandra::apps

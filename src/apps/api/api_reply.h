// The answer to one body of the API, while the engine makes it: whole, or as an event stream.
#pragma once

#include <chrono>
#include <memory>
#include <optional>
#include <variant>
#include <vector>

#include "apps/api/batch_response.h"
#include "engine/engine.h"
#include "server/http.h"

namespace calandra::apps {

inline constexpr int kMostEvents = 1024;  // taken at once, so that a slow reader's text is not all made at once
// Of an answer that the server ended.
RequestError cut_off();

double seconds_since(std::chrono::steady_clock::time_point start);
// What an answer's trace says; `first_seconds` until its first event.
using Measures = std::vector<std::pair<std::string_view, double>>;
Measures measures_of(int64_t choices, int64_t prompt_tokens, int64_t completion_tokens, double first_seconds);

// What a body asks for beyond what one answer over HTTP may take, or nothing.
std::optional<RequestError> over_limits(const BatchBody& body);

class ApiReply : public server::PendingReply {
 public:
  // Hands the body's requests to the engine. All must outlive the reply but `body`.
  static std::variant<server::HttpReply, std::unique_ptr<server::PendingReply>> start(Engine& engine,
                                                                                      BatchWriter& writer,
                                                                                      BatchBody body,
                                                                                      server::Wake wake);

  bool is_stream() const override { return body_.stream; }
  bool advance(server::HttpReply& reply) override;

 private:
  // What one choice has for the next chunk.
  struct Open {
    bool begun = false;
    std::string text;
    std::vector<int32_t> token_ids;
    std::vector<ops::TokenLogprobs> logprobs;
    int64_t offset = 0;                  // characters sent, for logprobs
    int64_t tokens = 0;                  // all so far
    std::optional<AnswerParser> parser;  // of a chat
    uint64_t call_seed = 0;
    bool has_calls = false;
  };

  ApiReply(BatchWriter& writer, BatchBody body, server::Wake wake);
  bool take_events();
  void add_chunk(size_t prompt, size_t choice, std::string& to);
  json::array deltas(Open& open, bool last) const;
  void add_event(const json::object& chunk, std::string& to) const;
  void add_measures(server::HttpReply& reply) const;
  const RequestError* error() const;
  json::object usage_so_far() const;

  BatchWriter& writer_;
  const BatchBody body_;
  const server::Wake wake_;
  const json::object head_;
  std::vector<std::shared_ptr<Stream>> streams_;  // by prompt
  std::vector<std::vector<Answer>> answers_;      // by prompt and choice, when `ended`
  std::vector<std::vector<bool>> ended_, told_;   // answers that are there, and whose last chunk was sent
  std::vector<std::vector<Open>> open_;
  const std::chrono::steady_clock::time_point started_ = std::chrono::steady_clock::now();
  double first_seconds_ = -1;  // to the first event
};

}  // namespace calandra::apps

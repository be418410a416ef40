// Answers of the engine as the responses of OpenAI's batch format, with vLLM's further fields.
#pragma once

#include <atomic>
#include <string>
#include <vector>

#include "apps/api/batch_request.h"

namespace calandra::apps {

// The lines of a batch's output.
class BatchWriter {
 public:
  // `model`: the name that bodies carry. `tokenizer` may be null, and must outlive the writer.
  BatchWriter(const Tokenizer* tokenizer, std::string model);

  // `answers` by prompt and choice. An answer's error becomes the line's.
  json::object line(const json::value& custom_id, const BatchBody& body,
                    const std::vector<std::vector<Answer>>& answers);
  json::object error_line(const json::value& custom_id, const RequestError& error);
  // The body of a response whose answers have no error. Any thread may ask for what follows.
  json::object response(const BatchBody& body, const std::vector<std::vector<Answer>>& answers);
  // The fields that a response and its chunks begin with: id, object, created, model.
  json::object response_head(const BatchBody& body, bool chunk);
  // Of some tokens of an answer; `offset` in characters of the text, and moved.
  json::object logprobs(const BatchBody& body, const Answer& some, int64_t& offset) const;

  // For the ids of an answer's tool calls.
  static uint64_t call_seed();

 private:
  json::object response_line(const json::value& custom_id, int status, json::value body, json::value error);
  json::object completion(const BatchBody& body, const std::vector<std::vector<Answer>>& answers) const;
  json::object chat(const BatchBody& body, const std::vector<Answer>& answers) const;
  static json::object message_of(const BatchBody& body, const Answer& answer, bool& calls);
  json::object embeddings(const BatchBody& body, const std::vector<std::vector<Answer>>& answers) const;
  json::object completion_logprobs(const BatchBody& body, size_t prompt, const Answer& first, const Answer& answer,
                                   int64_t& offset) const;
  json::object chat_logprobs(const BatchBody& body, const Answer& answer) const;
  json::array prompt_logprobs(const BatchBody& body, size_t prompt, const Answer& first) const;
  std::string name_of_token(int32_t id, bool as_id) const;
  std::string make_id(const char* prefix);

  const Tokenizer* tokenizer_;
  const std::string model_;
  const std::string run_;  // random: ids of different runs differ
  std::atomic<int64_t> ids_ = 0;
};

json::object usage_of(const BatchBody& body, const std::vector<std::vector<Answer>>& answers);
json::value stop_reason(const Answer& answer);

}  // namespace calandra::apps

// Answers of the engine as the responses of OpenAI's batch format, with vLLM's further fields.
#pragma once

#include <string>
#include <vector>

#include "apps/batch_request.h"

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

 private:
  json::object response_line(const json::value& custom_id, int status, json::value body, json::value error);
  json::object completion(const BatchBody& body, const std::vector<std::vector<Answer>>& answers) const;
  json::object chat(const BatchBody& body, const std::vector<Answer>& answers) const;
  json::object embeddings(const BatchBody& body, const std::vector<std::vector<Answer>>& answers) const;
  json::object completion_logprobs(const BatchBody& body, size_t prompt, const Answer& first,
                                   const Answer& answer) const;
  json::object chat_logprobs(const BatchBody& body, const Answer& answer) const;
  json::array prompt_logprobs(const BatchBody& body, size_t prompt, const Answer& first) const;
  std::string name_of_token(int32_t id, bool as_id) const;
  std::string make_id(const char* prefix);

  const Tokenizer* tokenizer_;
  const std::string model_;
  const std::string run_;  // random: ids of different runs differ
  int64_t ids_ = 0;
};

}  // namespace calandra::apps

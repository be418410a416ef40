// The bodies of OpenAI's batch format, with vLLM's further fields: JSON to requests of the engine. Sources: OpenAI's
// API reference; vLLM 0.26, entrypoints/openai/run_batch.py and protocol.py.
#pragma once

#include <optional>
#include <string>
#include <variant>
#include <vector>

#include "apps/conversation.h"
#include "engine/request.h"

namespace calandra::apps {

enum class Endpoint { kCompletions, kChatCompletions, kEmbeddings };

// One body, read: a request for each of its prompts, and what its answer must show.
struct BatchBody {
  Endpoint endpoint = Endpoint::kCompletions;
  std::vector<Request> requests;
  std::vector<std::string> echoes;  // what each choice's text begins with; empty: nothing
  bool echo = false;
  bool without_answer = false;  // echo with max_tokens 0: only the prompt is scored
  bool return_token_ids = false;
  bool tokens_as_token_ids = false;       // in logprobs: "token_id:7"
  bool base64 = false, normalize = true;  // of embeddings
  std::string request_id;                 // the user's name for it; may be empty
};

// One line of a batch.
struct BatchLine {
  json::value custom_id;  // null when it has none
  std::variant<BatchBody, RequestError> body;
};

class BatchReader {
 public:
  // `served`: names that a body's "model" may have. `longest`: most tokens of a sequence. `loaded` must outlive it.
  BatchReader(const LoadedModel& loaded, const Options& options, std::vector<std::string> served, int64_t longest);

  BatchLine read(const std::string& line);

 private:
  std::variant<BatchBody, RequestError> read_line(const json::object& line);
  std::variant<BatchBody, RequestError> read_body(Endpoint endpoint, const json::object& body);
  void read_prompts(const json::object& body, std::string_view field, BatchBody& to) const;
  void read_messages(const json::object& body, BatchBody& to);
  std::optional<RequestError> finish(const json::object& body, BatchBody& to);
  void warn_of_unknown(const json::object& body);

  const LoadedModel& loaded_;
  const Options& options_;
  const std::vector<std::string> served_;
  const int64_t longest_;
  SamplingParams defaults_;                   // of generation_config.json
  std::optional<Conversation> conversation_;  // made for the first chat
  std::vector<std::string> warned_;           // fields
};

}  // namespace calandra::apps

// The bodies of OpenAI's batch format, with vLLM's further fields: JSON to requests of the engine. Sources: OpenAI's
// API reference; vLLM 0.26, entrypoints/openai/run_batch.py and protocol.py.
#pragma once

#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <variant>
#include <vector>

#include "apps/api/embedding_rules.h"
#include "apps/api/known_fields.h"
#include "apps/api/media.h"
#include "apps/conversation.h"
#include "engine/request.h"
#include "structured/grammar_compiler.h"
#include "text/parsers/answer_parser.h"

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
  bool tokens_as_token_ids = false;             // in logprobs: "token_id:7"
  bool base64 = false, normalize = true;        // of embeddings
  int64_t dimensions = 0;                       // the same: numbers of each
  std::string request_id;                       // the user's name for it; may be empty
  bool stream = false;                          // of a server
  bool in_reasoning = false;                    // a chat's answers begin inside of a think block
  std::optional<AnswerParser::Options> parser;  // of a chat's answers; absent: all text is content
  bool named_call = false;                      // tool_choice names a function: a call ends the answer with "stop"
  bool include_reasoning = true;
  bool include_usage = false, continuous_usage_stats = false;  // in a stream
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

  // Whether the client has left, so that nobody needs its pictures.
  using Gone = std::function<bool()>;

  BatchLine read(const std::string& line);
  // One body. Any thread may ask; it waits until the body's pictures are there.
  std::variant<BatchBody, RequestError> read(Endpoint endpoint, const json::object& body, const Gone& gone = {});
  // The prompts of a body alone: its `messages`, or the field `prompt`. Tools and their choice are read as for an
  // answer.
  std::variant<BatchBody, RequestError> read_prompt(const json::object& body, const Gone& gone = {});
  // What is wrong with the "model" of a body: another one is served. A body may have none.
  std::optional<RequestError> unknown_model(const json::object& body) const;
  // Ends the compiling of grammars, now and later: those who wait for one get an error.
  void stop();
  const std::vector<std::string>& served() const { return served_; }
  int64_t longest() const { return longest_; }
  int64_t vocab_size() const { return loaded_.model->vocab_size(); }

 private:
  std::variant<BatchBody, RequestError> read_line(const json::object& line);
  std::variant<BatchBody, RequestError> read_body(Endpoint endpoint, const json::object& body, const Gone& gone);
  // Of texts of more than `most` ids, which are refused: only so many are counted.
  void read_prompts(const json::object& body, std::string_view field, size_t most, BatchBody& to) const;
  void read_messages(const json::object& body, const Gone& gone, size_t most, BatchBody& to);
  size_t most_ids(const json::object& body) const;
  void refuse_longer(std::string_view field, const std::vector<int32_t>& ids, size_t most) const;
  std::string request_template(const json::object& body) const;
  ToolFormat tool_format_of_model() const;
  AnswerParser::Options parser_options(const json::object& body, bool in_reasoning) const;
  std::optional<RequestError> add_form(const json::object& body, BatchBody& to, std::optional<OutputForm>& form) const;
  std::optional<RequestError> finish(const json::object& body, BatchBody& to);
  std::optional<RequestError> add_grammars(const json::object& body, BatchBody& to);

  const LoadedModel& loaded_;
  const Options& options_;
  const std::vector<std::string> served_;
  const int64_t longest_;
  const MediaLoader media_;
  const EmbeddingRules embeddings_;
  SamplingParams defaults_;                    // of generation_config.json
  std::mutex mutex_;                           // of what follows
  std::optional<Conversation> conversation_;   // made for the first chat
  std::unique_ptr<GrammarCompiler> grammars_;  // made for the first form
  bool stopped_ = false;
  UnknownFields unknown_;
};

}  // namespace calandra::apps

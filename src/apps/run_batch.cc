// `calandra run-batch`: a file of requests in OpenAI's batch format, all through one engine at once.
#include <algorithm>
#include <cerrno>
#include <cstring>
#include <filesystem>
#include <fstream>

#include "apps/api/batch_request.h"
#include "apps/api/batch_response.h"
#include "apps/engine_setup.h"
#include "apps/input_text.h"
#include "apps/output.h"
#include "apps/verbs.h"
#include "base/error.h"
#include "base/log.h"
#include "base/progress.h"
#include "engine/engine.h"

namespace calandra::apps {
namespace {

namespace fs = std::filesystem;

constexpr size_t kLongestInput = size_t{1} << 30;
constexpr int64_t kUsualSequences = 32;  // at once
constexpr int64_t kUsualTokens = 32768;  // of a sequence, where the model allows it

// The file of --output-file, or standard output.
class OutputFile {
 public:
  explicit OutputFile(std::string name) : name_(std::move(name)) {
    if (name_ == "-") return;
    file_.open(name_, std::ios::binary | std::ios::trunc);
    check();
  }

  void write(const json::object& line) {
    if (name_ == "-") return print_json(line);
    file_ << to_json(line) << "\n" << std::flush;
    check();
  }

 private:
  void check() const {
    if (!file_) throw LoadError("cannot write " + name_ + ": " + std::strerror(errno));
  }

  const std::string name_;
  std::ofstream file_;
};

void check_files(const Options& options) {
  std::error_code ignored;  // of files that do not exist
  if (options.batch_output != "-" && fs::equivalent(options.batch_input, options.batch_output, ignored))
    throw UsageError("--input-file and --output-file are the same file");
}

std::vector<std::string> lines_of(const std::string& text) {
  std::vector<std::string> lines;
  for (size_t begin = 0; begin < text.size();) {
    const size_t end = std::min(text.find('\n', begin), text.size());
    std::string line = text.substr(begin, end - begin);
    if (line.find_first_not_of(" \t\r") != std::string::npos) lines.push_back(std::move(line));
    begin = end + 1;
  }
  return lines;
}

std::vector<BatchLine> read_batch(const std::vector<std::string>& lines, BatchReader reader) {
  ProgressBar bar("reading the requests", std::ssize(lines), "requests");
  std::vector<BatchLine> batch;
  for (const std::string& line : lines) {
    batch.push_back(reader.read(line));
    bar.update(std::ssize(batch));
  }
  return batch;
}

// Choices that run at once, and tokens of the longest one.
Sizes usual_sizes(const std::vector<BatchLine>& batch, int64_t longest) {
  Sizes sizes{0, 1};
  for (const BatchLine& line : batch) {
    const auto* body = std::get_if<BatchBody>(&line.body);
    if (body == nullptr) continue;
    for (const Request& request : body->requests) {
      sizes.sequences += std::max(1, request.params.n);
      const bool open = request.pooling == Pooling::kNone && !request.params.max_tokens;
      const int64_t end = std::ssize(request.prompt_token_ids) + request.params.max_tokens.value_or(1);
      sizes.tokens = std::max(sizes.tokens, open ? longest : end);
    }
  }
  return {std::clamp<int64_t>(sizes.sequences, 1, kUsualSequences), std::min(sizes.tokens, longest)};
}

// One line on its way through the engine: a stream for each prompt, or what was wrong.
using Submitted = std::variant<std::vector<std::shared_ptr<Stream>>, RequestError>;

Submitted submit(Engine& engine, const BatchLine& line) {
  if (const auto* error = std::get_if<RequestError>(&line.body)) return *error;
  std::vector<std::shared_ptr<Stream>> streams;
  for (const Request& request : std::get<BatchBody>(line.body).requests) {
    auto submitted = engine.submit(request);
    if (auto* error = std::get_if<RequestError>(&submitted)) return std::move(*error);
    streams.push_back(std::get<std::shared_ptr<Stream>>(std::move(submitted)));
  }
  return streams;
}

// Answers by choice, in order. `waiting` is called while there are none.
template <class Waiting>
std::vector<Answer> answers_of(Stream& stream, const Request& request, const Waiting& waiting) {
  constexpr double kSeconds = 0.1;
  std::vector<Answer> answers(static_cast<size_t>(std::max(1, request.params.n)));
  while (!stream.ended()) {
    auto event = stream.next_for(kSeconds);
    if (!event) {
      waiting();
    } else if (event->answer) {
      answers[static_cast<size_t>(event->choice - request.first_choice)] = std::move(*event->answer);
    }
  }
  return answers;
}

int64_t finished(const EngineStats& stats) {
  return stats.finished_stop + stats.finished_length + stats.finished_abort + stats.finished_error;
}

}  // namespace

int run_batch(const Options& options) {
  check_files(options);
  const std::vector<std::string> lines = lines_of(read_text(options.batch_input, kLongestInput));
  OutputFile output(options.batch_output);
  LoadedModel loaded = load_for_engine(options, !options.media.language_model_only);
  const Tokenizer* tokenizer = loaded.tokenizer ? &*loaded.tokenizer : nullptr;

  std::vector<std::string> served = options.served_model_names;
  if (served.empty()) served = {options.model.model.empty() ? "demo:qwen3_5" : options.model.model};
  const int64_t longest =
      options.model.max_model_len.value_or(std::min(kUsualTokens, loaded.model->max_position_embeddings()));
  const std::vector<BatchLine> batch = read_batch(lines, BatchReader(loaded, options, served, longest));

  EngineSetup setup =
      engine_setup(loaded, options, {.usual = usual_sizes(batch, longest), .least = {1, 1}, .prefix_caching = true});
  ModelRunner runner(*loaded.model, *loaded.backend, setup.limits);
  EngineLoopOptions loop;
  if (options.disable_log_stats) loop.stats_seconds = 0;
  Engine engine(runner, tokenizer, std::move(setup.options), loop);

  std::vector<Submitted> submitted;
  int64_t choices = 0;
  for (const BatchLine& line : batch) {
    submitted.push_back(submit(engine, line));
    if (std::holds_alternative<RequestError>(submitted.back())) continue;
    for (const Request& request : std::get<BatchBody>(line.body).requests) choices += request.params.n;
  }

  ProgressBar bar("answering", choices, "answers");
  BatchWriter writer(tokenizer, served.front());
  int64_t failed = 0;
  for (size_t i = 0; i < batch.size(); ++i) {
    json::object line;
    if (const auto* error = std::get_if<RequestError>(&submitted[i])) {
      line = writer.error_line(batch[i].custom_id, *error);
    } else {
      const auto& body = std::get<BatchBody>(batch[i].body);
      auto& streams = std::get<std::vector<std::shared_ptr<Stream>>>(submitted[i]);
      std::vector<std::vector<Answer>> answers;
      for (size_t j = 0; j < streams.size(); ++j)
        answers.push_back(answers_of(*streams[j], body.requests[j], [&] { bar.update(finished(engine.stats())); }));
      line = writer.line(batch[i].custom_id, body, answers);
      streams.clear();
    }
    failed += !line.at("error").is_null();
    output.write(line);
    bar.update(finished(engine.stats()));
  }
  log_info("{} requests, {} failed", batch.size(), failed);
  return 0;
}

}  // namespace calandra::apps

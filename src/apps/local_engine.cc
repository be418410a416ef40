#include <calandra/engine.h>
#include "apps/conversation.h"
#include "apps/engine_setup.h"
#include "base/error.h"

namespace calandra {
namespace {

constexpr int64_t kUsualSequences = 32;
constexpr int64_t kUsualTokens = 32768;  // of a sequence, where the model allows it

// The flags as run-batch reads them, which needs files that nobody opens.
apps::Options read_flags(const std::string& model, const std::vector<std::string>& flags) {
  std::vector<std::string> words = {"calandra", "run-batch", "--input-file=-", "--output-file=-"};
  words.insert(words.end(), flags.begin(), flags.end());
  words.insert(words.end(), {"--", model});
  std::vector<char*> arguments;
  for (std::string& word : words) arguments.push_back(word.data());
  std::optional<apps::Options> options = apps::parse_command_line(static_cast<int>(arguments.size()), arguments.data());
  if (!options) throw UsageError("--help is for the program");
  return *std::move(options);
}

}  // namespace

struct LocalEngine::Parts {
  Parts(const std::string& model, const std::vector<std::string>& flags)
      : options(read_flags(model, flags)),
        loaded(apps::load_for_engine(options, /*vision=*/true)),
        setup(apps::engine_setup(loaded, options, use())),
        runner(*loaded.model, *loaded.backend, setup.limits),
        params(apps::sampling_params(options, loaded)),
        engine(runner, loaded.tokenizer ? &*loaded.tokenizer : nullptr, setup.options,
               {.stats_seconds = options.disable_log_stats ? 0.0 : 10.0}) {}

  apps::EngineUse use() const {
    const int64_t longest = std::min(kUsualTokens, loaded.model->max_position_embeddings());
    return {.usual = {kUsualSequences, options.model.max_model_len.value_or(longest)},
            .least = {1, 1},
            .prefix_caching = true};
  }

  const apps::Options options;
  const apps::LoadedModel loaded;
  const apps::EngineSetup setup;
  ModelRunner runner;
  const SamplingParams params;
  Engine engine;
};

LocalEngine::LocalEngine(const std::string& model, const std::vector<std::string>& flags)
    : parts_(std::make_unique<Parts>(model, flags)) {}

LocalEngine::~LocalEngine() = default;

Engine& LocalEngine::engine() { return parts_->engine; }

const Tokenizer* LocalEngine::tokenizer() const {
  return parts_->loaded.tokenizer ? &*parts_->loaded.tokenizer : nullptr;
}

const SamplingParams& LocalEngine::params() const { return parts_->params; }

std::vector<int32_t> LocalEngine::chat_prompt(std::string_view message) const {
  return apps::Conversation(parts_->loaded, parts_->options)
      .encode({json::object{{"role", "user"}, {"content", message}}})
      .ids;
}

}  // namespace calandra

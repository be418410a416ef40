// A backend and a model, ready to run: what every verb with a model begins with.
#pragma once

#include <filesystem>
#include <memory>
#include <optional>

#include "apps/command_line.h"
#include "engine/model_runner.h"
#include "models/registry.h"
#include "text/tokenizer.h"
#include "weights/weight_store.h"

namespace calandra::apps {

std::unique_ptr<Backend> make_backend(const ModelOptions& options);
int thread_count(const ModelOptions& options);  // --threads, or one per usable core

struct LoadedModel {
  std::filesystem::path folder;  // empty with --shape
  ModelConfig config;
  std::unique_ptr<Backend> backend;
  std::unique_ptr<Checkpoint> checkpoint;  // null with dummy weights
  std::unique_ptr<WeightStore> store;
  std::unique_ptr<CausalLM> model;
  std::optional<Tokenizer> tokenizer;  // absent when the folder has no tokenizer.json
  json::object generation_config;      // of the folder, may be empty
  std::vector<int32_t> eos_token_ids;  // of config, generation_config and tokenizer
  double load_seconds = 0;
};

// Reads config and weights (with a progress bar). `weights` false: builds the model without reading any (inspect).
LoadedModel load_model(const ModelOptions& options, const ModelParts& parts = {}, bool weights = true);

// The tokenizer of MODEL's folder alone. Throws LoadError.
Tokenizer load_tokenizer(const ModelOptions& options);

// Sequences at once, and tokens of each.
struct Sizes {
  int64_t sequences = 1;
  int64_t tokens = 1;
};
// The limits that the flags give; `usual` where they are absent, its tokens cut to what the model can. Throws LoadError
// naming the flag when `least` does not fit, or when the model cannot.
RunnerLimits planned_limits(const LoadedModel& loaded, const ModelOptions& options, const Sizes& usual,
                            const Sizes& least);
// The same, when the machine has the memory; otherwise LoadError.
RunnerLimits runner_limits(const LoadedModel& loaded, const ModelOptions& options, const Sizes& usual,
                           const Sizes& least);

}  // namespace calandra::apps

// A backend and a model, ready to run: what every verb with a model begins with.
#pragma once

#include <filesystem>
#include <memory>
#include <optional>

#include "apps/command_line.h"
#include "models/registry.h"
#include "text/tokenizer.h"
#include "weights/weight_store.h"

namespace calandra::apps {

std::unique_ptr<Backend> make_backend(const ModelOptions& options);
int thread_count(const ModelOptions& options);  // --threads, or one per usable core

// Seconds that the parts of a load took, in their order.
struct LoadSeconds {
  double config = 0;
  double backend = 0;    // the device's context, threads
  double model = 0;      // headers of weight files, the model without weights
  double weights = 0;    // reading and packing
  double tokenizer = 0;  // that was still waited for: it is read beside all that
  double all() const { return config + backend + model + weights + tokenizer; }
};

struct LoadedModel {
  std::filesystem::path folder;  // empty with --shape
  ModelConfig config;
  ModelParts parts;
  std::unique_ptr<Backend> backend;
  std::unique_ptr<WeightFiles> checkpoint;  // null with dummy weights
  std::unique_ptr<WeightStore> store;
  std::unique_ptr<CausalLM> model;
  std::optional<Tokenizer> tokenizer;  // absent when the folder has no tokenizer.json
  json::object generation_config;      // of the folder, may be empty
  std::vector<int32_t> eos_token_ids;  // of config, generation_config and tokenizer
  LoadSeconds load_seconds;
};

// Reads config and weights (with a progress bar). `weights` false: builds the model without reading any, for inspect
// and for what is checked before load_weights.
// `draft_vocab` above 0: the drafter's own output head has the ids below it and the tokenizer's added ones.
LoadedModel load_model(const ModelOptions& options, ModelParts parts = {}, bool weights = true,
                       int64_t draft_vocab = 0);

// The weights of a model that was made without.
void load_weights(LoadedModel& loaded, const ModelOptions& options);

// Throws LoadError when the model cannot draft. load_model does it for parts with a drafter, before it reads weights.
void check_drafter(const LoadedModel& loaded);

// The tokenizer of MODEL's folder alone. Throws LoadError.
Tokenizer load_tokenizer(const ModelOptions& options);

}  // namespace calandra::apps

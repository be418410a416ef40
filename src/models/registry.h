// The architectures that calandra computes. Only apps/ includes this.
#pragma once

#include <memory>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "base/json.h"
#include "models/causal_lm.h"
#include "ops/backend.h"
#include "weights/weight_reader.h"

namespace calandra {

// A checkpoint's config, read and checked, before any weight.
struct ModelConfig {
  std::string architecture;  // "Qwen3_5ForConditionalGeneration"
  DType dtype;               // of the config: what --dtype auto means (f32 | bf16)
  json::object config;       // whole, --hf-overrides merged in
  std::string file;          // name for errors
  std::vector<int32_t> eos_token_ids;
  std::span<const std::string_view> end_tokens;  // tokens that end an answer whatever the files say
  std::optional<Fp8Blocks> fp8;                  // for the WeightStore
};

// Throws LoadError for an unknown architecture, a number format that is not supported, or broken fields.
ModelConfig check_config(json::object config, const std::string& file);

// Builds the model; its constructor notes every weight with `reader`, WeightStore::load fills them in. `dtype` f32 |
// bf16.
std::unique_ptr<CausalLM> make_model(const ModelConfig& config, WeightReader reader, Backend& backend, DType dtype,
                                     const ModelParts& parts);

// Tensors that a checkpoint of this architecture may hold and that are not read, each with its reason.
std::vector<UnusedTensors> unused_tensors(const ModelConfig& config, const ModelParts& parts);

// One line per fact for `calandra inspect`: {"hidden_size", "1024"}, ….
std::vector<std::pair<std::string, std::string>> describe(const ModelConfig& config);

// The config.json of a release by name ("qwen3_5-0.8b"), for random weights in its shape. Throws UsageError listing the
// names.
json::object config_of_shape(const std::string& name);

}  // namespace calandra

// Qwen3.5 configuration: the fields of text_config and vision_config that the model needs, under HF's names.
// transformers 5.17 configuration_qwen3_5.py; docs/models/qwen3_5.md.
#pragma once

#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "layers/rotary_embedding.h"
#include "models/causal_lm.h"
#include "models/config_fields.h"
#include "ops/moe.h"
#include "ops/norm.h"
#include "weights/weight_reader.h"

namespace calandra::qwen3_5 {

enum class LayerKind { kLinearAttention, kFullAttention };

struct VisionConfig {
  int64_t depth = 0;
  int64_t hidden_size = 0;
  int64_t intermediate_size = 0;
  int64_t num_heads = 0;
  int64_t in_channels = 0;
  int64_t patch_size = 0;
  int64_t temporal_patch_size = 0;
  int64_t spatial_merge_size = 0;
  int64_t num_position_embeddings = 0;  // rows of the table, a square
  int64_t out_hidden_size = 0;          // hidden_size of the text model
  double rope_theta = 10000;
};

struct Config {
  int64_t vocab_size = 0;
  int64_t hidden_size = 0;
  int64_t intermediate_size = 0;  // of the dense models
  int64_t num_hidden_layers = 0;
  int64_t num_attention_heads = 0;
  int64_t num_key_value_heads = 0;
  int64_t head_dim = 0;
  int64_t max_position_embeddings = 0;
  float rms_norm_eps = 0;
  int64_t linear_conv_kernel_dim = 0;
  int64_t linear_key_head_dim = 0;
  int64_t linear_value_head_dim = 0;
  int64_t linear_num_key_heads = 0;
  int64_t linear_num_value_heads = 0;
  ops::GateActivation output_gate_type = ops::GateActivation::kSilu;
  RopeParameters rope;
  std::vector<LayerKind> layer_kinds;  // from layer_types or full_attention_interval
  int64_t num_experts = 0;             // 0: dense; otherwise every layer is a mixture
  ops::RouterOptions router;
  int64_t moe_intermediate_size = 0;
  int64_t shared_expert_intermediate_size = 0;
  int64_t mtp_num_hidden_layers = 0;
  std::optional<VisionConfig> vision;
  bool tie_word_embeddings = false;
  bool nested = false;  // weights under model.language_model.* (with a vision tower) instead of model.*

  int64_t key_dim() const { return linear_num_key_heads * linear_key_head_dim; }
  int64_t value_dim() const { return linear_num_value_heads * linear_value_head_dim; }
  int64_t conv_dim() const { return 2 * key_dim() + value_dim(); }
};

// Throws LoadError naming file and key.
Config parse_config(const json::object& config, const std::string& file);

// What a checkpoint of this config may hold beside the text model and the parts that are loaded.
std::vector<UnusedTensors> unused_tensors(const Config& config, const ModelParts& parts);

// Facts for people: {"layers", "24 (18 linear_attention, 6 full_attention)"}, ….
std::vector<std::pair<std::string, std::string>> describe(const Config& config);

}  // namespace calandra::qwen3_5

// Configuration of the Bailing MoE linear family: BailingMoeV2_5ForCausalLM (Ling / Ring 2.5 and 2.6) and its
// predecessor BailingMoeLinearV2ForCausalLM, under the names of configuration_bailing_moe_v2_5.py;
// docs/models/bailing_v2_5.md.
#pragma once

#include <string>
#include <utility>
#include <vector>

#include "layers/lightning_attention.h"
#include "layers/rotary_embedding.h"
#include "models/config_fields.h"
#include "ops/moe.h"
#include "weights/weight_reader.h"

namespace calandra::bailing_v2_5 {

// Kind of the full-attention layers: latent (V2.5) or grouped-query (LinearV2).
enum class FullAttention { kLatent, kGroupedQuery };

struct Config {
  FullAttention full_attention = FullAttention::kLatent;
  int64_t vocab_size = 0;
  int64_t hidden_size = 0;
  int64_t intermediate_size = 0;  // of the dense layers
  int64_t num_hidden_layers = 0;
  int64_t num_attention_heads = 0;
  int64_t num_key_value_heads = 0;  // of grouped-query layers only
  int64_t head_dim = 0;
  int64_t max_position_embeddings = 0;
  float rms_norm_eps = 0;
  bool tie_word_embeddings = false;
  bool use_qk_norm = true;
  bool use_qkv_bias = false;
  bool use_bias = false;
  // linear layers
  int64_t layer_group_size = 1;  // every layer_group_size-th layer is full attention
  int64_t group_norm_size = 1;   // QUIRK: the number of norm groups, not their width
  bool linear_silu = false;
  bool linear_rope = true;
  LinearDecayVariant linear_decay_variant = LinearDecayVariant::kP;
  RopeParameters rope;  // half-split, on the first rotary_dim of head_dim
  // latent attention
  int64_t q_lora_rank = 0;  // 0: one q_proj
  int64_t kv_lora_rank = 0;
  int64_t qk_nope_head_dim = 0;
  int64_t qk_rope_head_dim = 0;
  int64_t v_head_dim = 0;
  RopeParameters latent_rope;     // interleaved pairs, on all of qk_rope_head_dim
  float latent_scale_factor = 1;  // on the softmax scale: mscale^2 of mscale_all_dim
  // mixture of experts
  int64_t num_experts = 0;  // 0 or 1: every layer is dense
  ops::RouterOptions router;
  bool moe_router_enable_expert_bias = false;
  int64_t moe_intermediate_size = 0;
  int64_t shared_intermediate_size = 0;  // of all shared experts together; 0: none
  int64_t first_k_dense_replace = 0;
  int64_t num_nextn_predict_layers = 0;

  bool is_full_attention(int64_t layer) const {  // layers behind the last one (MTP) always are
    return layer >= num_hidden_layers || (layer + 1) % layer_group_size == 0;
  }
  bool is_sparse(int64_t layer) const {  // those always are
    return num_experts > 1 && (layer >= num_hidden_layers || layer >= first_k_dense_replace);
  }
};

// Throws LoadError naming file and key. `kind` follows from the architecture's name.
Config parse_config(const json::object& config, const std::string& file, FullAttention kind);

// What a checkpoint of this config may hold beside what the model reads; `drafter`: the MTP layers are read.
std::vector<UnusedTensors> unused_tensors(const Config& config, bool drafter);

// Facts for people.
std::vector<std::pair<std::string, std::string>> describe(const Config& config);

}  // namespace calandra::bailing_v2_5

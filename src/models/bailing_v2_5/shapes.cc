#include "models/bailing_v2_5/shapes.h"

namespace calandra::bailing_v2_5 {

std::span<const ReleaseShape> release_shapes() {
  static constexpr ReleaseShape kShapes[] = {
      {"ring-mini-linear-2.0", false, 2048, 5120, 20, 16, 4, 5, 4, 512, 1, 1e6, 131072, 0},
      {"ring-flash-linear-2.0", false, 4096, 9216, 32, 32, 4, 8, 4, 1024, 1, 1e6, 131072, 0},
      {"ling-2.6-flash", true, 4096, 9216, 32, 32, 32, 8, 4, 1024, 1, 6e6, 131072, 1},
      {"ring-2.5-1t", true, 8192, 18432, 80, 64, 64, 8, 8, 2048, 4, 6e6, 131072, 0},
      {"ling-2.5-1t", true, 8192, 18432, 80, 64, 64, 8, 8, 2048, 4, 6e6, 262144, 0},
      {"ling-2.6-1t", true, 8192, 18432, 80, 64, 64, 8, 8, 2048, 4, 6e6, 262144, 1},
      {"ring-2.6-1t", true, 8192, 18432, 80, 64, 64, 8, 8, 2048, 4, 6e6, 262144, 1},
  };
  return kShapes;
}

json::object config_of(const ReleaseShape& s) {
  json::object config = {{"architectures", {s.latent ? "BailingMoeV2_5ForCausalLM" : "BailingMoeLinearV2ForCausalLM"}},
                         {"model_type", s.latent ? "bailing_hybrid" : "bailing_moe_linear"},
                         {"torch_dtype", "bfloat16"},
                         {"vocab_size", 157184},
                         {"hidden_size", s.hidden_size},
                         {"intermediate_size", s.intermediate_size},
                         {"num_hidden_layers", s.num_hidden_layers},
                         {"num_attention_heads", s.num_attention_heads},
                         {"num_key_value_heads", s.num_key_value_heads},
                         {"head_dim", 128},
                         {"hidden_act", "silu"},
                         {"use_qkv_bias", false},
                         {"use_bias", false},
                         {"use_qk_norm", true},
                         {"rms_norm_eps", 1e-6},
                         {"tie_word_embeddings", false},
                         {"max_position_embeddings", s.max_position_embeddings},
                         {"rope_theta", s.rope_theta},
                         {"partial_rotary_factor", 0.5},
                         {"layer_group_size", s.layer_group_size},
                         {"group_norm_size", s.group_norm_size},
                         {"linear_silu", false},
                         {"num_experts", 256},
                         {"num_experts_per_tok", 8},
                         {"n_group", 8},
                         {"topk_group", 4},
                         {"num_shared_experts", 1},
                         {"moe_intermediate_size", s.moe_intermediate_size},
                         {"first_k_dense_replace", s.first_k_dense_replace},
                         {"routed_scaling_factor", 2.5},
                         {"score_function", "sigmoid"},
                         {"moe_router_enable_expert_bias", true},
                         {"router_dtype", "fp32"},
                         {"num_nextn_predict_layers", s.num_nextn_predict_layers},
                         {"pad_token_id", 156892},
                         {"eos_token_id", {156892, 156895}}};  // end of text, end of a turn
  if (s.latent) {
    config["q_lora_rank"] = 1536;
    config["kv_lora_rank"] = 512;
    config["qk_nope_head_dim"] = 128;
    config["qk_rope_head_dim"] = 64;
    config["v_head_dim"] = 128;
    config["rope_interleave"] = true;
  }
  return config;
}

}  // namespace calandra::bailing_v2_5

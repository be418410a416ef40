#include "models/qwen3_5/shapes.h"

namespace calandra::qwen3_5 {

std::span<const ReleaseShape> release_shapes() {
  static constexpr ReleaseShape kShapes[] = {
      {"qwen3_5-0.8b", 1024, 24, 8, 2, 16, 3584, true},
      {"qwen3_5-2b", 2048, 24, 8, 2, 16, 6144, true},
      {"qwen3_5-4b", 2560, 32, 16, 4, 32, 9216, true},
      {"qwen3_5-9b", 4096, 32, 16, 4, 32, 12288, false},
      {"qwen3_5-27b", 5120, 64, 24, 4, 48, 17408, false},
      {"qwen3_5-35b-a3b", 2048, 40, 16, 2, 32, 512, false, 256, 8},
      {"qwen3_5-122b-a10b", 3072, 48, 32, 2, 64, 1024, false, 256, 8},
      {"qwen3_5-397b-a17b", 4096, 60, 32, 2, 64, 1024, false, 512, 10},
  };
  return kShapes;
}

json::object config_of(const ReleaseShape& s) {
  const bool moe = s.num_experts > 0;
  json::object config = {{"architectures", {moe ? "Qwen3_5MoeForCausalLM" : "Qwen3_5ForCausalLM"}},
                         {"model_type", moe ? "qwen3_5_moe_text" : "qwen3_5_text"},
                         {"dtype", "bfloat16"},
                         {"vocab_size", 248320},
                         {"hidden_size", s.hidden_size},
                         {"num_hidden_layers", s.num_hidden_layers},
                         {"num_attention_heads", s.num_attention_heads},
                         {"num_key_value_heads", s.num_key_value_heads},
                         {"head_dim", 256},
                         {"max_position_embeddings", 262144},
                         {"rms_norm_eps", 1e-6},
                         {"linear_conv_kernel_dim", 4},
                         {"linear_key_head_dim", 128},
                         {"linear_value_head_dim", 128},
                         {"linear_num_key_heads", 16},
                         {"linear_num_value_heads", s.linear_num_value_heads},
                         {"full_attention_interval", 4},
                         {"rope_parameters",
                          {{"rope_type", "default"},
                           {"rope_theta", 1e7},
                           {"partial_rotary_factor", 0.25},
                           {"mrope_section", {11, 11, 10}},
                           {"mrope_interleaved", true}}},
                         {"mtp_num_hidden_layers", 1},
                         {"tie_word_embeddings", s.tie_word_embeddings},
                         {"eos_token_id", 248044}};
  if (moe) {
    config["num_experts"] = s.num_experts;
    config["num_experts_per_tok"] = s.num_experts_per_tok;
    config["moe_intermediate_size"] = s.intermediate_size;
    config["shared_expert_intermediate_size"] = s.intermediate_size;
  } else {
    config["intermediate_size"] = s.intermediate_size;
  }
  return config;
}

}  // namespace calandra::qwen3_5

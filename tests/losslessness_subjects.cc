#include "tests/losslessness_subjects.h"

#include <algorithm>
#include <cstdlib>
#include <map>
#include <string_view>

#include "base/json.h"
#include "tests/model_under_test.h"

namespace calandra::lossless {
namespace {

namespace fs = std::filesystem;

// The shape of the oracle's mtp_dense, with a recurrent layer above the attention layer, two draft layers, and eyes.
constexpr const char* kSmallQwen = R"({
  "architectures": ["Qwen3_5ForConditionalGeneration"], "model_type": "qwen3_5", "tie_word_embeddings": false,
  "image_token_id": 502, "video_token_id": 503, "vision_start_token_id": 499, "vision_end_token_id": 500,
  "text_config": {
    "model_type": "qwen3_5_text", "vocab_size": 512, "hidden_size": 64, "intermediate_size": 96,
    "num_hidden_layers": 3, "layer_types": ["linear_attention", "full_attention", "linear_attention"],
    "num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 64, "hidden_act": "silu",
    "max_position_embeddings": 4096, "rms_norm_eps": 1e-06, "attention_bias": false, "attn_output_gate": true,
    "linear_conv_kernel_dim": 4, "linear_key_head_dim": 64, "linear_value_head_dim": 64, "linear_num_key_heads": 1,
    "linear_num_value_heads": 2, "full_attention_interval": 4, "initializer_range": 0.02,
    "partial_rotary_factor": 0.25, "mamba_ssm_dtype": "float32", "mtp_num_hidden_layers": 2,
    "rope_parameters": {"rope_type": "default", "rope_theta": 10000000.0, "partial_rotary_factor": 0.25,
                        "mrope_section": [3, 3, 2], "mrope_interleaved": true},
    "tie_word_embeddings": false, "dtype": "bfloat16", "eos_token_id": 496},
  "vision_config": {
    "model_type": "qwen3_5", "depth": 1, "hidden_act": "gelu_pytorch_tanh", "hidden_size": 16, "in_channels": 3,
    "initializer_range": 0.02, "intermediate_size": 24, "num_heads": 1, "num_position_embeddings": 16,
    "out_hidden_size": 64, "patch_size": 16, "spatial_merge_size": 2, "temporal_patch_size": 2,
    "deepstack_visual_indexes": []}})";

// The shape of the oracle's v25_mtp_two_layers.
constexpr const char* kSmallBailing = R"({
  "architectures": ["BailingMoeV2_5ForCausalLM"], "model_type": "bailing_hybrid", "vocab_size": 512,
  "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 4, "num_attention_heads": 2,
  "num_key_value_heads": 2, "head_dim": 64, "hidden_act": "silu", "use_qkv_bias": false, "use_bias": false,
  "use_qk_norm": true, "rms_norm_eps": 1e-06, "tie_word_embeddings": false, "max_position_embeddings": 4096,
  "rope_theta": 6000000, "rope_scaling": null, "partial_rotary_factor": 0.5, "rope_interleave": true,
  "layer_group_size": 2, "group_norm_size": 2, "linear_silu": false, "num_experts": 8, "num_experts_per_tok": 2,
  "n_group": 4, "topk_group": 2, "num_shared_experts": 1, "moe_intermediate_size": 16, "first_k_dense_replace": 1,
  "routed_scaling_factor": 2.5, "score_function": "sigmoid", "moe_router_enable_expert_bias": true,
  "router_dtype": "fp32", "topk_method": "noaux_tc", "q_lora_rank": null, "kv_lora_rank": 32,
  "qk_nope_head_dim": 32, "qk_rope_head_dim": 32, "v_head_dim": 32, "num_nextn_predict_layers": 2,
  "initializer_range": 0.02, "pad_token_id": 0, "eos_token_id": 1, "torch_dtype": "bfloat16"})";

// Prompts and answers that came with a demo model, one after the other.
std::vector<int32_t> recorded_text(const fs::path& folder) {
  std::vector<int32_t> ids;
  const json::value file = read_json_file(folder / "expected_greedy.json");
  for (const json::value& c : file.at("cases").as_array())
    for (const char* part : {"prompt_ids", "output_ids"})
      for (const json::value& id : c.at(part).as_array()) ids.push_back(static_cast<int32_t>(id.as_int64()));
  return ids;
}

// Few different ids, some of them in runs that repeat, so that prompt lookup finds something.
std::vector<int32_t> random_text(int64_t vocab_size) {
  std::vector<int32_t> ids;
  uint32_t x = 12345;
  while (ids.size() < 1500) {
    x = x * 1664525u + 1013904223u;
    if (ids.size() > 20 && x % 5 == 0) {
      const size_t from = ids.size() - 9 - x / 8 % 8;
      for (size_t i = 0; i < 6; ++i) ids.push_back(ids[from + i]);
    }
    ids.push_back(static_cast<int32_t>((x >> 8) % static_cast<uint32_t>(std::min<int64_t>(vocab_size, 90))));
  }
  return ids;
}

std::string_view backend_asked() {
  const char* value = std::getenv("CALANDRA_LOSSLESS_BACKEND");
  const std::string_view backend = value != nullptr ? value : "cpu";
  CHECK_MSG(backend == "cpu" || backend == "cuda" || backend == "cuda_fast",
            "CALANDRA_LOSSLESS_BACKEND is cpu, cuda or cuda_fast, not " + std::string(backend));
  return backend;
}

std::unique_ptr<Subject> load(const std::string& name) {
  auto loaded = std::make_unique<Subject>();
  Subject& s = *loaded;
  s.name = name;
  s.demo = name.starts_with("demo");
  const std::string_view backend = backend_asked();
  s.one_order = backend != "cuda_fast";
  s.backend = testing::make_backend({.backend = backend == "cpu" ? "cpu" : "cuda", .deterministic = backend == "cuda"});
  json::object config;
  fs::path folder;
  if (name == "small_qwen3_5" || name == "small_bailing") {
    config = parse_json(name == "small_qwen3_5" ? kSmallQwen : kSmallBailing, name).as_object();
  } else {
    folder = s.demo ? fs::path(CALANDRA_SOURCE_DIR "/demo") / name
                    : testing::find_case(name.starts_with("v25") ? "bailing" : "qwen3_5", name);
    if (folder.empty()) return nullptr;
    config = read_json_file(folder / "config.json").as_object();
    s.files = std::make_unique<WeightFiles>(folder);
  }
  const bool vision = config.contains("vision_config");
  s.config = check_config(std::move(config), name);
  const ModelParts parts{.drafter = true, .vision = vision};
  s.store = std::make_unique<WeightStore>(*s.backend, s.files.get(), s.config.fp8);
  s.model = make_model(s.config, s.store->reader(), *s.backend, s.demo ? DType::kBF16 : DType::kF32, parts);
  s.store->load(unused_tensors(s.config, parts), 1);
  if (s.demo) s.tokenizer = Tokenizer::load(folder);
  s.corpus = s.demo ? recorded_text(folder) : random_text(s.model->vocab_size());
  return loaded;
}

}  // namespace

const std::vector<std::string>& own_subjects() {
  static const std::vector<std::string> demos = {"demo-qwen3_5", "demo-bailing"},
                                        all = {"small_qwen3_5", "small_bailing", "demo-qwen3_5", "demo-bailing"};
  return backend_asked() == "cpu" ? all : demos;
}

const std::vector<std::string>& oracle_subjects() {
  static const std::vector<std::string> names = {"mtp_dense", "mtp_dense_two_layers", "mtp_moe",
                                                 "v25_mtp",   "v25_mtp_two_layers",   "vision_dense"};
  return names;
}

const std::vector<std::string>& table_subjects() {
  static const std::vector<std::string> names = {"small_qwen3_5", "small_bailing", "mtp_dense",
                                                 "vision_dense",  "demo-qwen3_5",  "demo-bailing"};
  return names;
}

std::string test_name(const ::testing::TestParamInfo<std::string>& info) {
  std::string name = info.param;
  std::replace(name.begin(), name.end(), '-', '_');
  return name;
}

Subject* subject(const std::string& name) {
  static std::map<std::string, std::unique_ptr<Subject>> loaded;
  auto [at, is_new] = loaded.try_emplace(name);
  if (is_new) at->second = load(name);
  return at->second.get();
}

}  // namespace calandra::lossless

// Configs of the Bailing family: the releases' values, bounds and aliases of every key, and what is refused by name
// (docs/models/bailing_v2_5.md).
#include "models/bailing_v2_5/config.h"

#include <fmt/format.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <limits>

#include "base/error.h"
#include "models/registry.h"

namespace calandra::bailing_v2_5 {
namespace {

constexpr const char* kFlash = "ling-2.6-flash";       // V2.5
constexpr const char* kMini = "ring-mini-linear-2.0";  // LinearV2

// A release's config with some keys replaced; null takes a key away.
json::object with(const char* release, const json::object& changes) {
  json::object config = config_of_shape(release);
  for (const auto& [key, value] : changes) config[key] = value;
  return config;
}

Config parse(const char* release, const json::object& changes = {}) {
  const json::object config = with(release, changes);
  const bool latent = config.at("architectures").at(0) == "BailingMoeV2_5ForCausalLM";
  return parse_config(config, "config.json", latent ? FullAttention::kLatent : FullAttention::kGroupedQuery);
}

// Why the whole of a config is refused; empty when it is not.
std::string message_of(const char* release, const json::object& changes) {
  try {
    check_config(with(release, changes), "config.json");
  } catch (const LoadError& error) {
    return error.what();
  }
  return "";
}

// Refused with a message that names file and key.
void expect_refused(const char* release, const json::object& changes, const std::string& key,
                    const std::string& word = "") {
  const std::string message = message_of(release, changes);
  EXPECT_EQ(message.find("config.json"), 0u) << to_json(changes) << ": " << message;
  EXPECT_NE(message.find(key), std::string::npos) << to_json(changes) << ": " << message;
  EXPECT_NE(message.find(word), std::string::npos) << to_json(changes) << ": " << message;
}

TEST(BailingConfig, EveryReleaseShape) {
  struct {
    const char* name;
    bool latent;
    int64_t hidden, dense, layers, heads, kv_heads, group, norm_groups, expert, first_dense, positions, nextn;
    double theta;
  } expected[] = {
      {kMini, false, 2048, 5120, 20, 16, 4, 5, 4, 512, 1, 131072, 0, 1e6},
      {"ring-flash-linear-2.0", false, 4096, 9216, 32, 32, 4, 8, 4, 1024, 1, 131072, 0, 1e6},
      {kFlash, true, 4096, 9216, 32, 32, 32, 8, 4, 1024, 1, 131072, 1, 6e6},
      {"ring-2.5-1t", true, 8192, 18432, 80, 64, 64, 8, 8, 2048, 4, 131072, 0, 6e6},
      {"ling-2.5-1t", true, 8192, 18432, 80, 64, 64, 8, 8, 2048, 4, 262144, 0, 6e6},
      {"ling-2.6-1t", true, 8192, 18432, 80, 64, 64, 8, 8, 2048, 4, 262144, 1, 6e6},
      {"ring-2.6-1t", true, 8192, 18432, 80, 64, 64, 8, 8, 2048, 4, 262144, 1, 6e6},
  };
  for (const auto& e : expected) {
    SCOPED_TRACE(e.name);
    EXPECT_EQ(message_of(e.name, {}), "");
    const Config c = parse(e.name);
    EXPECT_EQ(c.full_attention, e.latent ? FullAttention::kLatent : FullAttention::kGroupedQuery);
    EXPECT_EQ(c.vocab_size, 157184);
    EXPECT_EQ(c.hidden_size, e.hidden);
    EXPECT_EQ(c.intermediate_size, e.dense);
    EXPECT_EQ(c.num_hidden_layers, e.layers);
    EXPECT_EQ(c.num_attention_heads, e.heads);
    EXPECT_EQ(c.num_key_value_heads, e.kv_heads);
    EXPECT_EQ(c.head_dim, 128);
    EXPECT_EQ(c.max_position_embeddings, e.positions);
    EXPECT_EQ(c.rms_norm_eps, 1e-6f);
    EXPECT_EQ(c.layer_group_size, e.group);
    EXPECT_EQ(c.group_norm_size, e.norm_groups);
    EXPECT_EQ(c.num_nextn_predict_layers, e.nextn);
    EXPECT_EQ(c.rope.rope_theta, e.theta);
    EXPECT_EQ(c.rope.rotary_dim, 64);
    EXPECT_EQ(c.linear_decay_variant, LinearDecayVariant::kP);
    EXPECT_TRUE(c.use_qk_norm && c.linear_rope);
    EXPECT_FALSE(c.linear_silu || c.use_bias || c.use_qkv_bias || c.tie_word_embeddings);
    if (e.latent) {
      EXPECT_EQ((std::vector{c.q_lora_rank, c.kv_lora_rank, c.qk_nope_head_dim, c.qk_rope_head_dim, c.v_head_dim}),
                (std::vector<int64_t>{1536, 512, 128, 64, 128}));
      EXPECT_EQ(c.latent_rope.rotary_dim, 64);
      EXPECT_EQ(c.latent_rope.rope_theta, e.theta);
    }
    EXPECT_EQ(c.num_experts, 256);
    EXPECT_EQ(c.router.top_k, 8);
    EXPECT_EQ(c.router.n_group, 8);
    EXPECT_EQ(c.router.topk_group, 4);
    EXPECT_EQ(c.router.score, ops::RouterScore::kSigmoid);
    EXPECT_TRUE(c.router.norm_topk_prob);
    EXPECT_EQ(c.router.routed_scaling_factor, 2.5f);
    EXPECT_TRUE(c.moe_router_enable_expert_bias);
    EXPECT_EQ(c.moe_intermediate_size, e.expert);
    EXPECT_EQ(c.shared_intermediate_size, e.expert);
    EXPECT_EQ(c.first_k_dense_replace, e.first_dense);

    int64_t full = 0, sparse = 0;
    for (int64_t layer = 0; layer < e.layers; ++layer) full += c.is_full_attention(layer), sparse += c.is_sparse(layer);
    EXPECT_EQ(full, e.layers / e.group);
    EXPECT_EQ(sparse, e.layers - e.first_dense);
    EXPECT_FALSE(c.is_full_attention(e.group - 2));
    EXPECT_TRUE(c.is_full_attention(e.group - 1) && c.is_full_attention(e.layers - 1));
    EXPECT_TRUE(c.is_full_attention(e.layers) && c.is_sparse(e.layers));  // an MTP layer
  }
}

// Outside its bounds, or of another kind, every key is refused by its name.
TEST(BailingConfig, Bounds) {
  struct {
    const char* key;
    int64_t min, max;
  } integers[] = {{"vocab_size", 1, 1 << 24},
                  {"hidden_size", 1, 1 << 20},
                  {"intermediate_size", 1, 1 << 20},
                  {"num_hidden_layers", 1, 1024},
                  {"num_attention_heads", 1, 1 << 14},
                  {"num_key_value_heads", 1, 1 << 14},
                  {"head_dim", 2, 1 << 12},
                  {"max_position_embeddings", 1, 1 << 30},
                  {"layer_group_size", 1, 1024},
                  {"group_norm_size", 1, 1 << 20},
                  {"linear_attn_norm_group_size", 1, 1 << 20},
                  {"rotary_dim", 2, 128},
                  {"q_lora_rank", 1, 1 << 20},
                  {"kv_lora_rank", 1, 1 << 20},
                  {"qk_nope_head_dim", 1, 1 << 12},
                  {"qk_rope_head_dim", 2, 1 << 12},
                  {"v_head_dim", 1, 1 << 12},
                  {"num_experts", 0, 4096},
                  {"num_experts_per_tok", 1, 256},
                  {"n_group", 1, 256},
                  {"topk_group", 1, 1 << 30},
                  {"moe_intermediate_size", 1, 1 << 20},
                  {"num_shared_experts", 0, 1024},
                  {"moe_shared_expert_intermediate_size", 1, 1 << 20},
                  {"first_k_dense_replace", 0, 1024},
                  {"num_nextn_predict_layers", 0, 64}};
  for (const auto& i : integers) {
    for (const int64_t outside : {i.min - 1, i.max + 1, int64_t{-1}, std::numeric_limits<int64_t>::max()})
      expect_refused(kFlash, {{i.key, outside}}, i.key, "must lie in");
    for (const json::value& other : {json::value(1.5), json::value("4"), json::value(true), json::value(json::array{})})
      expect_refused(kFlash, {{i.key, other}}, i.key, "must be an integer");
  }
  struct {
    const char* key;
    double min, max;
  } numbers[] = {{"rms_norm_eps", 1e-30, 1},
                 {"rope_theta", 1.001, 1e15},
                 {"partial_rotary_factor", 1e-6, 1},
                 {"routed_scaling_factor", 0, 1e6}};
  for (const auto& n : numbers) {
    for (const double outside : {n.min - 0.5, n.min * 0.999 - 1e-31, n.max * 1.01, 1e300})
      expect_refused(kFlash, {{n.key, outside}}, n.key, "must lie in");
    expect_refused(kFlash, {{n.key, "1"}}, n.key, "must be a number");
  }
  for (const char* key : {"tie_word_embeddings", "use_qk_norm", "use_qkv_bias", "use_bias", "linear_silu",
                          "use_linear_silu", "linear_rope", "lightning_layerwise_decay", "rope_interleave",
                          "norm_topk_prob", "moe_router_enable_expert_bias", "multi_gate", "use_linear_gqa"})
    expect_refused(kFlash, {{key, "yes"}}, key, "must be true or false");
  for (const char* key : {"score_function", "linear_decay_variant", "hidden_act", "router_dtype", "router_type"})
    expect_refused(kFlash, {{key, 1}}, key, "must be a string");
  for (const char* key : {"rope_scaling", "rope_parameters"})
    expect_refused(kFlash, {{key, "yarn"}}, key, "must be an object");
  for (const char* key : {"vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size",
                          "num_experts_per_tok", "moe_intermediate_size", "architectures"})
    expect_refused(kFlash, {{key, nullptr}}, key, "is missing");
}

// What HF's class or vLLM takes when a key is absent.
TEST(BailingConfig, Defaults) {
  json::object config = {{"vocab_size", 512},
                         {"hidden_size", 256},
                         {"num_hidden_layers", 4},
                         {"intermediate_size", 9},
                         {"num_attention_heads", 2}};
  const Config c = parse_config(config, "config.json", FullAttention::kLatent);
  EXPECT_EQ(c.head_dim, 128);
  EXPECT_EQ(c.num_key_value_heads, 2);
  EXPECT_EQ(c.max_position_embeddings, 32768);
  EXPECT_EQ(c.rms_norm_eps, 1e-6f);
  EXPECT_TRUE(c.use_qk_norm && c.linear_rope);
  EXPECT_EQ(c.layer_group_size, 1);  // no linear layer
  EXPECT_TRUE(c.is_full_attention(0));
  EXPECT_EQ(c.group_norm_size, 1);
  EXPECT_EQ(c.rope.rope_theta, 600000);
  EXPECT_EQ(c.rope.rotary_dim, 64);
  EXPECT_EQ(c.q_lora_rank, 0);
  EXPECT_EQ((std::vector{c.kv_lora_rank, c.qk_nope_head_dim, c.qk_rope_head_dim, c.v_head_dim}),
            (std::vector<int64_t>{512, 128, 64, 128}));
  EXPECT_EQ(c.num_experts, 0);
  EXPECT_FALSE(c.is_sparse(3));
  EXPECT_EQ(c.num_nextn_predict_layers, 0);

  const Config flash = parse(kFlash, {{"n_group", nullptr},
                                      {"topk_group", nullptr},
                                      {"num_shared_experts", nullptr},
                                      {"routed_scaling_factor", nullptr},
                                      {"score_function", nullptr},
                                      {"moe_router_enable_expert_bias", nullptr}});
  EXPECT_EQ(flash.router.n_group, 1);
  EXPECT_EQ(flash.router.topk_group, 1);
  EXPECT_EQ(flash.shared_intermediate_size, 0);
  EXPECT_EQ(flash.router.routed_scaling_factor, 1);
  EXPECT_EQ(flash.router.score, ops::RouterScore::kSigmoid);
  EXPECT_TRUE(flash.moe_router_enable_expert_bias);
}

// One meaning under several names, and which of them wins.
TEST(BailingConfig, NameVariants) {
  for (const char* name :
       {"BailingMoeLinearV2ForCausalLM", "BailingMoeLinearForCausalLM", "BailingMoELinearForCausalLM"})
    EXPECT_EQ(message_of(kMini, {{"architectures", {name}}}), "") << name;
  // The architecture decides, not model_type.
  EXPECT_EQ(message_of(kFlash, {{"model_type", "bailing_moe_linear"}}), "");
  expect_refused(kFlash, {{"architectures", {"BailingMoeV3ForCausalLM"}}}, "BailingMoeV3ForCausalLM",
                 "BailingMoeV2_5ForCausalLM");

  EXPECT_TRUE(parse(kFlash, {{"linear_silu", true}}).linear_silu);
  EXPECT_TRUE(parse(kFlash, {{"linear_silu", false}, {"use_linear_silu", true}}).linear_silu);
  EXPECT_EQ(parse(kFlash, {{"group_norm_size", nullptr}, {"linear_attn_norm_group_size", 2}}).group_norm_size, 2);
  EXPECT_EQ(parse(kFlash, {{"linear_attn_norm_group_size", 2}}).group_norm_size, 4);
  EXPECT_EQ(parse(kFlash, {{"rotary_dim", 32}}).rope.rotary_dim, 32);  // before partial_rotary_factor
  EXPECT_EQ(parse(kFlash, {{"partial_rotary_factor", 0.25}}).rope.rotary_dim, 32);
  EXPECT_EQ(parse(kFlash, {{"rope_parameters", {{"partial_rotary_factor", 1.0}}}}).rope.rotary_dim, 128);
  EXPECT_EQ(parse(kFlash, {{"rope_parameters", {{"rope_theta", 7e5}, {"rope_type", "default"}}}}).rope.rope_theta, 7e5);
  const Config softmax = parse(
      kFlash, {{"score_function", nullptr}, {"scoring_func", "softmax"}, {"moe_router_enable_expert_bias", nullptr}});
  EXPECT_EQ(softmax.router.score, ops::RouterScore::kSoftmax);
  EXPECT_FALSE(softmax.moe_router_enable_expert_bias);
  EXPECT_EQ(parse(kFlash, {{"num_shared_experts", 2}}).shared_intermediate_size, 2048);
  EXPECT_EQ(
      parse(kFlash, {{"num_shared_experts", 2}, {"moe_shared_expert_intermediate_size", 96}}).shared_intermediate_size,
      192);
  // QUIRK: one choice is never normalised.
  EXPECT_FALSE(parse(kFlash, {{"num_experts_per_tok", 1}}).router.norm_topk_prob);
  EXPECT_FALSE(parse(kFlash, {{"norm_topk_prob", false}}).router.norm_topk_prob);
}

TEST(BailingConfig, DecayVariants) {
  const auto variant = [](const json::object& changes) { return parse(kFlash, changes).linear_decay_variant; };
  EXPECT_EQ(variant({}), LinearDecayVariant::kP);
  EXPECT_EQ(variant({{"linear_decay_variant", "P"}}), LinearDecayVariant::kP);
  EXPECT_EQ(variant({{"linear_decay_variant", "H"}}), LinearDecayVariant::kH);
  EXPECT_EQ(variant({{"lightning_layerwise_decay", false}}), LinearDecayVariant::kNone);
  for (const char* bad : {"p", "h", "", "Q", "PH"})
    expect_refused(kFlash, {{"linear_decay_variant", bad}}, "linear_decay_variant", "\"P\" or \"H\"");
}

// QUIRK: group_norm_size is a count. Any that divides the width is one, also above the number of heads.
TEST(BailingConfig, NormGroupsDivideTheWidth) {
  for (const int64_t groups : {1, 2, 4, 8, 32, 4096})
    EXPECT_EQ(parse(kFlash, {{"group_norm_size", groups}}).group_norm_size, groups);
  for (const int64_t groups : {3, 5, 8192}) expect_refused(kFlash, {{"group_norm_size", groups}}, "group_norm_size");
}

TEST(BailingConfig, SizesThatDoNotFitAreRefused) {
  expect_refused(kFlash, {{"layer_group_size", 5}}, "layer_group_size", "num_hidden_layers");
  expect_refused(kMini, {{"num_key_value_heads", 3}}, "num_key_value_heads");
  EXPECT_EQ(message_of(kFlash, {{"num_key_value_heads", 3}}), "");  // not used by latent attention
  expect_refused(kFlash, {{"n_group", 3}}, "n_group", "num_experts");
  expect_refused(kFlash, {{"topk_group", 9}}, "topk_group", "n_group");
  expect_refused(kFlash, {{"topk_group", 1}, {"num_experts_per_tok", 33}}, "num_experts_per_tok", "32");
  EXPECT_EQ(message_of(kFlash, {{"topk_group", 1}, {"num_experts_per_tok", 32}}), "");
  expect_refused(kFlash, {{"rotary_dim", 31}}, "rotary_dim", "even");
  expect_refused(kFlash, {{"qk_rope_head_dim", 63}}, "qk_rope_head_dim", "even");
  expect_refused(kFlash, {{"partial_rotary_factor", 0.001}}, "partial_rotary_factor", "even");
  expect_refused(kFlash, {{"head_dim", 6}}, "rotary", "even");
}

TEST(BailingConfig, AnswersEndOnBothTokens) {
  for (const char* release : {kFlash, kMini}) {
    const ModelConfig config = check_config(with(release, {{"eos_token_id", 156892}}), "config.json");
    EXPECT_EQ(std::vector<std::string_view>(config.end_tokens.begin(), config.end_tokens.end()),
              (std::vector<std::string_view>{"<|endoftext|>", "<|role_end|>"}));
  }
}

TEST(BailingConfig, MtpLayersAreSparseWhereverTheDenseOnesEnd) {
  const Config c = parse(kFlash, {{"num_hidden_layers", 8}, {"first_k_dense_replace", 16}});
  EXPECT_FALSE(c.is_sparse(7));
  EXPECT_TRUE(c.is_sparse(8));
}

TEST(BailingConfig, Yarn) {
  // As the release's card gives it, under both names of the type and of the object.
  for (const char* object : {"rope_scaling", "rope_parameters"}) {
    for (const char* type : {"type", "rope_type"}) {
      const Config c = parse(kFlash, {{object, {{type, "yarn"}, {"factor", 2.0}}}});
      for (const RopeParameters& rope : {c.rope, c.latent_rope}) {
        EXPECT_EQ(rope.rope_type, RopeParameters::Type::kYarn);
        EXPECT_EQ(rope.factor, 2);
        EXPECT_EQ(rope.original_max_position_embeddings, 131072);
        EXPECT_EQ(rope.attention_factor, 0);  // from the factor
        EXPECT_EQ(rope.beta_fast, 32);
        EXPECT_EQ(rope.beta_slow, 1);
        EXPECT_TRUE(rope.truncate);
        EXPECT_EQ(rope.rope_theta, 6e6);
      }
      EXPECT_EQ(c.latent_scale_factor, 1);
    }
  }
  const Config c = parse(kFlash, {{"rope_scaling",
                                   {{"type", "yarn"},
                                    {"factor", 4},
                                    {"original_max_position_embeddings", 4096},
                                    {"attention_factor", 1.5},
                                    {"beta_fast", 16},
                                    {"beta_slow", 2},
                                    {"truncate", false},
                                    {"mscale_all_dim", 1.0},
                                    {"rope_theta", 5e5}}}});
  EXPECT_EQ(c.rope.original_max_position_embeddings, 4096);
  EXPECT_EQ(c.rope.attention_factor, 1.5);
  EXPECT_EQ(c.rope.beta_fast, 16);
  EXPECT_EQ(c.rope.beta_slow, 2);
  EXPECT_FALSE(c.rope.truncate);
  EXPECT_EQ(c.rope.rope_theta, 5e5);
  EXPECT_NEAR(c.latent_scale_factor, std::pow(0.1 * std::log(4.0) + 1, 2), 1e-6);

  // An override adds to what a newer file has, and the context grows with it.
  const Config both = parse(
      kFlash, {{"rope_parameters", {{"rope_type", "default"}, {"rope_theta", 7e6}}},
               {"rope_scaling", {{"type", "yarn"}, {"factor", 2.0}, {"original_max_position_embeddings", 131072}}}});
  EXPECT_EQ(both.rope.rope_type, RopeParameters::Type::kYarn);
  EXPECT_EQ(both.rope.rope_theta, 7e6);
  EXPECT_EQ(both.max_position_embeddings, 262144);

  const auto refused = [](const json::object& scaling, const char* key) {
    expect_refused(kFlash, {{"rope_scaling", scaling}}, key);
    expect_refused(kFlash, {{"rope_parameters", scaling}}, key);
  };
  refused({{"type", "linear"}, {"factor", 2}}, "linear");
  refused({{"rope_type", "dynamic"}}, "dynamic");
  refused({{"type", "yarn"}}, "factor is missing");
  refused({{"type", "yarn"}, {"factor", 0.5}}, "factor");
  refused({{"type", "yarn"}, {"factor", 1e7}}, "factor");
  refused({{"type", "yarn"}, {"factor", 2}, {"mscale", 0.7}}, "mscale");
  refused({{"type", "yarn"}, {"factor", 2}, {"mscale_all_dim", -1}}, "mscale_all_dim");
  refused({{"type", "yarn"}, {"factor", 2}, {"original_max_position_embeddings", 0}},
          "original_max_position_embeddings");
  refused({{"type", "yarn"}, {"factor", 2}, {"attention_factor", -1}}, "attention_factor");
  refused({{"type", "yarn"}, {"factor", 2}, {"beta_fast", 0}}, "beta_fast");
  refused({{"type", "yarn"}, {"factor", 2}, {"beta_slow", 0}}, "beta_slow");
  refused({{"type", "yarn"}, {"factor", 2}, {"truncate", 1}}, "truncate");
}

TEST(BailingConfig, WhatIsNotComputedIsRefusedByName) {
  for (const char* key : {"use_linear_gqa", "use_low_rank", "norm_head", "using_split_qkv_in_self_attention"}) {
    expect_refused(kMini, {{key, true}}, key);
    EXPECT_EQ(message_of(kMini, {{key, false}}), "") << key;
  }
  expect_refused(kFlash, {{"short_conv_kernel_size", 4}}, "short_conv_kernel_size");
  expect_refused(kFlash, {{"layers_block_type", {"linear"}}}, "layers_block_type");
  expect_refused(kFlash, {{"hidden_act", "gelu"}}, "hidden_act", "gelu");
  expect_refused(kFlash, {{"rope_interleave", false}}, "rope_interleave");
  expect_refused(kFlash, {{"score_function", "tanh"}}, "score_function", "tanh");
  expect_refused(kFlash, {{"score_function", nullptr}, {"scoring_func", "tanh"}}, "scoring_func", "tanh");
  expect_refused(kFlash, {{"score_function", "softmax"}}, "moe_router_enable_expert_bias", "softmax");
  expect_refused(kFlash, {{"multi_gate", true}}, "multi_gate");
  expect_refused(kFlash, {{"router_type", "MultiRouter"}}, "multi_gate");
}

// Number formats, before any weight is read.
TEST(BailingConfig, FormatsAreRefusedByName) {
  const auto format = [](const json::object& quantization) {
    return json::object{{"quantization_config", quantization}};
  };
  expect_refused(kFlash, format({{"quant_method", "compressed-tensors"}, {"format", "float-quantized"}}),
                 "compressed-tensors", "float-quantized");
  expect_refused(kFlash, format({{"quant_method", "compressed-tensors"}, {"format", "pack-quantized"}}),
                 "compressed-tensors", "pack-quantized");
  expect_refused(kFlash, format({{"quant_method", "gptq"}}), "gptq");
  expect_refused(kFlash, format({{"quant_method", "awq"}}), "awq");
  EXPECT_EQ(message_of(kFlash, format({{"quant_method", "fp8"}, {"weight_block_size", {128, 128}}})), "");
  expect_refused(kFlash, {{"torch_dtype", "float64"}}, "torch_dtype", "float64");
  for (const char* dtype : {"bfloat16", "float16", "float32"})
    EXPECT_EQ(message_of(kFlash, {{"torch_dtype", dtype}}), "") << dtype;
}

// LinearV2 has no MTP layer: what its config says about them is warned about, and it runs without a drafter.
TEST(BailingConfig, NextnLayers) {
  EXPECT_EQ(parse(kFlash, {{"num_nextn_predict_layers", 2}}).num_nextn_predict_layers, 2);
  ::testing::internal::CaptureStderr();
  const Config c = parse(kMini, {{"num_nextn_predict_layers", 1}});
  const std::string said = ::testing::internal::GetCapturedStderr();
  EXPECT_EQ(c.num_nextn_predict_layers, 0);
  EXPECT_NE(said.find("config.json: num_nextn_predict_layers 1 is ignored"), std::string::npos) << said;
  expect_refused(kMini, {{"num_nextn_predict_layers", 65}}, "num_nextn_predict_layers");

  ::testing::internal::CaptureStderr();
  parse(kFlash, {{"router_dtype", "bf16"}});
  const std::string router = ::testing::internal::GetCapturedStderr();
  EXPECT_NE(router.find("router_dtype bf16 is ignored"), std::string::npos) << router;
}

// Which tensors of a checkpoint may stay unread.
TEST(BailingConfig, UnusedTensors) {
  const auto patterns = [](const Config& c, bool drafter) {
    std::vector<std::string> out;
    for (const UnusedTensors& unused : unused_tensors(c, drafter))
      out.push_back(fmt::format("{} {}{}", unused.pattern, unused.from_layer, unused.asked ? " asked" : ""));
    return out;
  };
  const Config flash = parse(kFlash);
  EXPECT_EQ(patterns(flash, false)[0], "model.layers.* 33");
  EXPECT_EQ(patterns(flash, false)[1], "model.layers.* 32 asked");
  EXPECT_EQ(patterns(flash, true)[0], "model.layers.* 33");
  EXPECT_EQ(patterns(flash, true)[1], "layers.* 33");
  const auto has_head = [&](const Config& c) {
    const auto all = patterns(c, false);
    return std::count(all.begin(), all.end(), "lm_head.weight 0") == 1;
  };
  EXPECT_FALSE(has_head(flash));
  EXPECT_TRUE(has_head(parse(kFlash, {{"tie_word_embeddings", true}})));
}

}  // namespace
}  // namespace calandra::bailing_v2_5

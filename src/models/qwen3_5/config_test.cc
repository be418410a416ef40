#include "models/qwen3_5/config.h"

#include <gtest/gtest.h>

#include "base/error.h"
#include "models/registry.h"

namespace calandra {
namespace {

std::string message_of(json::object config) {
  try {
    check_config(std::move(config), "config.json");
  } catch (const LoadError& error) {
    return error.what();
  }
  return "";
}

TEST(Qwen3_5Config, EveryReleaseShape) {
  struct {
    const char* name;
    int64_t full_attention, conv_dim;
  } expected[] = {{"qwen3_5-0.8b", 6, 6144},        {"qwen3_5-2b", 6, 6144},         {"qwen3_5-4b", 8, 8192},
                  {"qwen3_5-9b", 8, 8192},          {"qwen3_5-27b", 16, 10240},      {"qwen3_5-35b-a3b", 10, 8192},
                  {"qwen3_5-122b-a10b", 12, 12288}, {"qwen3_5-397b-a17b", 15, 12288}};
  for (const auto& e : expected) {
    const qwen3_5::Config c = qwen3_5::parse_config(config_of_shape(e.name), e.name);
    EXPECT_EQ(std::count(c.layer_kinds.begin(), c.layer_kinds.end(), qwen3_5::LayerKind::kFullAttention),
              e.full_attention);
    EXPECT_EQ(c.layer_kinds[3], qwen3_5::LayerKind::kFullAttention);
    EXPECT_EQ(c.conv_dim(), e.conv_dim);
    EXPECT_EQ(c.rope.rotary_dim, 64);
    EXPECT_EQ(message_of(config_of_shape(e.name)), "");
  }
}

TEST(Qwen3_5Config, WhatIsNotComputedIsRefusedByName) {
  const auto with = [](const char* key, json::value value) {
    json::object config = config_of_shape("qwen3_5-0.8b");
    config[key] = std::move(value);
    return message_of(config);
  };
  EXPECT_NE(with("attention_bias", true).find("attention_bias"), std::string::npos);
  EXPECT_NE(with("attn_output_gate", false).find("attn_output_gate"), std::string::npos);
  EXPECT_NE(with("hidden_act", "gelu").find("hidden_act"), std::string::npos);
  EXPECT_NE(with("layer_scale", true).find("layer_scale"), std::string::npos);
  EXPECT_NE(with("mtp_use_dedicated_embeddings", true).find("mtp_use_dedicated_embeddings"), std::string::npos);
  EXPECT_NE(with("output_gate_type", "relu").find("output_gate_type"), std::string::npos);
  EXPECT_NE(with("architectures", json::array{"LlamaForCausalLM"}).find("LlamaForCausalLM"), std::string::npos);
  EXPECT_EQ(with("output_gate_type", "sigmoid"), "");
  EXPECT_NE(with("eos_token_id", -1).find("eos_token_id"), std::string::npos);
  EXPECT_NE(with("eos_token_id", int64_t{1} << 40).find("eos_token_id"), std::string::npos);
  EXPECT_EQ(with("eos_token_id", json::array{1, 2}), "");
  json::object many = config_of_shape("qwen3_5-35b-a3b");
  many["num_experts"] = 4096;
  many["num_hidden_layers"] = 128;
  EXPECT_NE(message_of(many).find("num_experts"), std::string::npos);
}

TEST(Qwen3_5Config, TensorsOfUnannouncedDraftLayersAreNotUnknown) {
  const auto unused = [](json::value layers, bool drafter) {
    json::object config = config_of_shape("qwen3_5-0.8b");
    config["mtp_num_hidden_layers"] = std::move(layers);
    const std::vector<UnusedTensors> all =
        qwen3_5::unused_tensors(qwen3_5::parse_config(config, "config.json"), {.drafter = drafter});
    return std::count_if(all.begin(), all.end(), [](const UnusedTensors& u) { return u.pattern == "mtp.*"; }) == 1;
  };
  EXPECT_TRUE(unused(0, true) && unused(nullptr, true) && unused(1, false));
  EXPECT_FALSE(unused(1, true));
}

TEST(Qwen3_5Config, RopeParametersByEitherNameAndBesideIt) {
  const auto rope = [](const json::object& keys) {
    json::object config = config_of_shape("qwen3_5-0.8b");
    config.erase("rope_parameters");
    for (const auto& [key, value] : keys) config[key] = value;
    return qwen3_5::parse_config(config, "config.json").rope;
  };
  EXPECT_EQ(rope({}).rope_theta, 10000);
  EXPECT_EQ(rope({}).rotary_dim, 64);
  EXPECT_EQ(rope({{"rope_theta", 5e5}}).rope_theta, 5e5);
  EXPECT_EQ(rope({{"rope_theta", 5e5}, {"rope_parameters", {{"rope_theta", 1e6}}}}).rope_theta, 1e6);
  EXPECT_EQ(rope({{"rope_scaling", {{"type", "yarn"}, {"factor", 4}}}, {"rope_theta", 1e7}}).factor, 4);
  EXPECT_EQ(rope({{"partial_rotary_factor", 0.5}}).rotary_dim, 128);
  EXPECT_THROW(rope({{"partial_rotary_factor", 0.005}}), LoadError);  // one dim
  // The override of a model card keeps what it does not name, and the context grows.
  json::object config = config_of_shape("qwen3_5-0.8b");
  config["rope_scaling"] = {{"rope_type", "yarn"}, {"factor", 4}, {"original_max_position_embeddings", 262144}};
  const qwen3_5::Config yarn = qwen3_5::parse_config(config, "config.json");
  EXPECT_EQ(yarn.rope.rope_theta, 1e7);
  EXPECT_EQ(yarn.rope.mrope_section[0], 11);
  EXPECT_EQ(yarn.max_position_embeddings, 1048576);
  EXPECT_THROW(rope({{"rope_scaling", {{"type", "linear"}, {"factor", 4}}}}), LoadError);
}

}  // namespace
}  // namespace calandra

#include "models/quantization.h"

#include <gtest/gtest.h>

#include "base/error.h"

namespace calandra {
namespace {

std::optional<Fp8Blocks> parse(const char* config) {
  const json::value value = parse_json(config, "config.json");
  return parse_quantization(ConfigFields(value.get_object(), "config.json"));
}
std::string message_of(const char* config) {
  try {
    parse(config);
  } catch (const LoadError& error) {
    return error.what();
  }
  return "";
}

TEST(Quantization, Fp8Blocks) {
  EXPECT_FALSE(parse("{}").has_value());
  EXPECT_FALSE(parse(R"({"quantization_config":null,"text_config":{}})").has_value());
  const auto plain = parse(R"({"quantization_config":{"quant_method":"fp8"}})");
  ASSERT_TRUE(plain.has_value());
  EXPECT_EQ(plain->N, 128);
  EXPECT_EQ(plain->K, 128);
  const auto given = parse(
      R"({"text_config":{"quantization_config":{"quant_method":"fp8","fmt":"e4m3","activation_scheme":"dynamic",
          "weight_block_size":[64,32],"modules_to_not_convert":["lm_head"]}}})");
  ASSERT_TRUE(given.has_value());
  EXPECT_EQ(given->N, 64);
  EXPECT_EQ(given->K, 32);
}

TEST(Quantization, WhatIsNotComputedIsRefusedByName) {
  const std::pair<const char*, std::vector<const char*>> refused[] = {
      {R"({"quant_method":"gptq","bits":4,"checkpoint_format":"gptq"})", {"quant_method", "gptq"}},
      {R"({"quant_method":"awq","bits":4})", {"quant_method", "awq"}},
      {R"({"quant_method":"compressed-tensors","format":"pack-quantized"})", {"compressed-tensors", "pack-quantized"}},
      {R"({"quant_method":"compressed-tensors","format":"float-quantized"})",
       {"compressed-tensors", "float-quantized"}},
      {R"({"quant_method":"modelopt","quant_algo":"NVFP4"})", {"modelopt", "NVFP4"}},
      {R"({"quant_method":"bitsandbytes","load_in_4bit":true})", {"bitsandbytes"}},
      {R"({"quant_method":"origami"})", {"quant_method", "origami"}},
      {R"({"bits":4})", {"quant_method", "absent"}},
      {R"({"quant_method":"fp8","activation_scheme":"static"})", {"activation_scheme", "static"}},
      {R"({"quant_method":"fp8","fmt":"e5m2"})", {"fmt", "e5m2"}},
      {R"({"quant_method":"fp8","weight_block_size":[128]})", {"weight_block_size", "[128]"}},
      {R"({"quant_method":"fp8","weight_block_size":[128,0]})", {"weight_block_size", "[128,0]"}},
      {R"({"quant_method":"fp8","weight_block_size":[-1,128]})", {"weight_block_size"}},
      {R"({"quant_method":"fp8","weight_block_size":["a","b"]})", {"weight_block_size"}},
      {R"({"quant_method":"fp8","weight_block_size":128})", {"weight_block_size"}},
      {R"([])", {"quantization_config"}}};
  for (const auto& [config, words] : refused) {
    const std::string message = message_of((std::string(R"({"quantization_config":)") + config + "}").c_str());
    for (const char* word : words) EXPECT_NE(message.find(word), std::string::npos) << config << ": " << message;
  }
}

}  // namespace
}  // namespace calandra

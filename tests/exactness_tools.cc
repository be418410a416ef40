#include "tests/exactness_tools.h"

#include <cstring>

#include "tests/model_under_test.h"

namespace calandra::testing {

std::filesystem::path folder_of(const std::string& model) {
  if (model.starts_with("demo")) return std::filesystem::path(CALANDRA_SOURCE_DIR "/demo") / model;
  return find_case(model == "linear_v2_fp32" ? "bailing" : "qwen3_5", model);
}

std::vector<int32_t> random_tokens(int64_t count, uint32_t seed, int64_t vocab_size) {
  std::vector<int32_t> tokens;
  uint32_t x = seed * 2654435761u + 1;
  for (int64_t i = 0; i < count; ++i) {
    x = x * 1664525u + 1013904223u;
    tokens.push_back(static_cast<int32_t>((x >> 8) % static_cast<uint32_t>(vocab_size)));
  }
  return tokens;
}

Sequence sequence_of(std::vector<int32_t> tokens) {
  Sequence s;
  s.tokens = std::move(tokens);
  s.prompt_size = s.size();
  return s;
}

bool same_bits(const std::vector<float>& a, const std::vector<float>& b) {
  return a.size() == b.size() && std::memcmp(a.data(), b.data(), a.size() * sizeof(float)) == 0;
}

}  // namespace calandra::testing

#include "server/metrics.h"

#include <gtest/gtest.h>

namespace calandra::server {
namespace {

TEST(Metrics, HistogramsAreCumulativeAndLabelsEscaped) {
  EngineStats stats;
  stats.requests_running = 3;
  stats.pages = 12;
  stats.slots = 5, stats.slots_used = 2;
  stats.drafted_per_position[0] = 10, stats.accepted_per_position[0] = 7;
  stats.times.time_to_first_token.add(0.0005);
  stats.times.time_to_first_token.add(0.3);
  stats.times.time_to_first_token.add(1e9);
  const std::string text = prometheus_text(stats, "a\"b", 7);
  const auto has = [&](const char* line) { EXPECT_NE(text.find(std::string(line) + "\n"), std::string::npos) << line; };
  has(R"(vllm:num_requests_running{model_name="a\"b",engine="0"} 3)");
  has(R"(vllm:cache_config_info{model_name="a\"b",engine="0",num_gpu_blocks="12"} 1)");
  has(R"(calandra:slots{model_name="a\"b",engine="0"} 5)");
  has(R"(calandra:slots_used{model_name="a\"b",engine="0"} 2)");
  has(R"(vllm:spec_decode_num_accepted_tokens_per_pos_total{model_name="a\"b",engine="0",position="0"} 7)");
  has(R"(calandra:spec_decode_num_draft_tokens_per_pos_total{model_name="a\"b",engine="0",position="0"} 10)");
  has(R"(vllm:time_to_first_token_seconds_bucket{model_name="a\"b",engine="0",le="0.001"} 1)");
  has(R"(vllm:time_to_first_token_seconds_bucket{model_name="a\"b",engine="0",le="0.5"} 2)");
  has(R"(vllm:time_to_first_token_seconds_bucket{model_name="a\"b",engine="0",le="+Inf"} 3)");
  has(R"(vllm:time_to_first_token_seconds_count{model_name="a\"b",engine="0"} 3)");
  has("# TYPE vllm:time_to_first_token_seconds histogram");
}

TEST(Metrics, EveryLineIsACommentOrASample) {
  const std::string text = prometheus_text({}, "m", 0);
  for (size_t begin = 0; begin < text.size();) {
    const size_t end = text.find('\n', begin);
    ASSERT_NE(end, std::string::npos);
    const std::string line = text.substr(begin, end - begin);
    EXPECT_TRUE(line.starts_with("# ") || line.find("} ") != std::string::npos) << line;
    begin = end + 1;
  }
}

}  // namespace
}  // namespace calandra::server

// The flags of `calandra bench serve`. Names are those of `vllm bench serve`.
#pragma once

#include <cstdint>
#include <optional>
#include <string>

#include "base/json.h"

namespace calandra::apps {

struct BenchServeFlags {
  std::string base_url = "http://127.0.0.1:8000";
  std::string endpoint = "/v1/completions";
  std::string model;  // empty: the first of /v1/models
  std::string dataset_name = "random", dataset_path;
  int64_t num_prompts = 100;
  std::optional<int64_t> input_len, output_len, prefix_len;
  int64_t num_prefixes = 10, num_turns = 8;
  std::optional<double> random_range_ratio;  // 0
  std::optional<double> request_rate;        // per second; absent: all at once
  std::optional<double> burstiness;          // 1
  std::optional<int64_t> max_concurrency;
  std::string goodput;  // as given
  std::optional<uint64_t> seed;
  bool ignore_eos = false;
  json::object extra_body;
  int64_t timeout = 600;  // seconds of a request
  bool json = false, save_result = false, save_detailed = false;
  std::string result_dir, result_filename;
};

}  // namespace calandra::apps

// The Bailing family against the oracle: logits, taps in the order of the file, chosen experts, states, the other decay
// variant, name variants and greedy continuations.
#include <fmt/format.h>
#include <gtest/gtest.h>

#include <regex>
#include <set>

#include "base/json.h"
#include "tests/oracle_tools.h"

namespace calandra {
namespace {

using namespace calandra::testing;
namespace fs = std::filesystem;

const char* const kCases[] = {"v25_fp32_qproj", "v25_fp32_qlora",     "v25_bf16_sharded", "v25_yarn",
                              "v25_options",    "v25_linear_silu",    "v25_fp8_block",    "linear_v2_fp32",
                              "names_released", "names_bias_aliases", "names_no_prefix"};

// The oracle's name for what we tap under another one; empty: not tapped.
std::string our_name(const std::string& name) {
  static const std::map<std::string, std::string> kNames = {
      {"experts", "moe/chosen_experts"},      {"expert_weights", "moe/expert_weights"},
      {"router_logits", "moe/router_logits"}, {"routed", "moe/routed_output"},
      {"shared", "moe/shared_output"},        {"output", ""}};
  const auto it = kNames.find(name);
  return it == kNames.end() ? "." + name : it->second.empty() ? "" : "." + it->second;
}

// Computed inside an op, or a constant of the layer: their effects are seen in what is compared.
const std::set<std::string> kNotTapped = {"slope",        "decay",  "state",  "router_scores",
                                          "group_scores", "groups", "mlp_out"};

class Bailing : public ::testing::TestWithParam<std::tuple<int, std::string>> {};

TEST_P(Bailing, Float32LogitsTapsAndStates) {
  const std::string name = kCases[std::get<0>(GetParam())];
  const fs::path folder = find_case("bailing", name);
  if (folder.empty()) GTEST_SKIP() << "skipped: " << name << " is only in the shared oracle";
  const json::value meta = read_json_file(folder / "case.json");
  const double logits_bound = meta.at("tolerances").at("logits_float32_abs").to_number<double>();
  const json::value* taps_rel = meta.at("tolerances").as_object().if_contains("taps_float32_rel");
  int sequences = 0, taps = 0, states = 0;
  for (const char* variant : {"P", "H"}) {
    const fs::path file = folder / (*variant == 'P' ? "expected.safetensors" : "expected_decay_h.safetensors");
    if (!fs::exists(file)) continue;
    const SafetensorsFile expected(file);
    ModelUnderTest model(folder, {std::get<1>(GetParam()), 2, ""}, DType::kF32, {},
                         {{"linear_decay_variant", variant}});
    const auto run = [&](const std::string& prefix, bool tapped) {
      Sequence sequence;
      sequence.tokens = read_ids(expected, prefix + "tokens");
      const auto runner = model.runner(
          {.max_num_seqs = 1, .max_num_batched_tokens = 512, .max_model_len = sequence.size(), .taps = tapped});
      Recorder recorder;
      const std::vector<float> logits = teacher_forced(*runner, sequence, 512, tapped ? &recorder : nullptr);
      for (const auto& entry : expected.entries()) {
        std::smatch match;
        static const std::regex kLayer(R"(layer(\d+)\.(\w+))");
        const std::string rest = entry.name.starts_with(prefix) ? entry.name.substr(prefix.size()) : "";
        const bool layered = std::regex_match(rest, match, kLayer);
        if (layered && match[2] == "state") {
          const std::vector<float> want = read_floats(expected, entry.name);
          EXPECT_LE(max_abs_difference(state_of(*runner, sequence, std::stoi(match[1]), "recurrent"), want),
                    (taps_rel != nullptr ? taps_rel->to_number<double>() : 1e-4) * std::max(1.0, max_abs(want)))
              << name << " " << entry.name;
          ++states;
        }
        if (!tapped || taps_rel == nullptr || (!layered && rest != "embedding" && rest != "final_norm")) continue;
        if (layered && kNotTapped.contains(match[2])) continue;
        const std::string ours = layered ? "layers." + match[1].str() + our_name(match[2]) : rest;
        if (layered && match[2] == "q" && recorder.tensors.contains("layers." + match[1].str() + ".q_nope"))
          continue;  // latent attention: q_pe and core show both parts
        // Grouped-query attention taps under the names that it shares with Qwen3.5.
        static const std::map<std::string, std::string> kShared = {
            {"q_norm", "q_normed"}, {"k_norm", "k_normed"}, {"q_rope", "q_rotated"}, {"k_rope", "k_rotated"}};
        const std::string name_there = recorder.tensors.contains(ours) || !layered || !kShared.contains(match[2])
                                           ? ours
                                           : "layers." + match[1].str() + "." + kShared.at(match[2]);
        ASSERT_TRUE(recorder.tensors.contains(name_there)) << name << " " << ours << " is not tapped";
        const std::vector<float>& got = recorder.tensors[name_there];
        if (entry.dtype == "I32") {
          EXPECT_EQ(std::vector<int32_t>(got.begin(), got.end()), read_ids(expected, entry.name))
              << name << " " << ours;
        } else {
          const std::vector<float> want = read_floats(expected, entry.name);
          EXPECT_LE(max_abs_difference(got, want), taps_rel->to_number<double>() * std::max(1.0, max_abs(want)))
              << name << " " << ours;
        }
        ++taps;
      }
      EXPECT_LE(max_abs_difference(logits, read_floats(expected, prefix + "logits")), logits_bound)
          << name << " " << prefix;
      ++sequences;
    };
    for (const auto& entry : expected.entries()) {
      if (!entry.name.ends_with(".logits")) continue;
      const std::string prefix = entry.name.substr(0, entry.name.size() - 6);
      if (prefix == "tap.") run(prefix, true);
      run(prefix, false);
    }
  }
  EXPECT_GT(sequences, 0);
  fmt::print("{} {}: {} sequences, {} taps, {} states\n", name, std::get<1>(GetParam()), sequences, taps, states);
}

TEST_P(Bailing, Bfloat16Logits) {
  const std::string name = kCases[std::get<0>(GetParam())];
  const fs::path folder = find_case("bailing", name);
  if (folder.empty()) GTEST_SKIP() << "skipped: " << name << " is only in the shared oracle";
  const json::value meta = read_json_file(folder / "case.json");
  const json::value* bound = meta.at("tolerances").as_object().if_contains("logits_bf16_rms");
  if (bound == nullptr) GTEST_SKIP() << "the case states no bound for bfloat16";
  const SafetensorsFile expected(folder / "expected.safetensors");
  ModelUnderTest model(folder, {std::get<1>(GetParam()), 2, ""}, DType::kBF16);
  std::vector<float> got, want;
  for (const auto& entry : expected.entries()) {
    if (!entry.name.ends_with(".logits")) continue;
    const std::string prefix = entry.name.substr(0, entry.name.size() - 6);
    Sequence sequence;
    sequence.tokens = read_ids(expected, prefix + "tokens");
    const auto runner =
        model.runner({.max_num_seqs = 1, .max_num_batched_tokens = 512, .max_model_len = sequence.size()});
    const std::vector<float> logits = teacher_forced(*runner, sequence, 512);
    const std::vector<float> recorded = read_floats(expected, entry.name);
    got.insert(got.end(), logits.begin(), logits.end());
    want.insert(want.end(), recorded.begin(), recorded.end());
  }
  const double rms = rms_difference(got, want);
  EXPECT_LE(rms, bound->to_number<double>()) << name;
  fmt::print("{} {} bfloat16: rms {:.4f} of {:.4f}\n", name, std::get<1>(GetParam()), rms, bound->to_number<double>());
}

INSTANTIATE_TEST_SUITE_P(Cases, Bailing,
                         ::testing::Combine(::testing::Range(0, static_cast<int>(std::size(kCases))),
                                            ::testing::Values("reference", "cpu")),
                         [](const auto& info) {
                           return std::string(kCases[std::get<0>(info.param)]) + "_" + std::get<1>(info.param);
                         });

class BailingGreedy : public ::testing::TestWithParam<const char*> {};

// Five ragged prompts decoded together, token for token.
TEST_P(BailingGreedy, ContinuesAsRecorded) {
  const fs::path folder = find_case("bailing", "v25_greedy");
  if (folder.empty()) GTEST_SKIP() << "skipped: the case is only in the shared oracle";
  const SafetensorsFile expected(folder / "expected.safetensors");
  ModelUnderTest model(folder, {GetParam(), 2, ""}, DType::kF32);
  std::vector<std::vector<int32_t>> want;
  std::vector<Sequence> sequences;
  for (int i = 0; expected.find(fmt::format("prompt{}.tokens", i)) != nullptr; ++i) {
    sequences.emplace_back().tokens = read_ids(expected, fmt::format("prompt{}.tokens", i));
    sequences.back().prompt_size = sequences.back().size();
    want.push_back(read_ids(expected, fmt::format("prompt{}.greedy", i)));
  }
  ASSERT_FALSE(sequences.empty());
  const auto n = static_cast<int64_t>(sequences.size());
  const auto runner = model.runner({.max_num_seqs = n, .max_num_batched_tokens = 1024, .max_model_len = 1024});
  for (size_t step = 0; step < want[0].size(); ++step) {
    std::vector<ModelRunner::Part> parts;
    std::vector<int32_t> last;
    int64_t row = 0;
    for (Sequence& s : sequences) {
      ASSERT_TRUE(runner->reserve(s, s.size()));
      parts.push_back({&s, s.size() - s.computed});
      row += parts.back().rows;
      last.push_back(static_cast<int32_t>(row - 1));
    }
    const Tensor logits = runner->logits(runner->forward(parts), last);
    for (int64_t i = 0; i < n; ++i) sequences[i].tokens.push_back(argmax(logits[i].as<float>(), logits.size(1)));
  }
  for (int64_t i = 0; i < n; ++i)
    EXPECT_EQ(std::vector<int32_t>(sequences[i].tokens.begin() + sequences[i].prompt_size, sequences[i].tokens.end()),
              want[i])
        << "prompt " << i;
  fmt::print("v25_greedy {}: {} continuations of {} tokens\n", GetParam(), n, want[0].size());
}

INSTANTIATE_TEST_SUITE_P(Backends, BailingGreedy, ::testing::Values("reference", "cpu"));

}  // namespace
}  // namespace calandra

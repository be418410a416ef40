// Whole models against the oracle: logits, taps in the order of computation, states and greedy continuations.
#include <fmt/format.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <map>
#include <set>

#include "base/json.h"
#include "tests/oracle_tools.h"

namespace calandra {
namespace {

using namespace calandra::testing;
namespace fs = std::filesystem;

// vision_dense: its text prompt; prompts with pictures are in vision_prompts_test.
struct Case {
  const char* name;
  bool taps = false;                  // the case has them
  const char* only_prompt = nullptr;  // null: every prompt of the case
};
const Case kCases[] = {{"dense_fp32_tied", true},
                       {"dense_bf16_sharded", true},
                       {"dense_text_only", true},
                       {"dense_sigmoid_gate", true},
                       {"dense_yarn", true},
                       {"dense_ragged_greedy"},
                       {"moe_fused", true},
                       {"moe_per_expert"},
                       {"fp8_dense"},
                       {"fp8_moe"},
                       {"vision_dense", false, "text_only"},
                       {"mtp_dense"},
                       {"mtp_dense_two_layers"},
                       {"mtp_moe"}};

std::set<std::string> prompts_of(const SafetensorsFile& expected, const Case& c) {
  std::set<std::string> prompts;
  for (const auto& entry : expected.entries()) {
    const size_t slash = entry.name.find('/');
    if (slash == std::string::npos || entry.name.substr(slash) != "/tokens") continue;
    const std::string prompt = entry.name.substr(0, slash);
    if (c.only_prompt == nullptr || prompt == c.only_prompt) prompts.insert(prompt);
  }
  return prompts;
}

// Our name is the layer's with the last part of the oracle's ("taps/linear/z" of the tapped layer 6: "layers.6.z"), but
// for the input and the output of a mixture, whose last part would be that of the mixer.
std::string our_tap_name(const std::string& full, const json::value& meta) {
  const std::string name = full.substr(full.find("/taps/") + 6);
  if (name.starts_with("layer/")) return "layers." + name.substr(6);
  const size_t slash = name.find('/');
  if (slash == std::string::npos) return name;
  const std::string kind = name.substr(0, slash), last = name.substr(slash + 1);
  std::string layer, place = ".";
  if (kind == "moe") {
    if (last == "input" || last == "output") place = ".moe/";
    const std::string meaning(meta.at("tensors").at(full).at("meaning").as_string());
    const size_t at = meaning.rfind("(layer ");
    layer = meaning.substr(at + 7, meaning.find(')', at) - at - 7);
  } else {
    const char* key = kind == "linear" ? "linear_attention" : "full_attention";
    layer = std::to_string(meta.at("tapped_layers").at(key).as_int64());
  }
  return "layers." + layer + place + last;
}

// Rows whose chosen experts in bfloat16 are not those of float32: behind a nearly equal pair of experts rounding
// decides, and such a row may then lie far away. Where a flip comes first, in the lowest layer that has one, the two
// experts must be as near as rounding makes them: bfloat16 activations move a logit by a few of their 2^-8, and a
// softmax probability by that much of itself.
std::set<int64_t> flipped_rows(ModelUnderTest& float32, ModelUnderTest& bfloat16, const std::vector<int32_t>& tokens) {
  const auto taps = [&](ModelUnderTest& model) {
    Sequence sequence;
    sequence.tokens = tokens;
    const auto runner = model.runner(
        {.max_num_seqs = 1, .max_num_batched_tokens = 512, .max_model_len = sequence.size(), .taps = true});
    Recorder recorder;
    teacher_forced(*runner, sequence, 512, &recorder);
    return recorder.tensors;
  };
  const auto exact = taps(float32), rounded = taps(bfloat16);
  std::set<int64_t> flipped;
  const auto rows = static_cast<int64_t>(tokens.size());
  for (int layer = 0; exact.contains(fmt::format("layers.{}.chosen_experts", layer)); ++layer) {
    const auto part = [&](const auto& all, const char* name, int64_t row) {
      const std::vector<float>& values = all.at(fmt::format("layers.{}.{}", layer, name));
      const auto width = static_cast<int64_t>(values.size()) / rows;
      std::vector<float> out(values.begin() + row * width, values.begin() + (row + 1) * width);
      std::sort(out.begin(), out.end());
      return out;
    };
    const bool first = flipped.empty();
    for (int64_t row = 0; row < rows; ++row) {
      const std::vector<float> chosen = part(exact, "chosen_experts", row);
      if (chosen == part(rounded, "chosen_experts", row)) continue;
      flipped.insert(row);
      const std::vector<float> logits = part(exact, "router_logits", row);  // ascending
      const double gap = logits[logits.size() - chosen.size()] - logits[logits.size() - chosen.size() - 1];
      if (first) {
        EXPECT_LE(gap, 8.0 / 256 * std::max(1.0, max_abs(logits))) << "layer " << layer << ", row " << row;
      }
    }
  }
  return flipped;
}

class Oracle : public ::testing::TestWithParam<std::tuple<int, std::string>> {};

TEST_P(Oracle, Float32LogitsTapsAndStates) {
  const Case& c = kCases[std::get<0>(GetParam())];
  const fs::path folder = find_case("qwen3_5", c.name);
  if (folder.empty()) GTEST_SKIP() << "skipped: " << c.name << " is only in the shared oracle";
  const json::value meta = read_json_file(folder / "case.json");
  const double tolerance = meta.at("suggested_tolerance").at("logits_float32_max_abs").as_double();
  const SafetensorsFile expected(folder / "expected.safetensors");
  ModelUnderTest model(folder, {std::get<1>(GetParam()), 2, ""}, DType::kF32);

  int taps = 0, recorded = 0, prompts = 0;
  size_t rows = 0, experts = 0;
  for (const std::string& prompt : prompts_of(expected, c)) {
    Sequence sequence;
    sequence.tokens = read_ids(expected, prompt + "/tokens");
    const auto runner = model.runner(
        {.max_num_seqs = 1, .max_num_batched_tokens = 512, .max_model_len = sequence.size(), .taps = true});
    Recorder recorder;
    const std::vector<float> logits = teacher_forced(*runner, sequence, 512, &recorder);
    std::vector<TapPair> pairs;
    for (const auto& entry : expected.entries()) {
      if (!entry.name.starts_with(prompt + "/taps/")) continue;
      ++recorded;
      const std::string ours = our_tap_name(entry.name, meta);
      const bool state = ours.ends_with(".final_state"), window = ours.ends_with(".conv_state");
      if (state || window) {  // seen beside the output of its layer
        const int layer = std::stoi(ours.substr(7));
        const std::vector<float> want = read_floats(expected, entry.name);
        pairs.push_back({ours, static_cast<double>(recorder.place(fmt::format("layers.{}", layer))) - 0.5,
                         state_of(*runner, sequence, layer, state ? "recurrent" : "conv"), want, 1e-4 * max_abs(want)});
        continue;
      }
      if (recorder.place(ours) < 0) {
        ADD_FAILURE() << c.name << " " << prompt << ": " << ours << " is not tapped";
        continue;
      }
      EXPECT_EQ(recorder.shapes[ours], entry.shape) << ours;
      TapPair pair{ours, static_cast<double>(recorder.place(ours)), recorder.tensors[ours], {}, 0};
      if (entry.dtype == "F32") {
        pair.want = read_floats(expected, entry.name);
        pair.bound = 1e-4 * max_abs(pair.want);
      } else {  // chosen experts: equal
        const std::vector<int32_t> ids = read_ids(expected, entry.name);
        pair.want.assign(ids.begin(), ids.end());
        experts += ids.size();
      }
      pairs.push_back(std::move(pair));
    }
    EXPECT_TRUE(all_near(pairs)) << c.name << " " << prompt;
    taps += static_cast<int>(pairs.size());
    const std::vector<float> want = read_floats(expected, prompt + "/logits");
    ASSERT_EQ(logits.size(), want.size());
    EXPECT_LE(max_abs_difference(logits, want), tolerance) << c.name << " " << prompt;
    // Untapped: the fused paths of the backend must agree too.
    runner->release(sequence);
    EXPECT_LE(max_abs_difference(teacher_forced(*runner, sequence, 512), want), tolerance)
        << c.name << " " << prompt << " without taps";
    rows += sequence.tokens.size();
    ++prompts;
  }
  EXPECT_GT(prompts, 0);
  EXPECT_EQ(taps, recorded);
  EXPECT_EQ(taps > 0, c.taps);
  RecordProperty("cases", 1);
  RecordProperty("prompts", prompts);
  RecordProperty("logits_rows", static_cast<int>(rows));
  RecordProperty("taps", taps);
  RecordProperty("chosen_experts", static_cast<int>(experts));
}

TEST_P(Oracle, Bfloat16Logits) {
  const Case& c = kCases[std::get<0>(GetParam())];
  const fs::path folder = find_case("qwen3_5", c.name);
  if (folder.empty()) GTEST_SKIP() << "skipped: " << c.name << " is only in the shared oracle";
  const json::value meta = read_json_file(folder / "case.json");
  const json::value& tolerance = meta.at("suggested_tolerance");
  const SafetensorsFile expected(folder / "expected.safetensors");
  ModelUnderTest model(folder, {std::get<1>(GetParam()), 2, ""}, DType::kBF16);
  ModelUnderTest exact(folder, {std::get<1>(GetParam()), 2, ""}, DType::kF32);
  std::vector<double> differences, hf;
  size_t flips = 0, rows = 0;
  for (const std::string& prompt : prompts_of(expected, c)) {
    Sequence sequence;
    sequence.tokens = read_ids(expected, prompt + "/tokens");
    const auto runner =
        model.runner({.max_num_seqs = 1, .max_num_batched_tokens = 512, .max_model_len = sequence.size()});
    const std::vector<float> logits = teacher_forced(*runner, sequence, 512);
    const std::vector<float> want = read_floats(expected, prompt + "/logits");
    const std::set<int64_t> flipped = flipped_rows(exact, model, sequence.tokens);
    flips += flipped.size();
    rows += sequence.tokens.size();
    const auto V = static_cast<size_t>(model.model().vocab_size());
    for (size_t i = 0; i < want.size(); ++i)
      if (!flipped.contains(static_cast<int64_t>(i / V)))
        differences.push_back(std::abs(static_cast<double>(logits[i]) - want[i]));
    if (expected.find(prompt + "/logits_transformers_bfloat16") != nullptr) {
      const std::vector<float> theirs = read_floats(expected, prompt + "/logits_transformers_bfloat16");
      for (size_t i = 0; i < want.size(); ++i) hf.push_back(std::abs(static_cast<double>(theirs[i]) - want[i]));
    }
  }
  const auto mean_and_p99 = [](std::vector<double> d) {
    double sum = 0;
    for (const double x : d) sum += x;
    std::sort(d.begin(), d.end());
    return std::pair(sum / static_cast<double>(d.size()), d[d.size() * 99 / 100]);
  };
  const auto [mean, p99] = mean_and_p99(differences);
  EXPECT_LE(mean, tolerance.at("logits_bfloat16_mean_abs").as_double()) << c.name;
  EXPECT_LE(p99, tolerance.at("logits_bfloat16_p99_abs").as_double()) << c.name;
  RecordProperty("bfloat16_logits_rows", static_cast<int>(rows));
  fmt::print("{} {} bfloat16: mean {:.4f}, p99 {:.4f}", c.name, std::get<1>(GetParam()), mean, p99);
  if (flips > 0) fmt::print(", without {} rows whose experts differ from float32", flips);
  if (!hf.empty()) {
    const auto [hf_mean, hf_p99] = mean_and_p99(hf);
    fmt::print(" (Transformers in bfloat16: mean {:.4f}, p99 {:.4f})", hf_mean, hf_p99);
  }
  fmt::print("\n");
}

INSTANTIATE_TEST_SUITE_P(Cases, Oracle,
                         ::testing::Combine(::testing::Range(0, static_cast<int>(std::size(kCases))),
                                            ::testing::ValuesIn(model_backends())),
                         [](const auto& info) {
                           return std::string(kCases[std::get<0>(info.param)].name) + "_" + std::get<1>(info.param);
                         });

class Greedy : public ::testing::TestWithParam<std::string> {};

// Prompts of different lengths decoded together, token for token.
TEST_P(Greedy, RaggedBatchContinuesAsRecorded) {
  const fs::path folder = find_case("qwen3_5", "dense_ragged_greedy");
  if (folder.empty()) GTEST_SKIP() << "skipped: the case is only in the shared oracle";
  const SafetensorsFile expected(folder / "expected.safetensors");
  ModelUnderTest model(folder, {GetParam(), 2, ""}, DType::kF32);
  std::vector<std::vector<int32_t>> prompts, want;
  for (const std::string& prompt : prompts_of(expected, {"dense_ragged_greedy"})) {
    prompts.push_back(read_ids(expected, prompt + "/tokens"));
    want.push_back(read_ids(expected, prompt + "/continuation"));
  }
  EXPECT_EQ(greedy(model, prompts, 48), want);
  RecordProperty("continuations", static_cast<int>(want.size()));
  RecordProperty("greedy_tokens", static_cast<int>(want.size() * 48));
}

INSTANTIATE_TEST_SUITE_P(Backends, Greedy, ::testing::ValuesIn(model_backends()));

}  // namespace
}  // namespace calandra

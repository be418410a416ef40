// Whole models against the oracle: logits, taps in order, states and greedy continuations.
#include <fmt/format.h>
#include <gtest/gtest.h>

#include <cmath>
#include <map>
#include <set>

#include "base/json.h"
#include "tests/model_under_test.h"

namespace calandra {
namespace {

using namespace calandra::testing;
namespace fs = std::filesystem;

struct Case {
  const char* name;
  const char* only_prompt;  // null: every prompt of the case
};
const Case kCases[] = {{"dense_fp32_tied", nullptr},  {"dense_bf16_sharded", nullptr},
                       {"dense_text_only", nullptr},  {"dense_sigmoid_gate", nullptr},
                       {"dense_yarn", nullptr},       {"dense_ragged_greedy", nullptr},
                       {"vision_dense", "text_only"}, {"mtp_dense", nullptr}};

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

// Everything the model taps, by name, as f32, in order of appearance.
class Recorder : public Taps {
 public:
  void tap(int layer, const char* name, const Tensor& t) override {
    std::string full = layer < 0 ? name : fmt::format("layers.{}{}{}", layer, name[0] == '\0' ? "" : ".", name);
    std::vector<float>& out = tensors[full];
    const int64_t n1 = t.rank() > 1 ? t.size(1) : 1, n2 = t.rank() > 2 ? t.size(2) : 1;
    const std::string_view last = name;
    const int copies = last == "rope_cos" || last == "rope_sin" ? 2 : 1;  // HF's tables hold every value twice
    for (int64_t i = 0; i < t.size(0); ++i) {
      for (int copy = 0; copy < copies; ++copy) {
        for (int64_t j = 0; j < n1; ++j) {
          for (int64_t k = 0; k < n2; ++k) {
            const int64_t at =
                i * t.stride(0) + (t.rank() > 1 ? j * t.stride(1) : 0) + (t.rank() > 2 ? k * t.stride(2) : 0);
            out.push_back(t.dtype() == DType::kBF16 ? static_cast<float>(t.as<bf16>()[at]) : t.as<float>()[at]);
          }
        }
      }
    }
  }
  std::map<std::string, std::vector<float>> tensors;
};

// The oracle's "taps/linear/z" is our "layers.6.z" for the tapped layer 6.
std::string our_tap_name(std::string name, const json::object& meta) {
  name = name.substr(name.find("/taps/") + 6);
  if (name.starts_with("layer/")) return "layers." + name.substr(6);
  const auto layer_of = [&](const char* kind) { return meta.at("tapped_layers").at(kind).as_int64(); };
  if (name.starts_with("linear/")) return fmt::format("layers.{}.{}", layer_of("linear_attention"), name.substr(7));
  if (name.starts_with("full/")) return fmt::format("layers.{}.{}", layer_of("full_attention"), name.substr(5));
  return name;
}

double max_abs(const std::vector<float>& x) {
  double max = 0;
  for (const float v : x) max = std::max(max, std::abs(static_cast<double>(v)));
  return max;
}

double max_abs_difference(const std::vector<float>& a, const std::vector<float>& b) {
  double max = 0;
  for (size_t i = 0; i < a.size(); ++i) max = std::max(max, std::abs(static_cast<double>(a[i]) - b[i]));
  return max;
}

std::vector<float> state_of(ModelRunner& runner, const Sequence& sequence, int layer, const std::string& name) {
  const std::vector<CacheSpec> specs = runner.model().cache_specs();
  for (size_t i = 0; i < specs[layer].slotted.size(); ++i) {
    if (name != specs[layer].slotted[i].name) continue;
    const Tensor t = runner.slots().layer(layer)[i][sequence.slot];
    std::vector<float> out;
    if (name == "recurrent") {
      out.assign(t.as<float>(), t.as<float>() + t.numel());
    } else {  // [W - 1, C] -> [C, W - 1]
      for (int64_t c = 0; c < t.size(1); ++c)
        for (int64_t w = 0; w < t.size(0); ++w) out.push_back(t.as<float>()[w * t.size(1) + c]);
    }
    return out;
  }
  return {};
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

  int taps_compared = 0, prompts = 0;
  for (const std::string& prompt : prompts_of(expected, c)) {
    Sequence sequence;
    sequence.tokens = read_ids(expected, prompt + "/tokens");
    const auto runner = model.runner(
        {.max_num_seqs = 1, .max_num_batched_tokens = 512, .max_model_len = sequence.size(), .taps = true});
    Recorder recorder;
    const std::vector<float> logits = teacher_forced(*runner, sequence, 512, &recorder);
    // First the taps, in the order of computation: the first that differs shows where.
    for (const auto& entry : expected.entries()) {
      if (!entry.name.starts_with(prompt + "/taps/")) continue;
      const std::string ours = our_tap_name(entry.name, meta.as_object());
      const std::vector<float> want = read_floats(expected, entry.name);
      std::vector<float> got;
      if (ours.ends_with(".final_state") || ours.ends_with(".conv_state")) {
        const int layer = std::stoi(ours.substr(7));
        got = state_of(*runner, sequence, layer, ours.ends_with(".final_state") ? "recurrent" : "conv");
      } else {
        ASSERT_TRUE(recorder.tensors.contains(ours)) << ours << " is not tapped";
        got = recorder.tensors[ours];
      }
      ASSERT_EQ(got.size(), want.size()) << ours;
      EXPECT_LE(max_abs_difference(got, want), 1e-4 * max_abs(want)) << c.name << " " << prompt << " " << ours;
      ++taps_compared;
    }
    const std::vector<float> want = read_floats(expected, prompt + "/logits");
    ASSERT_EQ(logits.size(), want.size());
    EXPECT_LE(max_abs_difference(logits, want), tolerance) << c.name << " " << prompt;
    // Untapped: the fused paths of the backend must agree too.
    Sequence again = sequence;
    runner->release(sequence);
    again.block_table.clear();
    again.slot = -1;
    again.computed = 0;
    EXPECT_LE(max_abs_difference(teacher_forced(*runner, again, 512), want), tolerance)
        << c.name << " " << prompt << " without taps";
    ++prompts;
  }
  EXPECT_GT(prompts, 0);
  fmt::print("{} {}: {} prompts, {} taps\n", c.name, std::get<1>(GetParam()), prompts, taps_compared);
}

TEST_P(Oracle, Bfloat16Logits) {
  const Case& c = kCases[std::get<0>(GetParam())];
  const fs::path folder = find_case("qwen3_5", c.name);
  if (folder.empty()) GTEST_SKIP() << "skipped: " << c.name << " is only in the shared oracle";
  const json::value meta = read_json_file(folder / "case.json");
  const json::value& tolerance = meta.at("suggested_tolerance");
  const SafetensorsFile expected(folder / "expected.safetensors");
  ModelUnderTest model(folder, {std::get<1>(GetParam()), 2, ""}, DType::kBF16);
  std::vector<double> differences, hf;
  for (const std::string& prompt : prompts_of(expected, c)) {
    Sequence sequence;
    sequence.tokens = read_ids(expected, prompt + "/tokens");
    const auto runner =
        model.runner({.max_num_seqs = 1, .max_num_batched_tokens = 512, .max_model_len = sequence.size()});
    const std::vector<float> logits = teacher_forced(*runner, sequence, 512);
    const std::vector<float> want = read_floats(expected, prompt + "/logits");
    for (size_t i = 0; i < want.size(); ++i) differences.push_back(std::abs(static_cast<double>(logits[i]) - want[i]));
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
  fmt::print("{} {} bfloat16: mean {:.4f}, p99 {:.4f}", c.name, std::get<1>(GetParam()), mean, p99);
  if (!hf.empty()) {
    const auto [hf_mean, hf_p99] = mean_and_p99(hf);
    fmt::print(" (Transformers in bfloat16: mean {:.4f}, p99 {:.4f})", hf_mean, hf_p99);
  }
  fmt::print("\n");
}

INSTANTIATE_TEST_SUITE_P(Cases, Oracle,
                         ::testing::Combine(::testing::Range(0, static_cast<int>(std::size(kCases))),
                                            ::testing::Values("reference", "cpu")),
                         [](const auto& info) {
                           return std::string(kCases[std::get<0>(info.param)].name) + "_" + std::get<1>(info.param);
                         });

int32_t argmax(const float* row, int64_t n) {
  int64_t best = 0;
  for (int64_t i = 1; i < n; ++i)
    if (row[i] > row[best]) best = i;
  return static_cast<int32_t>(best);
}

class Greedy : public ::testing::TestWithParam<std::string> {};

// Prompts of different lengths decoded together, token for token.
TEST_P(Greedy, RaggedBatchContinuesAsRecorded) {
  const fs::path folder = find_case("qwen3_5", "dense_ragged_greedy");
  if (folder.empty()) GTEST_SKIP() << "skipped: the case is only in the shared oracle";
  const SafetensorsFile expected(folder / "expected.safetensors");
  ModelUnderTest model(folder, {GetParam(), 2, ""}, DType::kF32);
  const auto prompts = prompts_of(expected, {"", nullptr});
  const auto n = static_cast<int64_t>(prompts.size());
  const auto runner = model.runner({.max_num_seqs = n, .max_num_batched_tokens = 1024, .max_model_len = 512});
  std::vector<Sequence> sequences;
  for (const std::string& prompt : prompts) {
    sequences.emplace_back().tokens = read_ids(expected, prompt + "/tokens");
    sequences.back().prompt_size = sequences.back().size();
  }
  for (int step = 0; step < 48; ++step) {
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
  int64_t i = 0;
  for (const std::string& prompt : prompts) {
    const std::vector<int32_t> want = read_ids(expected, prompt + "/continuation");
    const Sequence& s = sequences[i++];
    EXPECT_EQ(std::vector<int32_t>(s.tokens.begin() + s.prompt_size, s.tokens.end()), want) << prompt;
  }
  fmt::print("dense_ragged_greedy {}: {} continuations of 48 tokens\n", GetParam(), n);
}

INSTANTIATE_TEST_SUITE_P(Backends, Greedy, ::testing::Values("reference", "cpu"));

}  // namespace
}  // namespace calandra

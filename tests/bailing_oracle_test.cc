// The Bailing family against the oracle: logits, taps in the order of computation, chosen experts, states, decay slopes
// of both variants, name variants and greedy continuations.
#include <fmt/format.h>
#include <gtest/gtest.h>

#include <cmath>
#include <regex>
#include <set>

#include "base/json.h"
#include "layers/lightning_attention.h"
#include "tests/oracle_tools.h"

namespace calandra {
namespace {

using namespace calandra::testing;
namespace fs = std::filesystem;

const char* const kCases[] = {"v25_fp32_qproj", "v25_fp32_qlora",     "v25_bf16_sharded", "v25_yarn",
                              "v25_options",    "v25_linear_silu",    "v25_fp8_block",    "linear_v2_fp32",
                              "names_released", "names_bias_aliases", "names_no_prefix"};

// What stands beside the taps of a sequence.
const std::set<std::string> kNoTaps = {"tokens", "logits", "argmax", "argmax_margin", "expert_margin", "group_margin"};

class Bailing : public ::testing::TestWithParam<std::tuple<int, std::string>> {};

// What a test compared.
struct Counts {
  int sequences = 0, logits_rows = 0, argmaxes = 0, states = 0, slopes = 0;
  int recorded_taps = 0, taps = 0, experts = 0;

  void record() const {
    const auto property = [](const char* name, int n) { ::testing::Test::RecordProperty(name, n); };
    EXPECT_EQ(taps, recorded_taps);
    property("cases", 1), property("sequences", sequences), property("logits_rows", logits_rows);
    property("argmaxes", argmaxes), property("taps", taps);
    property("states", states), property("slopes", slopes), property("chosen_experts", experts);
  }
};

constexpr double kSlopeRel = 1e-6;  // the 1e-5 in a layer's factor shows only there

// max|x - e| <= rel * max(1, max|e|), the rule of the cases.
double bound_of(const std::vector<float>& want, double rel) { return rel * std::max(1.0, max_abs(want)); }

// A tap of the oracle beside ours, `name`: "layers.3.q_norm" for its "layer3.q_norm".
void add_tap(const SafetensorsFile& expected, const SafetensorsFile::Entry& entry, const std::string& name,
             const Recorder& recorder, double rel, std::vector<TapPair>& pairs, Counts& counts) {
  ++counts.recorded_taps;
  if (recorder.place(name) < 0) {
    ADD_FAILURE() << entry.name << ": " << name << " is not tapped";
    return;
  }
  EXPECT_EQ(recorder.shapes.at(name), entry.shape) << name;
  TapPair pair{name, static_cast<double>(recorder.place(name)), recorder.tensors.at(name), {}, 0};
  if (entry.dtype == "I32") {  // chosen experts and groups: equal
    const std::vector<int32_t> ids = read_ids(expected, entry.name);
    pair.want.assign(ids.begin(), ids.end());
    if (name.ends_with(".experts")) counts.experts += static_cast<int>(ids.size());
  } else {
    pair.want = read_floats(expected, entry.name);
    pair.bound = name.ends_with(".slope") ? kSlopeRel * max_abs(pair.want) : bound_of(pair.want, rel);
  }
  pairs.push_back(std::move(pair));
  ++counts.taps;
}

// One sequence of a case, `prefix` "seq65." or "tap."; with taps, or as it is served.
void compare_sequence(const SafetensorsFile& expected, ModelUnderTest& model, const json::object& tolerances,
                      const std::string& prefix, bool tapped, Counts& counts) {
  const json::value* given = tolerances.if_contains("taps_float32_rel");
  const double rel = given != nullptr ? given->to_number<double>() : 1e-4;
  Sequence sequence;
  sequence.tokens = read_ids(expected, prefix + "tokens");
  const auto runner = model.runner(
      {.max_num_seqs = 1, .max_num_batched_tokens = 512, .max_model_len = sequence.size(), .taps = tapped});
  Recorder recorder;
  const std::vector<float> logits = teacher_forced(*runner, sequence, 512, tapped ? &recorder : nullptr);
  std::vector<TapPair> pairs;
  for (const auto& entry : expected.entries()) {
    if (!entry.name.starts_with(prefix)) continue;
    static const std::regex kLayer(R"(layer(\d+)\.(\w+))");
    std::smatch match;
    const std::string name = entry.name.substr(prefix.size());
    if (std::regex_match(name, match, kLayer) && match[2] == "state") {
      const std::vector<float> want = read_floats(expected, entry.name);
      EXPECT_LE(max_abs_difference(state_of(*runner, sequence, std::stoi(match[1]), "recurrent"), want),
                bound_of(want, rel))
          << entry.name;
      ++counts.states;
    } else if (tapped && !match.empty()) {
      add_tap(expected, entry, fmt::format("layers.{}.{}", match[1].str(), match[2].str()), recorder, rel, pairs,
              counts);
    } else if (tapped && !kNoTaps.contains(name)) {
      add_tap(expected, entry, name, recorder, rel, pairs, counts);
    }
  }
  EXPECT_TRUE(all_near(pairs)) << prefix;
  EXPECT_LE(max_abs_difference(logits, read_floats(expected, prefix + "logits")),
            tolerances.at("logits_float32_abs").to_number<double>())
      << prefix;
  ++counts.sequences;
  counts.logits_rows += static_cast<int>(sequence.size());
  if (expected.find(prefix + "argmax") == nullptr) return;
  const std::vector<int32_t> best = read_ids(expected, prefix + "argmax");
  const int64_t V = model.model().vocab_size();
  for (size_t row = 0; row < best.size(); ++row)
    EXPECT_EQ(argmax(logits.data() + row * V, V), best[row]) << prefix << " row " << row;
  counts.argmaxes += static_cast<int>(best.size());
}

void compare_slopes(const SafetensorsFile& expected, const json::object& config, LinearDecayVariant variant,
                    Counts& counts) {
  for (const auto& entry : expected.entries()) {
    if (!entry.name.starts_with("slope.layer")) continue;
    const std::vector<float> want = read_floats(expected, entry.name);
    const std::vector<float> got =
        decay_slopes(config.at("num_attention_heads").as_int64(), std::stoi(entry.name.substr(11)),
                     config.at("num_hidden_layers").as_int64(), variant);
    ASSERT_EQ(got.size(), want.size());
    for (size_t head = 0; head < want.size(); ++head)
      EXPECT_LE(std::abs(got[head] - want[head]), kSlopeRel * want[head]) << entry.name << " head " << head;
    counts.slopes += static_cast<int>(want.size());
  }
}

TEST_P(Bailing, Float32LogitsTapsAndStates) {
  const std::string name = kCases[std::get<0>(GetParam())];
  const fs::path folder = find_case("bailing", name);
  if (folder.empty()) GTEST_SKIP() << "skipped: " << name << " is only in the shared oracle";
  SCOPED_TRACE(name);
  const json::value meta = read_json_file(folder / "case.json");
  const json::object& tolerances = meta.at("tolerances").as_object();
  Counts counts;
  for (const LinearDecayVariant variant : {LinearDecayVariant::kP, LinearDecayVariant::kH}) {
    const bool p = variant == LinearDecayVariant::kP;
    const fs::path file = folder / (p ? "expected.safetensors" : "expected_decay_h.safetensors");
    if (!fs::exists(file)) continue;
    const SafetensorsFile expected(file);
    ModelUnderTest model(folder, {std::get<1>(GetParam()), 2, ""}, DType::kF32, {},
                         {{"linear_decay_variant", p ? "P" : "H"}});
    compare_slopes(expected, model.config().config, variant, counts);
    for (const auto& entry : expected.entries()) {
      if (!entry.name.ends_with(".logits")) continue;
      const std::string prefix = entry.name.substr(0, entry.name.size() - 6);
      if (expected.find(prefix + "final_norm") != nullptr)
        compare_sequence(expected, model, tolerances, prefix, true, counts);
      compare_sequence(expected, model, tolerances, prefix, false, counts);
    }
  }
  EXPECT_GT(counts.sequences, 0);
  EXPECT_GT(counts.slopes, 0);
  static const std::set<std::string> kWithTaps = {"v25_fp32_qproj", "v25_fp32_qlora", "v25_options", "v25_linear_silu",
                                                  "linear_v2_fp32"};
  EXPECT_EQ(counts.taps > 0, kWithTaps.contains(name));
  counts.record();
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
  int rows = 0;
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
    rows += static_cast<int>(sequence.size());
  }
  const double rms = rms_difference(got, want);
  EXPECT_LE(rms, bound->to_number<double>()) << name;
  RecordProperty("bfloat16_logits_rows", rows);
  fmt::print("{} {} bfloat16: rms {:.4f} of {:.4f}\n", name, std::get<1>(GetParam()), rms, bound->to_number<double>());
}

INSTANTIATE_TEST_SUITE_P(Cases, Bailing,
                         ::testing::Combine(::testing::Range(0, static_cast<int>(std::size(kCases))),
                                            ::testing::ValuesIn(model_backends())),
                         [](const auto& info) {
                           return std::string(kCases[std::get<0>(info.param)]) + "_" + std::get<1>(info.param);
                         });

class BailingBackends : public ::testing::TestWithParam<std::string> {};

// The MTP layer over a prompt and the token after it; its logits and drafts are in mtp_test.
TEST_P(BailingBackends, TapsOfTheDrafter) {
  const fs::path folder = find_case("bailing", "v25_mtp");
  if (folder.empty()) GTEST_SKIP() << "skipped: the case is only in the shared oracle";
  const SafetensorsFile expected(folder / "expected.safetensors");
  ModelUnderTest model(folder, {GetParam(), 2, ""}, DType::kF32, {.drafter = true});
  Sequence sequence;
  sequence.tokens = read_ids(expected, "prompt0.tokens");
  const auto runner = model.runner(
      {.max_num_seqs = 1, .max_num_batched_tokens = 64, .max_model_len = sequence.size() + 1, .taps = true});
  ASSERT_TRUE(runner->reserve(sequence, sequence.size() + 1));
  const std::vector<float> hidden = target_hidden(*runner, sequence, 64);
  Recorder recorder;
  mtp_pass(*runner, sequence, hidden, read_ids(expected, "prompt0.next_tokens"), 0, 64, &recorder);
  Counts counts;
  std::vector<TapPair> pairs;
  const std::string prefix = "tap.mtp0.";
  for (const auto& entry : expected.entries()) {
    if (!entry.name.starts_with(prefix)) continue;
    const size_t layer = model.model().cache_specs().size();  // behind those of the decoder
    add_tap(expected, entry, fmt::format("layers.{}.{}", layer, entry.name.substr(prefix.size())), recorder, 1e-4,
            pairs, counts);
  }
  EXPECT_TRUE(all_near(pairs));
  EXPECT_GT(counts.taps, 0);
  counts.record();
}

// Five ragged prompts decoded together, token for token.
TEST_P(BailingBackends, ContinuesAsRecorded) {
  const fs::path folder = find_case("bailing", "v25_greedy");
  if (folder.empty()) GTEST_SKIP() << "skipped: the case is only in the shared oracle";
  const SafetensorsFile expected(folder / "expected.safetensors");
  ModelUnderTest model(folder, {GetParam(), 2, ""}, DType::kF32);
  std::vector<std::vector<int32_t>> prompts, want;
  for (int i = 0; expected.find(fmt::format("prompt{}.tokens", i)) != nullptr; ++i) {
    prompts.push_back(read_ids(expected, fmt::format("prompt{}.tokens", i)));
    want.push_back(read_ids(expected, fmt::format("prompt{}.greedy", i)));
  }
  ASSERT_FALSE(want.empty());
  EXPECT_EQ(greedy(model, prompts, static_cast<int64_t>(want[0].size())), want);
  RecordProperty("continuations", static_cast<int>(want.size()));
  RecordProperty("greedy_tokens", static_cast<int>(want.size() * want[0].size()));
}

INSTANTIATE_TEST_SUITE_P(Backends, BailingBackends, ::testing::ValuesIn(model_backends()));

}  // namespace
}  // namespace calandra

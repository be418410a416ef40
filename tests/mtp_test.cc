// The drafters against the oracle: first pass over the shifted prompt and chained greedy drafts, cut into chunks too.
#include <fmt/format.h>
#include <gtest/gtest.h>

#include <set>

#include "base/json.h"
#include "tests/oracle_tools.h"

namespace calandra {
namespace {

using namespace calandra::testing;
namespace fs = std::filesystem;

std::set<std::string> prompts_of(const SafetensorsFile& expected, const std::string& suffix) {
  std::set<std::string> prompts;
  for (const auto& entry : expected.entries())
    if (entry.name.ends_with(suffix)) prompts.insert(entry.name.substr(0, entry.name.size() - suffix.size()));
  return prompts;
}

class Mtp : public ::testing::TestWithParam<std::tuple<const char*, std::string>> {};

TEST_P(Mtp, Qwen3_5PassAndDrafts) {
  const auto [name, backend] = GetParam();
  const fs::path folder = find_case("qwen3_5", name);
  if (folder.empty()) GTEST_SKIP() << "skipped: " << name << " is only in the shared oracle";
  const json::value meta = read_json_file(folder / "case.json");
  const double tolerance = meta.at("suggested_tolerance").at("logits_float32_max_abs").as_double();
  const SafetensorsFile expected(folder / "expected.safetensors");
  ModelUnderTest model(folder, {backend, 2, ""}, DType::kF32, {.drafter = true});
  ASSERT_NE(model.model().drafter(), nullptr);

  int drafted = 0, rows = 0;
  for (const std::string& prompt : prompts_of(expected, "/mtp/logits")) {
    const std::vector<int32_t> next = read_ids(expected, prompt + "/mtp/shifted_tokens");
    for (const int64_t chunk : {int64_t{512}, int64_t{7}}) {
      Sequence sequence;
      sequence.tokens = read_ids(expected, prompt + "/tokens");
      const auto runner = model.runner(
          {.max_num_seqs = 1, .max_num_batched_tokens = chunk, .max_model_len = sequence.size() + 8, .taps = true});
      ASSERT_TRUE(runner->reserve(sequence, sequence.size() + 8));
      const std::vector<float> hidden = target_hidden(*runner, sequence, chunk);
      EXPECT_LE(max_abs_difference(hidden, read_floats(expected, prompt + "/target_hidden")), 1e-4 * max_abs(hidden));
      Recorder recorder;
      const MtpPass pass = mtp_pass(*runner, sequence, hidden, next, 0, chunk, &recorder);
      const size_t decoder_layers = model.model().cache_specs().size();
      for (int64_t i = 0; i < model.model().drafter()->num_layers(); ++i)  // each has taps of its own
        EXPECT_GE(recorder.place(fmt::format("layers.{}.attention", decoder_layers + i)), 0);
      EXPECT_LT(recorder.place("attention"), 0);
      const auto near = [&](const std::vector<float>& got, const std::string& tensor, double bound) {
        EXPECT_LE(max_abs_difference(got, read_floats(expected, tensor)), bound)
            << name << " " << tensor << " " << chunk;
      };
      near(recorder.tensors["mtp.fc_output"], prompt + "/mtp/fc_output",
           1e-4 * max_abs(recorder.tensors["mtp.fc_output"]));
      near(pass.hidden, prompt + "/mtp/hidden", 1e-4 * max_abs(pass.hidden));
      EXPECT_EQ(recorder.tensors["mtp.hidden"], pass.hidden);
      near(pass.logits, prompt + "/mtp/logits", tolerance);
      rows += static_cast<int>(next.size());
      for (const bool cycled : {false, true}) {
        const std::string kind = prompt + (cycled ? "/mtp_cycled" : "/mtp");
        if (expected.find(kind + "/draft_tokens") == nullptr) continue;
        const std::vector<int32_t> want = read_ids(expected, kind + "/draft_tokens");
        const Drafts drafts = chained_drafts(*runner, sequence, pass, static_cast<int64_t>(want.size()), cycled);
        EXPECT_EQ(drafts.tokens, want) << kind;
        near(drafts.logits, kind + "/draft_logits", tolerance);
        near(drafts.hidden, kind + "/draft_hidden", 1e-4 * max_abs(drafts.hidden));
        drafted += static_cast<int>(want.size());
      }
    }
  }
  EXPECT_GT(drafted, 0);
  RecordProperty("cases", 1);
  RecordProperty("draft_logits_rows", rows);
  RecordProperty("drafts", drafted);
}

INSTANTIATE_TEST_SUITE_P(Cases, Mtp,
                         ::testing::Combine(::testing::Values("mtp_dense", "mtp_dense_two_layers", "mtp_moe"),
                                            ::testing::ValuesIn(model_backends())),
                         [](const auto& info) {
                           return std::string(std::get<0>(info.param)) + "_" + std::get<1>(info.param);
                         });

class Nextn : public ::testing::TestWithParam<std::string> {};

TEST_P(Nextn, BailingPassAndDrafts) {
  const fs::path folder = find_case("bailing", "v25_mtp");
  if (folder.empty()) GTEST_SKIP() << "skipped: the case is only in the shared oracle";
  const json::value meta = read_json_file(folder / "case.json");
  const double tolerance = meta.at("tolerances").at("logits_float32_abs").as_double();
  const SafetensorsFile expected(folder / "expected.safetensors");
  ModelUnderTest model(folder, {GetParam(), 2, ""}, DType::kF32, {.drafter = true});
  int drafted = 0, rows = 0;
  for (const std::string& prompt : prompts_of(expected, ".mtp_logits")) {
    Sequence sequence;
    sequence.tokens = read_ids(expected, prompt + ".tokens");
    const auto runner =
        model.runner({.max_num_seqs = 1, .max_num_batched_tokens = 33, .max_model_len = sequence.size() + 8});
    ASSERT_TRUE(runner->reserve(sequence, sequence.size() + 8));
    const std::vector<float> hidden = target_hidden(*runner, sequence, 33);
    EXPECT_LE(max_abs_difference(hidden, read_floats(expected, prompt + ".hidden")), 1e-4 * max_abs(hidden));
    const MtpPass pass = mtp_pass(*runner, sequence, hidden, read_ids(expected, prompt + ".next_tokens"), 0, 33);
    EXPECT_LE(max_abs_difference(pass.logits, read_floats(expected, prompt + ".mtp_logits")), tolerance) << prompt;
    rows += static_cast<int>(sequence.size());
    const std::vector<int32_t> want = read_ids(expected, prompt + ".draft_tokens");
    const Drafts drafts = chained_drafts(*runner, sequence, pass, static_cast<int64_t>(want.size()), true);
    EXPECT_EQ(drafts.tokens, want) << prompt;
    EXPECT_LE(max_abs_difference(drafts.logits, read_floats(expected, prompt + ".draft_logits")), tolerance) << prompt;
    drafted += static_cast<int>(want.size());
  }
  EXPECT_GT(drafted, 0);
  RecordProperty("cases", 1);
  RecordProperty("draft_logits_rows", rows);
  RecordProperty("drafts", drafted);
}

// Two layers in training form: layer j is fed with layer j - 1's results and the tokens j + 1 ahead.
TEST_P(Nextn, BailingTwoLayers) {
  const fs::path folder = find_case("bailing", "v25_mtp_two_layers");
  if (folder.empty()) GTEST_SKIP() << "skipped: the case is only in the shared oracle";
  const double tolerance = read_json_file(folder / "case.json").at("tolerances").at("logits_float32_abs").as_double();
  const SafetensorsFile expected(folder / "expected.safetensors");
  ModelUnderTest model(folder, {GetParam(), 2, ""}, DType::kF32, {.drafter = true});
  int rows = 0;
  for (const std::string& prompt : prompts_of(expected, ".mtp0_logits")) {
    Sequence sequence;
    sequence.tokens = read_ids(expected, prompt + ".tokens");
    const auto runner =
        model.runner({.max_num_seqs = 1, .max_num_batched_tokens = 64, .max_model_len = sequence.size() + 8});
    ASSERT_TRUE(runner->reserve(sequence, sequence.size() + 8));
    std::vector<float> hidden = target_hidden(*runner, sequence, 64);
    for (int64_t layer = 0; layer < 2; ++layer) {
      const std::vector<int32_t> next(sequence.tokens.begin() + 1 + layer, sequence.tokens.end());
      const MtpPass pass = mtp_pass(*runner, sequence, hidden, next, layer, 64);
      EXPECT_LE(max_abs_difference(pass.logits, read_floats(expected, fmt::format("{}.mtp{}_logits", prompt, layer))),
                tolerance)
          << prompt << " layer " << layer;
      hidden = pass.hidden;
      rows += static_cast<int>(next.size());
    }
  }
  EXPECT_GT(rows, 0);
  RecordProperty("cases", 1);
  RecordProperty("draft_logits_rows", rows);
}

INSTANTIATE_TEST_SUITE_P(Backends, Nextn, ::testing::ValuesIn(model_backends()));

}  // namespace
}  // namespace calandra

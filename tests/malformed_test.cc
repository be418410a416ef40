// Broken checkpoints, one defect each: every one is refused, or warned about and run, with the words that tell the user
// where to look.
#include <gtest/gtest.h>

#include <algorithm>

#include "base/error.h"
#include "base/json.h"
#include "tests/model_under_test.h"

namespace calandra {
namespace {

using namespace calandra::testing;
namespace fs = std::filesystem;

std::string lower(std::string text) {
  std::transform(text.begin(), text.end(), text.begin(), [](unsigned char c) { return std::tolower(c); });
  return text;
}

struct Outcome {
  bool refused = false;
  std::string said;           // what was thrown, else what was logged; lower case
  std::vector<float> logits;  // of a few tokens, unless it was refused
};

// Loads a checkpoint with all of its parts and runs it.
Outcome outcome(const fs::path& folder, const ModelParts& parts = {.drafter = true, .vision = true}) {
  Outcome out;
  ::testing::internal::CaptureStderr();
  try {
    ModelUnderTest model(folder, {"reference", 1, ""}, DType::kF32, parts);
    out.said = lower(::testing::internal::GetCapturedStderr());
    Sequence sequence;
    sequence.tokens = {3, 1, 4, 1, 5};
    const auto runner = model.runner({.max_num_seqs = 1, .max_num_batched_tokens = 5, .max_model_len = 5});
    out.logits = teacher_forced(*runner, sequence, 5);
    EXPECT_EQ(static_cast<int64_t>(out.logits.size()), 5 * model.model().vocab_size()) << folder;
  } catch (const LoadError& error) {
    EXPECT_TRUE(out.logits.empty()) << folder;
    out.refused = true;
    out.said = lower(error.what());
    ::testing::internal::GetCapturedStderr();
  }
  return out;
}

TEST(Malformed, EveryDefectIsNamed) {
  const fs::path root = CALANDRA_SOURCE_DIR "/tests/oracle/qwen3_5/malformed";
  const json::value list = read_json_file(root / "malformed.json");
  const Outcome intact = outcome(root / "intact");
  EXPECT_FALSE(intact.refused) << intact.said;
  EXPECT_EQ(intact.said, "");
  int refused = 0, warned = 0;
  for (const json::value& c : list.as_array()) {
    const std::string name(c.at("case").as_string());
    const Outcome got = outcome(root / name);
    if (c.at("expect") == "warn") {
      EXPECT_FALSE(got.refused) << name << ": " << got.said;
      // The model is that of the intact one, but for a value that is no number.
      if (!name.ends_with("_weight")) {
        EXPECT_EQ(got.logits, intact.logits) << name;
      }
      ++warned;
    } else {
      EXPECT_TRUE(got.refused) << name << " was accepted";
      ++refused;
    }
    for (const json::value& word : c.at("words").as_array())
      EXPECT_NE(got.said.find(lower(std::string(word.as_string()))), std::string::npos)
          << name << " does not say " << word << ": " << got.said;
  }
  RecordProperty("refused", refused);
  RecordProperty("warned_and_run", warned);
}

TEST(Malformed, EveryBailingDefectIsNamed) {
  const fs::path root = CALANDRA_SOURCE_DIR "/../shared/oracle/bailing/malformed";
  if (!fs::exists(root)) GTEST_SKIP() << "skipped: the cases are only in the shared oracle";
  const json::value list = read_json_file(root / "malformed.json");
  int refused = 0, warned = 0;
  for (const json::value& c : list.at("cases").as_array()) {
    const std::string name(c.at("folder").as_string()), severity(c.at("severity").as_string());
    const Outcome got = outcome(root / name);
    // Values are checked and warned about; an unknown tensor does not load; the drafter was asked for.
    if (severity == "error_if_values_are_checked") {
      EXPECT_FALSE(got.refused) << name << ": " << got.said;
      ++warned;
    } else {
      EXPECT_TRUE(got.refused) << name << " was accepted";
      ++refused;
    }
    if (severity == "ok_without_speculation" || severity == "error_if_mtp_is_loaded") {
      const Outcome without = outcome(root / name, {});
      EXPECT_FALSE(without.refused) << name << ": " << without.said;
    }
    // FP8 with one scale per row comes later: refused by its format, before a defect could be seen.
    if (got.said.find("compressed-tensors") != std::string::npos) continue;
    for (const json::value& alternatives : c.at("must_contain").as_array()) {
      bool found = false;
      for (const json::value& word : alternatives.as_array())
        found = found || got.said.find(lower(std::string(word.as_string()))) != std::string::npos;
      EXPECT_TRUE(found) << name << " says none of " << to_json(alternatives) << ": " << got.said;
    }
  }
  const Outcome valid = outcome(root / "valid");
  EXPECT_FALSE(valid.refused) << valid.said;
  EXPECT_EQ(valid.said, "");
  RecordProperty("refused", refused);
  RecordProperty("warned_and_run", warned);
}

// Formats that come later are refused by name.
TEST(Malformed, FormatsThatComeLaterAreNamed) {
  struct {
    const char* family;
    const char* name;
    const char* word;
  } cases[] = {{"qwen3_5", "gptq", "gptq"},
               {"qwen3_5", "gptq_act_order", "gptq"},
               {"qwen3_5", "gptq_moe", "gptq"},
               {"qwen3_5", "awq", "awq"},
               {"qwen3_5", "ct_int4_g32", "compressed-tensors"},
               {"qwen3_5", "ct_int4_g128", "compressed-tensors"},
               {"qwen3_5", "ct_int8_channel", "compressed-tensors"},
               {"qwen3_5", "ct_fp8_channel", "compressed-tensors"},
               {"qwen3_5", "nvfp4", "modelopt"},
               {"bailing", "v25_int4_experts", "compressed-tensors"},
               {"bailing", "v25_fp8_channel", "compressed-tensors"}};
  int refused = 0;
  for (const auto& c : cases) {
    const fs::path folder = find_case(c.family, c.name);
    if (folder.empty()) continue;
    const Outcome got = outcome(folder);
    EXPECT_TRUE(got.refused) << c.name;
    EXPECT_NE(got.said.find(c.word), std::string::npos) << c.name << ": " << got.said;
    ++refused;
  }
  if (refused == 0) GTEST_SKIP() << "skipped: the cases are only in the shared oracle";
  RecordProperty("formats_refused", refused);
}

}  // namespace
}  // namespace calandra

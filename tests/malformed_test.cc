// Broken checkpoints, one defect each: every one is refused (or warned about) with the words that tell the user where
// to look.
#include <fmt/format.h>
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

// Defects of what this version refuses as a whole, before it could see them.
bool comes_later(const std::string& name) {
  return name.find("fp8") != std::string::npos || name.find("expert") != std::string::npos;
}

TEST(Malformed, EveryDefectIsNamed) {
  const fs::path root = CALANDRA_SOURCE_DIR "/tests/oracle/qwen3_5/malformed";
  const json::value list = read_json_file(root / "malformed.json");
  int refused = 0, warned = 0, later = 0;
  for (const json::value& c : list.as_array()) {
    const std::string name(c.at("case").as_string());
    ::testing::internal::CaptureStderr();
    std::string message;
    try {
      ModelUnderTest model(root / name, {"reference", 1, ""}, DType::kF32);
    } catch (const LoadError& error) {
      message = error.what();
    }
    const std::string printed = ::testing::internal::GetCapturedStderr();
    if (comes_later(name)) {
      EXPECT_NE(message, "") << name << " was accepted";
      ++later;
      continue;
    }
    const bool warning = c.at("expect") == "warn";
    if (warning) {
      ++warned;
    } else {
      EXPECT_NE(message, "") << name << " was accepted";
      ++refused;
    }
    for (const json::value& word : c.at("words").as_array())
      EXPECT_NE(lower(message + printed).find(lower(std::string(word.as_string()))), std::string::npos)
          << name << " does not say " << word << ": " << message << printed;
  }
  ModelUnderTest intact(root / "intact", {"reference", 1, ""}, DType::kF32);
  fmt::print("malformed: {} refused, {} warned about; {} refused as a whole\n", refused, warned, later);
}

}  // namespace
}  // namespace calandra

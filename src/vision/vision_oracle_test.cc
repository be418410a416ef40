// The recorded cases of the oracle: image and video preprocessing, prompt expansion and positions as Transformers 5.17
// computes them.
#include <fmt/format.h>
#include <gtest/gtest.h>

#include <cstdlib>
#include <filesystem>
#include <map>
#include <string>

#include "base/json.h"
#include "text/tokenizer.h"
#include "vision/placeholders.h"
#include "vision/video.h"
#include "weights/safetensors.h"

namespace calandra {
namespace {

namespace fs = std::filesystem;

const std::map<std::string, fs::path> kRoots{{"here", CALANDRA_SOURCE_DIR "/tests/oracle/qwen3_5"},
                                             {"shared", CALANDRA_SOURCE_DIR "/../shared/oracle/qwen3_5"}};

template <class T>
T unwrap(std::variant<T, RequestError> result) {
  if (const auto* error = std::get_if<RequestError>(&result)) throw std::runtime_error(error->message);
  return std::get<T>(std::move(result));
}

class OracleCase {
 public:
  explicit OracleCase(fs::path folder)
      : folder(std::move(folder)),
        facts(read_json_file(this->folder / "case.json").as_object()),
        image_config(read_image_processor_config(this->folder / "preprocessor_config.json")),
        video_config(read_video_processor_config(this->folder / "video_preprocessor_config.json")),
        file_(this->folder / "expected.safetensors") {}

  bool has(const std::string& name) const { return file_.find(name) != nullptr; }

  template <class T>
  std::vector<T> values(const std::string& name) const {
    const SafetensorsFile::Entry* entry = file_.find(name);
    if (!entry) throw std::runtime_error("no tensor " + name);
    std::vector<T> values(entry->bytes / sizeof(T));
    file_.read(*entry, 0, entry->bytes, values.data());
    return values;
  }

  std::vector<PatchGrid> grids(const std::string& name) const {
    std::vector<PatchGrid> grids;
    const auto sides = has(name) ? values<int64_t>(name) : std::vector<int64_t>();
    for (size_t i = 0; i + 2 < sides.size(); i += 3) grids.push_back({sides[i], sides[i + 1], sides[i + 2]});
    return grids;
  }

  Image image(const std::string& name) const { return unwrap(decode_image(read_text_file(folder / name))); }

  const fs::path folder;
  const json::object facts;
  const ImageProcessorConfig image_config;
  const VideoProcessorConfig video_config;

 private:
  const SafetensorsFile file_;
};

template <class T>
std::vector<T> list_of(const json::value& array) {
  return json::value_to<std::vector<T>>(array);
}

// ---- vision_preprocess

class PreprocessOracle : public testing::TestWithParam<std::string> {
 protected:
  void SetUp() override {
    const fs::path folder = kRoots.at(GetParam()) / "vision_preprocess";
    if (!fs::exists(folder)) GTEST_SKIP() << "skipped: vision_preprocess is only in the shared oracle";
    found_.emplace(folder);
  }
  std::optional<OracleCase> found_;
};

TEST_P(PreprocessOracle, Images) {
  const OracleCase& oracle = *found_;
  int compared = 0, pixels = 0, pixel_values = 0;
  for (const auto& [label, facts] : oracle.facts.at("images").as_object()) {
    SCOPED_TRACE(std::string(label));
    const std::string name(label);
    const Image image = oracle.image(std::string(facts.at("file").as_string()));
    EXPECT_EQ((std::vector{image.height, image.width}), list_of<int64_t>(facts.at("size")));
    const PatchConfig& config = oracle.image_config;
    const auto size = unwrap(smart_resize({image.height, image.width}, config.size_rule()));
    const Image resized = resize_bicubic(image, size);
    const Patches patches = patchify_image(resized, config);
    EXPECT_EQ(patches.grid, oracle.grids(name + "/grid").at(0));

    if (oracle.has(name + "/resized")) {
      const auto expected = oracle.values<uint8_t>(name + "/resized");  // [3, H, W]
      ASSERT_EQ(expected.size(), resized.rgb.size());
      const int64_t area = size.height * size.width;
      int64_t different = 0, worst = 0;
      for (int64_t i = 0; i < area * 3; ++i) {
        const int difference = std::abs(resized.rgb[i] - expected[i % 3 * area + i / 3]);
        different += difference != 0;
        worst = std::max<int64_t>(worst, difference);
      }
      // The oracle allows 2 levels; the arithmetic here is the recorder's own, so none may differ.
      EXPECT_EQ(different, 0) << "worst " << worst << " levels";
      fmt::print("{}: {} of {} values differ, worst by {}\n", name, different, area * 3, worst);
      ++compared;
      pixels += static_cast<int>(area);
    }
    if (oracle.has(name + "/pixel_values")) {
      const auto expected = oracle.values<float>(name + "/pixel_values");
      ASSERT_LE(expected.size(), patches.values.size());
      EXPECT_TRUE(std::equal(expected.begin(), expected.end(), patches.values.begin()));
      pixel_values += static_cast<int>(expected.size());
    }
  }
  EXPECT_GE(compared, 1);
  RecordProperty("images_resized", compared);
  RecordProperty("pixels", pixels);
  RecordProperty("pixel_values", pixel_values);
}

TEST_P(PreprocessOracle, ResizingTable) {
  const json::object& table = found_->facts.at("resizing").as_object();
  const int64_t factor = table.at("factor").as_int64();
  const auto rule = [&](std::string_view key) {
    const auto bounds = list_of<int64_t>(table.at(key));
    return SizeRule{factor, bounds.at(0), bounds.at(1)};
  };
  const auto check = [](const json::value& expected, const std::variant<ImageSize, RequestError>& found) {
    if (expected.is_object()) {
      EXPECT_TRUE(std::holds_alternative<RequestError>(found));
      return;
    }
    const auto sides = list_of<int64_t>(expected);
    ASSERT_TRUE(std::holds_alternative<ImageSize>(found)) << std::get<RequestError>(found).message;
    EXPECT_EQ(std::get<ImageSize>(found).height, sides.at(0));
    EXPECT_EQ(std::get<ImageSize>(found).width, sides.at(1));
  };
  int rows = 0;
  for (const json::value& row : table.at("rows").as_array()) {
    SCOPED_TRACE(to_json(row));
    const auto sides = list_of<int64_t>(row.at("size"));
    const ImageSize size{sides.at(0), sides.at(1)};
    check(row.at("image"), smart_resize(size, rule("image_bounds")));
    for (const int64_t frames : {4, 5, 64})
      check(row.at(fmt::format("video_{}_frames", frames)), smart_resize_video(size, frames, 2, rule("video_bounds")));
    ++rows;
  }
  EXPECT_EQ(rows, 17);
  RecordProperty("image_sizes", rows);
}

TEST_P(PreprocessOracle, FrameSampling) {
  const json::object& facts = found_->facts.at("frame_sampling").as_object();
  const VideoProcessorConfig& config = found_->video_config;
  EXPECT_EQ(config.fps, facts.at("target_fps").to_number<double>());
  EXPECT_EQ(config.min_frames, facts.at("min_frames").as_int64());
  EXPECT_EQ(config.max_frames, facts.at("max_frames").as_int64());
  int rows = 0;
  for (const json::value& row : facts.at("rows").as_array()) {
    SCOPED_TRACE(to_json(row));
    const double fps = row.at("fps").to_number<double>();
    const auto indices = sample_frames(row.at("frames").as_int64(), fps, config);
    EXPECT_EQ(std::ssize(indices), row.at("count").as_int64());
    const auto first = list_of<int64_t>(row.at("first_indices")), last = list_of<int64_t>(row.at("last_indices"));
    ASSERT_GE(indices.size(), std::max(first.size(), last.size()));
    EXPECT_TRUE(std::equal(first.begin(), first.end(), indices.begin()));
    EXPECT_TRUE(std::equal(last.begin(), last.end(), indices.end() - last.size()));
    std::vector<std::string> texts;
    for (const double seconds : patch_seconds(indices, fps, config.temporal_patch_size))
      texts.push_back(timestamp_text(seconds));
    const auto expected = list_of<std::string>(row.at("first_timestamps"));
    ASSERT_GE(texts.size(), expected.size());
    texts.resize(expected.size());
    EXPECT_EQ(texts, expected);
    ++rows;
  }
  EXPECT_EQ(rows, 11);
  RecordProperty("frame_samplings", rows);
}

std::string root_name(const testing::TestParamInfo<std::string>& root) { return root.param; }
INSTANTIATE_TEST_SUITE_P(Roots, PreprocessOracle, testing::Values("here", "shared"), root_name);

// ---- vision_dense, vision_moe

class PromptOracle : public testing::TestWithParam<std::string> {
 protected:
  void SetUp() override {
    const fs::path folder = kRoots.at("shared") / GetParam();
    if (!fs::exists(folder)) GTEST_SKIP() << "skipped: " << GetParam() << " is only in the shared oracle";
    found_.emplace(folder);
  }

  // The video of the case: its frames are files.
  PreparedVideo video() const {
    const json::object& facts = found_->facts.at("video").as_object();
    return unwrap(preprocess_frames(
        facts.at("frames").as_int64(),
        [&](int64_t i) { return found_->image(fmt::format("video/frame_{:02}.png", i)); },
        facts.at("fps").to_number<double>(), found_->video_config));
  }

  ExpansionRule rule() const {
    const json::value config = read_json_file(found_->folder / "config.json");
    const auto id = [&](std::string_view key) { return static_cast<int32_t>(config.at(key).as_int64()); };
    return {
        .tokens = {id("image_token_id"), id("video_token_id"), id("vision_start_token_id"), id("vision_end_token_id")},
        .merge_size = found_->image_config.merge_size};
  }

  std::optional<OracleCase> found_;
};

TEST_P(PromptOracle, Video) {
  const PreparedVideo found = video();
  const json::object& facts = found_->facts.at("video").as_object();
  EXPECT_EQ(found.frame_indices, list_of<int64_t>(facts.at("sampled_frames")));
  EXPECT_EQ(found.seconds, list_of<double>(facts.at("timestamps")));
  EXPECT_EQ(found.patches.grid, found_->grids("video/video_grid_thw").at(0));
  EXPECT_EQ(found.patches.values, found_->values<float>("video/pixel_values_videos"));
  RecordProperty("pixel_values", static_cast<int>(found.patches.values.size()));
}

TEST_P(PromptOracle, Prompts) {
  const Tokenizer tokenizer = Tokenizer::load(found_->folder);
  const EncodeText encode = [&](std::string_view text) { return tokenizer.encode(text, {.parse_special = false}); };
  int prompts = 0, pixel_values = 0;
  for (const auto& [label, facts] : found_->facts.at("prompts").as_object()) {
    SCOPED_TRACE(std::string(label));
    const std::string name(label);
    std::vector<PatchGrid> grids;
    std::vector<float> pixels;
    for (const json::value& file : facts.at("images").as_array()) {
      const Patches patches =
          unwrap(preprocess_image(found_->image(std::string(file.as_string())), found_->image_config));
      grids.push_back(patches.grid);
      pixels.insert(pixels.end(), patches.values.begin(), patches.values.end());
    }
    EXPECT_EQ(grids, found_->grids(name + "/image_grid_thw"));
    if (found_->has(name + "/pixel_values")) {
      EXPECT_EQ(pixels, found_->values<float>(name + "/pixel_values"));
      ++pixel_values;
    }
    std::vector<VideoPlace> videos;
    if (!facts.at("video").is_null()) {
      const PreparedVideo prepared = video();
      videos.push_back({prepared.patches.grid, prepared.seconds});
    }

    ExpansionRule expansion = rule();
    expansion.keep_outer_pair = name != "video_outer_pair_replaced";
    const ExpandedPrompt prompt = unwrap(expand_placeholders(
        tokenizer.encode(std::string_view(facts.at("text").as_string())), grids, videos, expansion, encode));
    const auto tokens = found_->values<int64_t>(name + "/tokens");
    EXPECT_EQ(std::vector<int64_t>(prompt.tokens.begin(), prompt.tokens.end()), tokens);
    std::vector<int64_t> kinds;
    for (const TokenKind kind : prompt.kinds) kinds.push_back(static_cast<int64_t>(kind));
    EXPECT_EQ(kinds, found_->values<int64_t>(name + "/token_kinds"));
    std::vector<int64_t> positions(prompt.positions.begin(), prompt.positions.end());
    int64_t delta = 0;
    if (found_->has(name + "/position_ids")) {
      EXPECT_EQ(positions, found_->values<int64_t>(name + "/position_ids"));
      delta = found_->values<int64_t>(name + "/position_delta").at(0);
    } else {  // text alone
      for (size_t i = 0; i < positions.size(); ++i) EXPECT_EQ(positions[i], static_cast<int64_t>(i % tokens.size()));
    }
    EXPECT_EQ(prompt.position_delta, delta);
    ++prompts;
  }
  EXPECT_EQ(prompts, GetParam() == "vision_dense" ? 6 : 4);
  RecordProperty("prompts", prompts);
  EXPECT_EQ(pixel_values, 1);
}

std::string case_name(const testing::TestParamInfo<std::string>& info) { return info.param; }
INSTANTIATE_TEST_SUITE_P(Cases, PromptOracle, testing::Values("vision_dense", "vision_moe"), case_name);

}  // namespace
}  // namespace calandra

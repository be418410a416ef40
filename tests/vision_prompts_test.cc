// Prompts with images and videos through tower and text model: positions and logits of the oracle, and the demo model
// describing its pictures.
#include <fmt/format.h>
#include <gtest/gtest.h>

#include "base/json.h"
#include "engine/engine_core.h"
#include "engine/vision_runner.h"
#include "tests/oracle_tools.h"
#include "vision/placeholders.h"
#include "vision/video.h"

namespace calandra {
namespace {

using namespace calandra::testing;
namespace fs = std::filesystem;

template <class T>
T unwrap(std::variant<T, RequestError> result) {
  if (const auto* error = std::get_if<RequestError>(&result)) throw std::runtime_error(error->message);
  return std::get<T>(std::move(result));
}

ExpansionRule rule_of(const ModelUnderTest& model) {
  const json::object& config = model.config().config;
  const auto id = [&](const char* key) { return static_cast<int32_t>(config.at(key).as_int64()); };
  ExpansionRule rule;
  rule.tokens = {id("image_token_id"), id("video_token_id"), id("vision_start_token_id"), id("vision_end_token_id")};
  rule.merge_size = model.model().vision()->spatial_merge_size();
  return rule;
}

// Puts embeddings and positions of an expanded prompt into something with images, positions and position_delta.
template <class Target>
void place(const ExpandedPrompt& prompt, const std::vector<ImageEmbeds>& images, const std::vector<ImageEmbeds>& videos,
           Target& target) {
  const size_t T = prompt.tokens.size();
  for (size_t i = 0; i < T; ++i)
    target.positions.push_back({prompt.positions[i], prompt.positions[T + i], prompt.positions[2 * T + i]});
  target.position_delta = static_cast<int32_t>(prompt.position_delta);
  for (size_t i = 0; i < images.size(); ++i) target.images.push_back({prompt.image_rows[i].begin, images[i].rows});
  for (size_t i = 0; i < videos.size(); ++i) {
    int64_t row = 0;
    for (const RowRange& range : prompt.video_rows[i]) {
      target.images.push_back({range.begin, videos[i].rows.slice(0, row, row + range.end - range.begin)});
      row += range.end - range.begin;
    }
  }
}

class VisionPrompts : public ::testing::TestWithParam<std::tuple<const char*, std::string>> {};

TEST_P(VisionPrompts, PositionsAndLogits) {
  const auto [name, backend] = GetParam();
  const fs::path folder = find_case("qwen3_5", name);
  if (folder.empty()) GTEST_SKIP() << "skipped: " << name << " is only in the shared oracle";
  const json::value meta = read_json_file(folder / "case.json");
  const double tolerance = meta.at("suggested_tolerance").at("logits_float32_max_abs").as_double();
  const SafetensorsFile expected(folder / "expected.safetensors");
  const ImageProcessorConfig image_config = read_image_processor_config(folder / "preprocessor_config.json");
  const VideoProcessorConfig video_config = read_video_processor_config(folder / "video_preprocessor_config.json");
  ModelUnderTest model(folder, {backend, 2, ""}, DType::kF32, {.vision = true});
  ASSERT_NE(model.model().vision(), nullptr);
  const auto read_image = [&](const std::string& file) { return unwrap(decode_image(read_text_file(folder / file))); };
  const auto encode = [&](const Patches& patches) {
    return encode_patches(*model.model().vision(), model.backend(), patches.values, {&patches.grid, 1});
  };

  int prompts = 0, rows = 0, positions = 0;
  for (const auto& [label, facts] : meta.at("prompts").as_object()) {
    const std::string prompt(label);
    SCOPED_TRACE(prompt);
    std::vector<PatchGrid> grids;
    std::vector<ImageEmbeds> images, videos;
    for (const json::value& file : facts.at("images").as_array()) {
      const Patches patches = unwrap(preprocess_image(read_image(std::string(file.as_string())), image_config));
      grids.push_back(patches.grid);
      images.push_back(encode(patches));
    }
    std::vector<VideoPlace> places;
    if (!facts.at("video").is_null()) {
      const PreparedVideo video = unwrap(preprocess_frames(
          meta.at("video").at("frames").as_int64(),
          [&](int64_t i) { return read_image(fmt::format("video/frame_{:02}.png", i)); },
          meta.at("video").at("fps").to_number<double>(), video_config));
      places.push_back({video.patches.grid, video.seconds});
      videos.push_back(encode(video.patches));
    }
    const std::vector<int32_t> tokens = read_ids(expected, prompt + "/tokens");
    const ExpandedPrompt located = unwrap(locate_placeholders(tokens, grids, places, rule_of(model)));
    EXPECT_EQ(located.tokens, tokens);
    if (expected.find(prompt + "/position_ids") != nullptr) {
      EXPECT_EQ(located.positions, read_ids(expected, prompt + "/position_ids"));
      positions += static_cast<int>(located.positions.size());
      EXPECT_EQ(located.position_delta, read_ids(expected, prompt + "/position_delta").at(0));
    }
    for (const int64_t chunk : {int64_t{512}, int64_t{5}}) {  // an image cut by chunks gives the same
      Sequence sequence;
      sequence.tokens = tokens;
      place(located, images, videos, sequence);
      const auto runner =
          model.runner({.max_num_seqs = 1, .max_num_batched_tokens = chunk, .max_model_len = sequence.size()});
      const std::vector<float> logits = teacher_forced(*runner, sequence, chunk);
      EXPECT_LE(max_abs_difference(logits, read_floats(expected, prompt + "/logits")), tolerance) << chunk;
      rows += static_cast<int>(tokens.size());
    }
    ++prompts;
  }
  EXPECT_GT(prompts, 0);
  EXPECT_GT(positions, 0);
  RecordProperty("cases", 1);
  RecordProperty("prompts", prompts);
  RecordProperty("rotary_positions", positions);
  RecordProperty("logits_rows", rows);
}

INSTANTIATE_TEST_SUITE_P(Cases, VisionPrompts,
                         ::testing::Combine(::testing::Values("vision_dense", "vision_moe"),
                                            ::testing::ValuesIn(model_backends())),
                         [](const auto& info) {
                           return std::string(std::get<0>(info.param)) + "_" + std::get<1>(info.param);
                         });

// The pictures of the demo model, decoded, resized and described as recorded, token for token.
TEST(DemoVision, DescribesItsPictures) {
  const fs::path folder = CALANDRA_SOURCE_DIR "/demo/demo-qwen3_5";
  const Tokenizer tokenizer = Tokenizer::load(folder);
  const ImageProcessorConfig image_config = read_image_processor_config(folder / "preprocessor_config.json");
  ModelUnderTest model(folder, {"cpu", 2, ""}, DType::kF32, {.vision = true});
  const auto runner = model.runner({.max_num_seqs = 4, .max_num_batched_tokens = 96, .max_model_len = 512});
  EngineCore engine(*runner, &tokenizer, {});
  const json::value file = read_json_file(folder / "images/expected.json");
  int described = 0, tokens = 0;
  for (const json::value& c : file.at("cases").as_array()) {
    const Image image = unwrap(decode_image(read_text_file(folder / "images" / std::string(c.at("file").as_string()))));
    const Patches patches = unwrap(preprocess_image(image, image_config));
    std::vector<ImageEmbeds> images;
    images.push_back(encode_patches(*model.model().vision(), model.backend(), patches.values, {&patches.grid, 1}));
    const std::vector<int32_t> ids = tokenizer.encode(std::string_view(c.at("prompt").as_string()));
    const ExpandedPrompt prompt = unwrap(expand_placeholders(ids, {&patches.grid, 1}, {}, rule_of(model), {}));
    Request request;
    for (const json::value& id : c.at("prompt_ids").as_array())
      request.prompt_token_ids.push_back(static_cast<int32_t>(id.as_int64()));
    EXPECT_EQ(prompt.tokens, request.prompt_token_ids);
    place(prompt, images, {}, request);
    std::vector<int32_t> want;
    for (const json::value& id : c.at("output_ids").as_array()) want.push_back(static_cast<int32_t>(id.as_int64()));
    request.params.temperature = 0;
    request.params.ignore_eos = true;
    request.params.max_tokens = static_cast<int64_t>(want.size());
    EXPECT_EQ(engine.run({request})[0][0].token_ids, want) << c.at("file").as_string();
    tokens += static_cast<int>(want.size());
    ++described;
  }
  EXPECT_GT(described, 0);
  RecordProperty("pictures_described", described);
  RecordProperty("greedy_tokens", tokens);
}

}  // namespace
}  // namespace calandra

#include "vision/processor_config.h"

#include <gtest/gtest.h>

#include <string>

#include "base/error.h"

namespace calandra {
namespace {

constexpr std::string_view kRelease = R"({"size": {"shortest_edge": 65536, "longest_edge": 16777216},
  "image_mean": [0.5, 0.5, 0.5], "image_std": [0.5, 0.5, 0.5], "merge_size": 2, "patch_size": 16,
  "temporal_patch_size": 2, "processor_class": "Qwen3VLProcessor"})";

// The release's text with some keys set ("null": as if absent).
json::value changed(std::string_view keys) {
  json::value text = parse_json(kRelease, "release");
  const json::value changes = parse_json(keys, "change");
  for (const auto& [key, value] : changes.as_object()) text.as_object()[key] = value;
  return text;
}

std::string image_error(std::string_view keys) {
  try {
    parse_image_processor_config(changed(keys), "p.json");
    return "";
  } catch (const LoadError& error) {
    return error.what();
  }
}

std::string video_error(std::string_view keys) {
  try {
    parse_video_processor_config(changed(keys), "v.json");
    return "";
  } catch (const LoadError& error) {
    return error.what();
  }
}

TEST(ProcessorConfig, Release) {
  const ImageProcessorConfig image = parse_image_processor_config(changed("{}"), "p.json");
  EXPECT_EQ(image.min_pixels, 65536);
  EXPECT_EQ(image.max_pixels, 16777216);
  EXPECT_EQ(image.size_rule().factor, 32);
  EXPECT_EQ(image.patch_values(), 1536);
  EXPECT_EQ(image.rescale_factor, 1.0 / 255);
  const VideoProcessorConfig video = parse_video_processor_config(changed("{}"), "v.json");
  EXPECT_TRUE(video.do_sample_frames);
  EXPECT_EQ(video.fps, 2);
  EXPECT_EQ(video.min_frames, 4);
  EXPECT_EQ(video.max_frames, 768);
  EXPECT_FALSE(video.num_frames);
  EXPECT_FALSE(video.cap_pixels_per_frame);
}

TEST(ProcessorConfig, EveryFieldIsRead) {
  const ImageProcessorConfig image = parse_image_processor_config(
      changed(R"({"image_mean": [0.1, 0.2, 0.3], "image_std": 0.25, "rescale_factor": 0.5, "patch_size": 14,
                  "temporal_patch_size": 1, "merge_size": 3, "min_pixels": 3000, "max_pixels": 5000, "resample": 3,
                  "do_resize": true, "do_rescale": true, "do_normalize": true, "do_convert_rgb": true,
                  "do_center_crop": false, "do_pad": null})"),
      "p.json");
  EXPECT_EQ(image.image_mean, (std::array{0.1, 0.2, 0.3}));
  EXPECT_EQ(image.image_std, (std::array{0.25, 0.25, 0.25}));
  EXPECT_EQ(image.rescale_factor, 0.5);
  EXPECT_EQ(image.patch_values(), 3 * 14 * 14);
  EXPECT_EQ(image.size_rule().factor, 42);
  EXPECT_EQ(image.min_pixels, 3000);  // the older keys win
  EXPECT_EQ(image.max_pixels, 5000);
  const VideoProcessorConfig video =
      parse_video_processor_config(changed(R"({"fps": 1.5, "min_frames": 2, "max_frames": 10, "do_sample_frames": false,
                  "cap_pixels_per_frame": true})"),
                                   "v.json");
  EXPECT_EQ(video.fps, 1.5);
  EXPECT_EQ(video.min_frames, 2);
  EXPECT_EQ(video.max_frames, 10);
  EXPECT_FALSE(video.do_sample_frames);
  EXPECT_TRUE(video.cap_pixels_per_frame);
  EXPECT_EQ(parse_video_processor_config(changed(R"({"num_frames": 9})"), "v.json").num_frames, 9);
}

TEST(ProcessorConfig, ErrorsNameFileAndKey) {
  EXPECT_EQ(image_error(R"({"patch_size": null})"),
            "p.json: patch_size is missing; images cannot be prepared without it");
  EXPECT_EQ(image_error(R"({"patch_size": "16"})"), "p.json: patch_size must be an integer, found \"16\"");
  EXPECT_EQ(image_error(R"({"merge_size": 0})"), "p.json: merge_size must lie in [1, 16], found 0");
  EXPECT_EQ(image_error(R"({"size": {"shortest_edge": 4}})"),
            "p.json size: longest_edge is missing; images cannot be prepared without it");
  EXPECT_EQ(image_error(R"({"size": 7})"), "p.json size is not a JSON object; download the file again");
  EXPECT_EQ(image_error(R"({"size": {"shortest_edge": 5000, "longest_edge": 4000}})"),
            "p.json: size has a smallest area of 5000 above the largest of 4000 pixels");
  EXPECT_EQ(image_error(R"({"size": {"shortest_edge": 1, "longest_edge": 1023}})"),
            "p.json: size allows 1023 pixels; one token needs 32 x 32");
  EXPECT_EQ(image_error(R"({"size": {"shortest_edge": 1, "longest_edge": 1e30}})"),
            "p.json size: longest_edge must be an integer, found 1e+30");
  EXPECT_EQ(image_error(R"({"image_mean": [1, 2]})"), "p.json: image_mean must be a list of 3 numbers, found [1,2]");
  EXPECT_EQ(image_error(R"({"image_std": [0.5, 0, 0.5]})"),
            "p.json: image_std must lie in [1e-09, 1000000000], found 0");
  EXPECT_EQ(image_error(R"({"do_resize": false})"), "p.json: do_resize is false; only true is supported");
  EXPECT_EQ(image_error(R"({"do_center_crop": true})"), "p.json: do_center_crop is true; only false is supported");
  EXPECT_EQ(image_error(R"({"do_rescale": 1})"), "p.json: do_rescale must be true or false, found 1");
  EXPECT_EQ(image_error(R"({"resample": 2})"), "p.json: resample must be 3 (bicubic); other filters are not supported");
  EXPECT_EQ(video_error(R"({"fps": 2, "num_frames": 8})"),
            "v.json: num_frames cannot stand beside fps: they exclude each other");
  EXPECT_EQ(video_error(R"({"min_frames": 9, "max_frames": 8})"), "v.json: min_frames is 9, above max_frames 8");
  EXPECT_EQ(video_error(R"({"fps": 0})"), "v.json: fps must lie in [0.001, 1000], found 0");
  try {
    parse_image_processor_config(json::array{1}, "p.json");
    FAIL();
  } catch (const LoadError& error) {
    EXPECT_EQ(std::string(error.what()), "p.json is not a JSON object; download the file again");
  }
  EXPECT_THROW(read_image_processor_config("/nowhere/preprocessor_config.json"), LoadError);
}

}  // namespace
}  // namespace calandra

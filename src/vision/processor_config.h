// preprocessor_config.json and video_preprocessor_config.json of a release: how pixels become patches.
// Keys that would change the pixels in a way that is not computed here are refused; others are ignored.
#pragma once

#include <array>
#include <cstdint>
#include <filesystem>
#include <optional>

#include "base/json.h"
#include "vision/resize.h"

namespace calandra {

// Largest value accepted for size.longest_edge, pixels: as patches these are 3 GiB of f32.
inline constexpr int64_t kMaxProcessorPixels = int64_t{1} << 27;

// What both files say. The three sizes have no default: those of Transformers' classes are not the releases'.
struct PatchConfig {
  int64_t patch_size = 16;          // pixels
  int64_t temporal_patch_size = 2;  // frames
  int64_t merge_size = 2;           // patches per token, along each side
  int64_t min_pixels = 65'536;      // size.shortest_edge: an area, over all frames
  int64_t max_pixels = 16'777'216;  // size.longest_edge
  double rescale_factor = 1.0 / 255;
  std::array<double, 3> image_mean{0.5, 0.5, 0.5};
  std::array<double, 3> image_std{0.5, 0.5, 0.5};

  SizeRule size_rule() const { return {patch_size * merge_size, min_pixels, max_pixels}; }
  int64_t patch_values() const { return 3 * temporal_patch_size * patch_size * patch_size; }
};

struct ImageProcessorConfig : PatchConfig {};

struct VideoProcessorConfig : PatchConfig {
  bool do_sample_frames = true;  // false: every frame is taken
  double fps = 2;                // frames taken per second, where num_frames does not say how many
  int64_t min_frames = 4;        // bounds of that number
  int64_t max_frames = 768;
  std::optional<int64_t> num_frames;  // frames taken of every video
  bool cap_pixels_per_frame = false;  // bound the area of one frame also, to 768 tokens' worth
};

// `where` names the text in errors. Throws LoadError naming file and key.
ImageProcessorConfig parse_image_processor_config(const json::value& text, const std::string& where);
VideoProcessorConfig parse_video_processor_config(const json::value& text, const std::string& where);

ImageProcessorConfig read_image_processor_config(const std::filesystem::path& file);
VideoProcessorConfig read_video_processor_config(const std::filesystem::path& file);

}  // namespace calandra

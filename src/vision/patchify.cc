#include "vision/patchify.h"

#include <algorithm>
#include <array>
#include <utility>

#include "base/check.h"

namespace calandra {
namespace {

// The normalised value of each 8-bit level, per channel.
std::array<std::array<float, 256>, 3> level_values(const PatchConfig& config) {
  const auto inverse = static_cast<float>(1.0 / config.rescale_factor);
  std::array<std::array<float, 256>, 3> values;
  for (int c = 0; c < 3; ++c) {
    const float mean = static_cast<float>(config.image_mean[c]) * inverse;
    const float std = static_cast<float>(config.image_std[c]) * inverse;
    for (int level = 0; level < 256; ++level) values[c][level] = (static_cast<float>(level) - mean) / std;
  }
  return values;
}

// `frame_of(i)` is frame i of the padded sequence of `grid.t * Tp`.
template <class FrameOf>
Patches patchify(PatchGrid grid, const PatchConfig& config, FrameOf frame_of) {
  const int64_t size = config.patch_size, merge = config.merge_size;
  const auto values = level_values(config);
  Patches out{grid, std::vector<float>(grid.patches() * config.patch_values())};
  float* to = out.values.data();
  const auto write_patch = [&](int64_t t, int64_t row, int64_t column) {
    for (int c = 0; c < 3; ++c) {
      for (int64_t f = 0; f < config.temporal_patch_size; ++f) {
        const Image& frame = frame_of(t * config.temporal_patch_size + f);
        for (int64_t y = 0; y < size; ++y) {
          const uint8_t* from = frame.rgb.data() + ((row * size + y) * frame.width + column * size) * 3 + c;
          for (int64_t x = 0; x < size; ++x, from += 3) *to++ = values[c][*from];
        }
      }
    }
  };
  for (int64_t t = 0; t < grid.t; ++t) {
    for (int64_t block_row = 0; block_row < grid.h; block_row += merge) {
      for (int64_t block_column = 0; block_column < grid.w; block_column += merge) {
        for (int64_t patch = 0; patch < merge * merge; ++patch)
          write_patch(t, block_row + patch / merge, block_column + patch % merge);
      }
    }
  }
  return out;
}

PatchGrid grid_of(const Image& image, int64_t frames, const PatchConfig& config) {
  const int64_t factor = config.patch_size * config.merge_size;
  CHECK_EQ(image.height % factor, 0);
  CHECK_EQ(image.width % factor, 0);
  const int64_t t = (frames + config.temporal_patch_size - 1) / config.temporal_patch_size;
  return {t, image.height / config.patch_size, image.width / config.patch_size};
}

}  // namespace

Patches patchify_image(const Image& image, const PatchConfig& config) {
  return patchify(grid_of(image, 1, config), config, [&](int64_t) -> const Image& { return image; });
}

Patches patchify_frames(std::span<const Image> frames, const PatchConfig& config) {
  CHECK(!frames.empty());
  for (const Image& frame : frames) {
    CHECK_EQ(frame.height, frames[0].height);
    CHECK_EQ(frame.width, frames[0].width);
  }
  return patchify(grid_of(frames[0], std::ssize(frames), config), config,
                  [&](int64_t i) -> const Image& { return frames[std::min<int64_t>(i, std::ssize(frames) - 1)]; });
}

std::variant<Patches, RequestError> preprocess_image(Image image, const ImageProcessorConfig& config) {
  auto size = smart_resize({image.height, image.width}, config.size_rule());
  if (auto* error = std::get_if<RequestError>(&size)) return std::move(*error);
  return patchify_image(resize_bicubic(std::move(image), std::get<ImageSize>(size)), config);
}

}  // namespace calandra

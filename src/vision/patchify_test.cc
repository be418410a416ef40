#include "vision/patchify.h"

#include <gtest/gtest.h>

namespace calandra {
namespace {

// An image whose pixels say where they are.
Image numbered(int64_t height, int64_t width, int offset) {
  Image image{height, width, {}};
  for (int64_t y = 0; y < height; ++y) {
    for (int64_t x = 0; x < width; ++x) {
      for (int c = 0; c < 3; ++c) image.rgb.push_back(static_cast<uint8_t>(y * 16 + x + c * 80 + offset));
    }
  }
  return image;
}

// Patches of 2 x 2 pixels, merged 2 x 2; the normalised value is the level itself.
PatchConfig small_config() {
  PatchConfig config;
  config.patch_size = 2;
  config.rescale_factor = 1;
  config.image_mean = {0, 0, 0};
  config.image_std = {1, 1, 1};
  return config;
}

TEST(Patchify, OrderOfPatchesAndValues) {
  const PatchConfig config = small_config();
  const std::vector<Image> frames{numbered(4, 8, 0), numbered(4, 8, 1), numbered(4, 8, 2)};
  const Patches patches = patchify_frames(frames, config);
  EXPECT_EQ(patches.grid, (PatchGrid{2, 2, 4}));  // three frames fill two temporal patches
  ASSERT_EQ(std::ssize(patches.values), 16 * config.patch_values());
  // Patch (row, column) in the order of blocks, then inside the block.
  const int rows[] = {0, 0, 1, 1, 0, 0, 1, 1}, columns[] = {0, 1, 0, 1, 2, 3, 2, 3};
  const float* value = patches.values.data();
  for (int t = 0; t < 2; ++t) {
    for (int patch = 0; patch < 8; ++patch) {
      for (int c = 0; c < 3; ++c) {
        for (int f = 0; f < 2; ++f) {
          const int frame = std::min(t * 2 + f, 2);  // the last one repeated
          for (int y = 0; y < 2; ++y) {
            for (int x = 0; x < 2; ++x) {
              ASSERT_EQ(*value++, (rows[patch] * 2 + y) * 16 + columns[patch] * 2 + x + c * 80 + frame)
                  << "t " << t << " patch " << patch << " channel " << c << " frame " << f;
            }
          }
        }
      }
    }
  }
}

TEST(Patchify, StillImageIsTwoEqualFrames) {
  const PatchConfig config = small_config();
  const std::vector<Image> twice(2, numbered(8, 4, 3));
  EXPECT_EQ(patchify_image(twice[0], config).values, patchify_frames(twice, config).values);
  EXPECT_EQ(patchify_image(twice[0], config).grid, (PatchGrid{1, 4, 2}));
}

TEST(Patchify, NormalisesEachChannelInFloat) {
  PatchConfig config = small_config();
  config.rescale_factor = 1.0 / 255;
  config.image_mean = {0.48145466, 0.4578275, 0.40821073};
  config.image_std = {0.26862954, 0.26130258, 0.27577711};
  const Image image = numbered(4, 4, 0);
  const Patches patches = patchify_image(image, config);
  for (int c = 0; c < 3; ++c) {
    const float mean = static_cast<float>(config.image_mean[c]) * 255.0f,
                std = static_cast<float>(config.image_std[c]) * 255.0f;
    EXPECT_EQ(patches.values[c * 8], (static_cast<float>(image.rgb[c]) - mean) / std);
  }
  // Half and half, as the releases have it: from -1 to 1.
  config.image_mean = config.image_std = {0.5, 0.5, 0.5};
  EXPECT_EQ(patchify_image({4, 4, std::vector<uint8_t>(48, 0)}, config).values[0], -1.0f);
  EXPECT_EQ(patchify_image({4, 4, std::vector<uint8_t>(48, 255)}, config).values[0], 1.0f);
}

TEST(Patchify, WholeWay) {
  const auto patches = preprocess_image(numbered(50, 70, 0), ImageProcessorConfig{});
  ASSERT_TRUE(std::holds_alternative<Patches>(patches));
  EXPECT_EQ(std::get<Patches>(patches).grid, (PatchGrid{1, 14, 20}));  // 224 x 320
  EXPECT_TRUE(std::holds_alternative<RequestError>(preprocess_image(numbered(1, 201, 0), ImageProcessorConfig{})));
}

TEST(PatchifyDeathTest, SidesMustBeMultiples) {
  EXPECT_DEATH(patchify_image(numbered(6, 8, 0), small_config()), "image.height % factor");
}

}  // namespace
}  // namespace calandra

#include "vision/resize.h"

#include <gtest/gtest.h>

#include <cmath>
#include <cstdlib>
#include <random>

namespace calandra {
namespace {

Image noise(int64_t height, int64_t width, int seed) {
  std::mt19937 random(seed);
  Image image{height, width, std::vector<uint8_t>(height * width * 3)};
  for (uint8_t& level : image.rgb) level = static_cast<uint8_t>(random());
  return image;
}

double keys(double x) {
  x = std::abs(x);
  if (x < 1) return 1.5 * x * x * x - 2.5 * x * x + 1;
  if (x < 2) return -0.5 * x * x * x + 2.5 * x * x - 4 * x + 2;
  return 0;
}

// One level of the horizontal pass in exact arithmetic.
double exact(const Image& image, int64_t out_width, int64_t y, int64_t x, int c) {
  const double scale = static_cast<double>(image.width) / out_width, stretch = std::max(scale, 1.0);
  const double center = (x + 0.5) * scale;
  double sum = 0, total = 0;
  for (int64_t i = 0; i < image.width; ++i) {
    const double w = keys((i + 0.5 - center) / stretch);
    sum += w * image.rgb[(y * image.width + i) * 3 + c];
    total += w;
  }
  return std::clamp(sum / total, 0.0, 255.0);
}

TEST(Resize, OnePassIsTheRoundedExactValue) {
  for (const int64_t width : {5, 16, 31, 48, 100}) {
    const Image image = noise(3, 32, 1);
    const Image resized = resize_bicubic(image, {3, width});
    ASSERT_EQ(resized.width, width);
    ASSERT_EQ(resized.height, 3);
    for (int64_t y = 0; y < 3; ++y) {
      for (int64_t x = 0; x < width; ++x) {
        for (int c = 0; c < 3; ++c) {
          // Half a level of rounding, and 2^-14 of each of up to 32 levels of 255 for the weights.
          EXPECT_NEAR(resized.rgb[(y * width + x) * 3 + c], exact(image, width, y, x, c), 0.5 + 32 * 255.0 / (1 << 15));
        }
      }
    }
  }
}

TEST(Resize, VerticalIsHorizontalTurned) {
  const Image image = noise(23, 23, 2);
  const Image rows = resize_bicubic(image, {23, 11});
  const Image columns = resize_bicubic(apply_orientation(image, 5), {11, 23});
  EXPECT_EQ(apply_orientation(rows, 5).rgb, columns.rgb);
}

TEST(Resize, SameSizeAndEvenGreyStay) {
  const Image image = noise(9, 14, 3);
  EXPECT_EQ(resize_bicubic(image, {9, 14}).rgb, image.rgb);
  const Image grey{40, 70, std::vector<uint8_t>(40 * 70 * 3, 131)};
  for (const ImageSize size : {ImageSize{32, 32}, ImageSize{1, 1}, ImageSize{200, 90}, ImageSize{40, 7}}) {
    const Image resized = resize_bicubic(grey, size);
    EXPECT_EQ(resized.rgb, std::vector<uint8_t>(size.height * size.width * 3, 131));
  }
}

TEST(Resize, ThinImages) {
  EXPECT_EQ(resize_bicubic(noise(1, 65'535, 4), {32, 320}).rgb.size(), 32u * 320 * 3);
  EXPECT_EQ(resize_bicubic(noise(65'535, 1, 4), {320, 32}).rgb.size(), 32u * 320 * 3);
  EXPECT_EQ(resize_bicubic(noise(1, 1, 4), {64, 64}).rgb.size(), 64u * 64 * 3);
}

ImageSize size_of(const std::variant<ImageSize, RequestError>& result) {
  const auto* size = std::get_if<ImageSize>(&result);
  return size ? *size : ImageSize{};
}

TEST(SmartResize, RoundsHalfToEven) {
  const SizeRule rule{.factor = 32, .min_pixels = 1, .max_pixels = 1 << 24};
  EXPECT_EQ(size_of(smart_resize({80, 112}, rule)), (ImageSize{64, 128}));  // 2.5 and 3.5 multiples
  EXPECT_EQ(size_of(smart_resize({79, 81}, rule)), (ImageSize{64, 96}));
  // 65 frames count as 64 where the rounded area is compared, as 65 where it is scaled.
  const SizeRule tight{.factor = 32, .min_pixels = 1, .max_pixels = 64 * 128 * 128};
  EXPECT_EQ(size_of(smart_resize_video({128, 128}, 65, 2, tight)), (ImageSize{128, 128}));
  EXPECT_EQ(size_of(smart_resize_video({128, 128}, 67, 2, tight)), (ImageSize{96, 96}));
}

TEST(SmartResize, AlwaysWithinBounds) {
  std::mt19937 random(5);
  const SizeRule rule{};
  for (int round = 0; round < 2000; ++round) {
    const ImageSize image{1 + static_cast<int64_t>(random() % 9000), 1 + static_cast<int64_t>(random() % 9000)};
    const auto result = smart_resize(image, rule);
    const double ratio = static_cast<double>(std::max(image.height, image.width)) / std::min(image.height, image.width);
    ASSERT_EQ(std::holds_alternative<RequestError>(result), ratio > kMaxAspectRatio);
    if (ratio > kMaxAspectRatio) continue;
    const ImageSize size = size_of(result);
    EXPECT_EQ(size.height % rule.factor, 0);
    EXPECT_EQ(size.width % rule.factor, 0);
    EXPECT_GE(size.height, rule.factor);
    EXPECT_GE(size.width, rule.factor);
    EXPECT_GE(size.height * size.width, rule.min_pixels);
    EXPECT_LE(size.height * size.width, rule.max_pixels);
  }
}

TEST(SmartResize, ErrorsNameTheNumbers) {
  const auto thin = smart_resize({1000, 4}, {});
  EXPECT_EQ(std::get<RequestError>(thin).message,
            "the image is 250 times as long as wide; at most 200 times is accepted");
  const auto single = smart_resize_video({64, 64}, 1, 2, {});
  EXPECT_EQ(std::get<RequestError>(single).message, "the video has 1 frames; at least 2 are needed");
  EXPECT_EQ(std::get<RequestError>(single).code, "invalid_video");
}

}  // namespace
}  // namespace calandra

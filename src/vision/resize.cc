#include "vision/resize.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <optional>
#include <utility>

#include "base/check.h"

namespace calandra {
namespace {

// Python's round(): half to even, the default rounding mode.
double round_half_even(double x) { return std::nearbyint(x); }

int64_t nearest_multiple(int64_t side, int64_t factor) {
  return static_cast<int64_t>(round_half_even(static_cast<double>(side) / factor)) * factor;
}

std::optional<RequestError> check_aspect(ImageSize image) {
  const double ratio = static_cast<double>(std::max(image.height, image.width)) / std::min(image.height, image.width);
  if (ratio <= kMaxAspectRatio) return std::nullopt;
  return RequestError{
      400, "invalid_image", "",
      fmt::format("the image is {} times as long as wide; at most {} times is accepted", ratio, kMaxAspectRatio)};
}

// The size for an area `pixels` of the rounded size in `rounded` and an exact area `exact`, both over all frames.
ImageSize into_bounds(ImageSize image, ImageSize rounded, int64_t pixels, int64_t exact, const SizeRule& rule) {
  const auto f = static_cast<double>(rule.factor);
  if (pixels > rule.max_pixels) {
    const double beta = std::sqrt(static_cast<double>(exact) / static_cast<double>(rule.max_pixels));
    const auto shrunk = [&](int64_t side) {
      return std::max(rule.factor, static_cast<int64_t>(std::floor(side / beta / f)) * rule.factor);
    };
    return {shrunk(image.height), shrunk(image.width)};
  }
  if (pixels < rule.min_pixels) {
    const double beta = std::sqrt(static_cast<double>(rule.min_pixels) / static_cast<double>(exact));
    const auto grown = [&](int64_t side) { return static_cast<int64_t>(std::ceil(side * beta / f)) * rule.factor; };
    return {grown(image.height), grown(image.width)};
  }
  return rounded;
}

// Keys, "Cubic convolution interpolation for digital image processing" (1981), a = -0.5.
double cubic(double x) {
  constexpr double a = -0.5;
  x = std::abs(x);
  if (x < 1) return ((a + 2) * x - (a + 3)) * x * x + 1;
  if (x < 2) return ((a * x - 5 * a) * x + 8 * a) * x - 4 * a;
  return 0;
}

// For every output position the input positions that it is made of, and their weights.
struct Taps {
  std::vector<int64_t> first;    // [out]
  std::vector<int64_t> count;    // [out]
  std::vector<int32_t> weights;  // [out, width], 16-bit values scaled by 2^fraction_bits
  int64_t width = 0;
  int fraction_bits = 0;
};

Taps make_taps(int64_t in, int64_t out) {
  const double scale = static_cast<double>(in) / out, stretch = std::max(scale, 1.0);
  const double support = 2 * stretch;
  Taps taps;
  taps.width = static_cast<int64_t>(std::ceil(support)) * 2 + 1;
  std::vector<double> weights(out * taps.width);
  double largest = 0;
  for (int64_t i = 0; i < out; ++i) {
    const double center = scale * (i + 0.5);
    const int64_t first = std::max<int64_t>(static_cast<int64_t>(center - support + 0.5), 0);
    const int64_t end = std::min(static_cast<int64_t>(center + support + 0.5), in);
    const int64_t count = std::clamp<int64_t>(end - first, 0, taps.width);
    double* row = weights.data() + i * taps.width;
    double total = 0;
    for (int64_t j = 0; j < count; ++j) {
      row[j] = cubic((j + first - center + 0.5) * (1.0 / stretch));
      total += row[j];
    }
    for (int64_t j = 0; j < count; ++j) {
      row[j] /= total;
      largest = std::max(largest, row[j]);
    }
    taps.first.push_back(first);
    taps.count.push_back(count);
  }
  constexpr int kMostBits = 22;
  while (taps.fraction_bits < kMostBits && std::floor(0.5 + std::ldexp(largest, taps.fraction_bits + 1)) < 32768)
    ++taps.fraction_bits;
  taps.weights.reserve(weights.size());
  for (const double w : weights)  // half away from zero
    taps.weights.push_back(static_cast<int32_t>(std::trunc(std::ldexp(w, taps.fraction_bits) + (w < 0 ? -0.5 : 0.5))));
  return taps;
}

uint8_t to_level(int32_t sum, int fraction_bits) {
  return static_cast<uint8_t>(std::clamp(sum >> fraction_bits, 0, 255));
}

Image resize_rows(const Image& image, int64_t width) {
  const Taps taps = make_taps(image.width, width);
  const int32_t half = 1 << (taps.fraction_bits - 1);
  Image out{image.height, width, std::vector<uint8_t>(image.height * width * 3)};
  uint8_t* to = out.rgb.data();
  for (int64_t y = 0; y < image.height; ++y) {
    const uint8_t* row = image.rgb.data() + y * image.width * 3;
    for (int64_t x = 0; x < width; ++x, to += 3) {
      const int32_t* w = taps.weights.data() + x * taps.width;
      const uint8_t* from = row + taps.first[x] * 3;
      int32_t r = half, g = half, b = half;
      for (int64_t j = 0; j < taps.count[x]; ++j, from += 3) {
        r += w[j] * from[0];
        g += w[j] * from[1];
        b += w[j] * from[2];
      }
      to[0] = to_level(r, taps.fraction_bits);
      to[1] = to_level(g, taps.fraction_bits);
      to[2] = to_level(b, taps.fraction_bits);
    }
  }
  return out;
}

Image resize_columns(const Image& image, int64_t height) {
  const Taps taps = make_taps(image.height, height);
  const int64_t levels = image.width * 3;
  Image out{height, image.width, std::vector<uint8_t>(height * levels)};
  std::vector<int32_t> sums(levels);
  for (int64_t y = 0; y < height; ++y) {
    std::fill(sums.begin(), sums.end(), 1 << (taps.fraction_bits - 1));
    for (int64_t j = 0; j < taps.count[y]; ++j) {
      const int32_t w = taps.weights[y * taps.width + j];
      const uint8_t* from = image.rgb.data() + (taps.first[y] + j) * levels;
      for (int64_t x = 0; x < levels; ++x) sums[x] += w * from[x];
    }
    uint8_t* to = out.rgb.data() + y * levels;
    for (int64_t x = 0; x < levels; ++x) to[x] = to_level(sums[x], taps.fraction_bits);
  }
  return out;
}

}  // namespace

std::variant<ImageSize, RequestError> smart_resize(ImageSize image, const SizeRule& rule) {
  CHECK(image.height > 0 && image.width > 0);
  if (auto error = check_aspect(image)) return std::move(*error);
  const ImageSize rounded{nearest_multiple(image.height, rule.factor), nearest_multiple(image.width, rule.factor)};
  return into_bounds(image, rounded, rounded.height * rounded.width, image.height * image.width, rule);
}

std::variant<ImageSize, RequestError> smart_resize_video(ImageSize frame, int64_t frames, int64_t temporal_patch_size,
                                                         const SizeRule& rule) {
  CHECK(frame.height > 0 && frame.width > 0);
  if (frames < temporal_patch_size)
    return RequestError{400, "invalid_video", "",
                        fmt::format("the video has {} frames; at least {} are needed", frames, temporal_patch_size)};
  if (frame.height < rule.factor || frame.width < rule.factor) {
    const auto f = static_cast<double>(rule.factor);
    const double scale = std::max(f / frame.height, f / frame.width);
    frame = {static_cast<int64_t>(frame.height * scale), static_cast<int64_t>(frame.width * scale)};
  }
  if (auto error = check_aspect(frame)) return std::move(*error);
  const ImageSize rounded{nearest_multiple(frame.height, rule.factor), nearest_multiple(frame.width, rule.factor)};
  // QUIRK: the rounded area counts the frames rounded to whole temporal patches, half to even (5 frames count as 4);
  // the exact area counts them as they are (Transformers 5.17, video_processing_qwen3_vl.py, smart_resize).
  const int64_t rounded_frames = nearest_multiple(frames, temporal_patch_size);
  return into_bounds(frame, rounded, rounded_frames * rounded.height * rounded.width,
                     frames * frame.height * frame.width, rule);
}

Image resize_bicubic(Image image, ImageSize size) {
  CHECK(image.height > 0 && image.width > 0 && size.height > 0 && size.width > 0);
  if (image.width != size.width) image = resize_rows(image, size.width);
  if (image.height != size.height) image = resize_columns(image, size.height);
  return image;
}

}  // namespace calandra

// The image sizes that Qwen vision towers take, and the resize that gives them.
//
// resize_bicubic: two separable passes of the Keys cubic (a = -0.5), widened when shrinking (antialias), horizontal
// first, the intermediate rounded and clamped to 8 bits; weights are 16-bit fixed-point numbers with as many fraction
// bits as the largest one leaves room for. This is what torchvision does with 8-bit images on CPUs, pixel for pixel.
#pragma once

#include <cstdint>
#include <string>
#include <variant>

#include "base/error.h"
#include "vision/image.h"

namespace calandra {

struct ImageSize {
  int64_t height = 0, width = 0;  // pixels
  bool operator==(const ImageSize&) const = default;
};

// Bounds on pixels (images: height * width; videos: frames * height * width) and the number that both sides must be a
// multiple of: patch_size * merge_size.
struct SizeRule {
  int64_t factor = 32;
  int64_t min_pixels = 65'536;
  int64_t max_pixels = 16'777'216;
};

// Longest side over shortest side that is still accepted.
inline constexpr double kMaxAspectRatio = 200;

// The size an image is brought to: sides are rounded to multiples of the factor (half to even), then scaled in
// proportion where the area leaves the bounds. Error: an aspect ratio above 200.
std::variant<ImageSize, RequestError> smart_resize(ImageSize image, const SizeRule& rule);

// The same for `frames` frames of a video, of which the area counts over time, in whole temporal patches. Sides below
// the factor are enlarged first. Error: also fewer frames than a temporal patch has.
std::variant<ImageSize, RequestError> smart_resize_video(ImageSize frame, int64_t frames, int64_t temporal_patch_size,
                                                         const SizeRule& rule);

// Neither size may be empty; the image is returned as it is when it has that size already.
Image resize_bicubic(Image image, ImageSize size);

}  // namespace calandra

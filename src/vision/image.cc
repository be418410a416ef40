#include "vision/image.h"

#include <fmt/format.h>

#include <utility>

#include "vision/decoders.h"

namespace calandra {
namespace {

Decoded decode(std::string_view bytes, const ImageLimits& limits) {
  switch (image_format(bytes)) {
    case ImageFormat::kJpeg:
      return decode_jpeg(bytes, limits);
    case ImageFormat::kPng:
      return decode_png(bytes, limits);
    case ImageFormat::kWebp:
      return decode_webp(bytes, limits);
    case ImageFormat::kGif:
      return decode_gif(bytes, limits);
    case ImageFormat::kUnknown:
      break;
  }
  return RequestError{400, "invalid_image", "", "the image is none of JPEG, PNG, WebP and GIF by its first bytes"};
}

}  // namespace

RequestError bad_image(std::string_view format, std::string_view problem) {
  return {400, "invalid_image", "", fmt::format("the {} image cannot be decoded: {}", format, problem)};
}

std::optional<RequestError> check_size(int64_t width, int64_t height, const ImageLimits& limits) {
  if (width <= 0 || height <= 0)
    return RequestError{400, "invalid_image", "", fmt::format("the image has no pixels: {} x {}", width, height)};
  if (width > limits.max_side || height > limits.max_side)
    return RequestError{
        400, "image_too_large", "",
        fmt::format("the image has {} x {} pixels; a side may have at most {}", width, height, limits.max_side)};
  if (height > limits.max_pixels / width)
    return RequestError{400, "image_too_large", "",
                        fmt::format("the image has {} x {} = {} pixels; at most {} are accepted", width, height,
                                    width * height, limits.max_pixels)};
  return limits.admit ? limits.admit(width, height) : std::nullopt;
}

Image black_image(int64_t width, int64_t height) {
  return {height, width, std::vector<uint8_t>(static_cast<size_t>(width * height * 3))};
}

ImageFormat image_format(std::string_view bytes) {
  if (bytes.starts_with("\xff\xd8\xff")) return ImageFormat::kJpeg;
  if (bytes.starts_with("\x89PNG\r\n\x1a\n")) return ImageFormat::kPng;
  if (bytes.starts_with("RIFF") && bytes.size() >= 12 && bytes.substr(8, 4) == "WEBP") return ImageFormat::kWebp;
  if (bytes.starts_with("GIF87a") || bytes.starts_with("GIF89a")) return ImageFormat::kGif;
  return ImageFormat::kUnknown;
}

std::variant<Image, RequestError> decode_image(std::string_view bytes, const ImageLimits& limits) {
  if (bytes.empty()) return RequestError{400, "invalid_image", "", "the image is empty"};
  if (static_cast<int64_t>(bytes.size()) > limits.max_file_bytes)
    return RequestError{
        400, "image_too_large", "",
        fmt::format("the image file has {} bytes; at most {} are accepted", bytes.size(), limits.max_file_bytes)};
  Decoded decoded = decode(bytes, limits);
  if (auto* error = std::get_if<RequestError>(&decoded)) return std::move(*error);
  DecodedImage& stored = std::get<DecodedImage>(decoded);
  return apply_orientation(std::move(stored.image), stored.orientation);
}

Image apply_orientation(Image image, int orientation) {
  if (orientation < 2 || orientation > 8) return image;
  // Where the upright image's pixel (y, x) is stored: rows and columns swapped for 5 to 8, then either side reversed.
  const bool swapped = orientation >= 5;
  const bool from_bottom = orientation == 3 || orientation == 4 || orientation == 6 || orientation == 7;
  const bool from_right = orientation == 2 || orientation == 3 || orientation == 7 || orientation == 8;
  const int64_t height = swapped ? image.width : image.height, width = swapped ? image.height : image.width;
  Image upright = black_image(width, height);
  uint8_t* to = upright.rgb.data();
  for (int64_t y = 0; y < height; ++y) {
    for (int64_t x = 0; x < width; ++x) {
      int64_t row = swapped ? x : y, column = swapped ? y : x;
      if (from_bottom) row = image.height - 1 - row;
      if (from_right) column = image.width - 1 - column;
      const uint8_t* from = image.rgb.data() + (row * image.width + column) * 3;
      for (int c = 0; c < 3; ++c) *to++ = from[c];
    }
  }
  return upright;
}

}  // namespace calandra

// The four decoders behind decode_image: one format each, the size checked before any memory for pixels is taken. The
// C libraries report errors by longjmp; the functions that it leaves hold no object with a destructor.
#pragma once

#include <optional>
#include <string>
#include <string_view>
#include <variant>

#include "vision/image.h"

namespace calandra {

// Pixels as stored, and how to turn them.
struct DecodedImage {
  Image image;
  int orientation = 1;  // EXIF
};
using Decoded = std::variant<DecodedImage, RequestError>;

Decoded decode_jpeg(std::string_view bytes, const ImageLimits& limits);
Decoded decode_png(std::string_view bytes, const ImageLimits& limits);
Decoded decode_webp(std::string_view bytes, const ImageLimits& limits);
Decoded decode_gif(std::string_view bytes, const ImageLimits& limits);

// "the PNG image cannot be decoded: ..."
RequestError bad_image(std::string_view format, std::string_view problem);

// Whether a size from a header is one that may be allocated.
std::optional<RequestError> check_size(int64_t width, int64_t height, const ImageLimits& limits);

// Black pixels of a size that check_size has passed.
Image black_image(int64_t width, int64_t height);

}  // namespace calandra

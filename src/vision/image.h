// Encoded image bytes to 8-bit RGB, as Pillow's exif_transpose(open(...)).convert("RGB") gives it (the way Transformers
// reads images): JPEG (also grey, CMYK, progressive), PNG (all colour types and depths, interlaced), WebP (still, or
// the first frame of an animation), GIF (first frame).
//   - Alpha and transparent colours are dropped, not blended. 16-bit grey is clipped to 255; other 16-bit channels keep
//     their high byte. Colour profiles and gamma are ignored.
//   - The orientation of the EXIF block is applied (JPEG, PNG eXIf, WebP); one that only stands in XMP is not.
//   - A file that ends early or breaks its format's rules is refused, not shown in part (of an animated GIF, what
//     follows the first frame is not read). But JPEG data that libjpeg can go on from is shown as libjpeg shows it.
#pragma once

#include <cstdint>
#include <functional>
#include <optional>
#include <string_view>
#include <variant>
#include <vector>

#include "base/error.h"

namespace calandra {

// Largest accepted file, bytes. A photo of 89 million pixels as PNG has about 200 MB; as JPEG, 40 MB.
inline constexpr int64_t kMaxImageFileBytes = int64_t{256} << 20;
// Largest width * height, pixels (Pillow warns of a decompression bomb above this one).
inline constexpr int64_t kMaxImagePixels = 89'478'485;
// Largest width and height, pixels; no accepted format but PNG can say more.
inline constexpr int64_t kMaxImageSide = 65'535;
// Most scans of a progressive JPEG: each costs a pass over all pixels, however few bytes it has. Encoders write
// about 10.
inline constexpr int kMaxJpegScans = 100;
// Bytes of memory per pixel that a decode needs at most, beside the file: 3 for the result, 3 for the rotated copy or
// the decoder's own planes, 8 for the coefficients of a progressive JPEG.
inline constexpr int64_t kDecodeBytesPerPixel = 12;

// What one call accepts. All are checked against the file's header, before memory for pixels is taken.
struct ImageLimits {
  int64_t max_file_bytes = kMaxImageFileBytes;
  int64_t max_pixels = kMaxImagePixels;
  int64_t max_side = kMaxImageSide;
  // Asked last, with the size that the header says; an error of it is the result. May wait, until memory is free.
  std::function<std::optional<RequestError>(int64_t width, int64_t height)> admit = {};
};

struct Image {
  int64_t height = 0, width = 0;  // pixels
  std::vector<uint8_t> rgb;       // [height, width, 3]
};

enum class ImageFormat { kUnknown, kJpeg, kPng, kWebp, kGif };

// By the first bytes alone; names and media types that clients send are not believed.
ImageFormat image_format(std::string_view bytes);

// The error says what is wrong (code "invalid_image"), or which limit was passed ("image_too_large").
std::variant<Image, RequestError> decode_image(std::string_view bytes, const ImageLimits& limits = {});

// The image turned upright for an EXIF orientation of 1 to 8; other values change nothing.
Image apply_orientation(Image image, int orientation);

}  // namespace calandra

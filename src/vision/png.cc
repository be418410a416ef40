// PNG through libpng. Of its chunks only those that change pixels are read; texts and profiles are skipped unread, so
// that a compressed one costs nothing.
#include <png.h>
#include <zlib.h>

#include <csetjmp>
#include <cstdio>
#include <cstring>
#include <utility>

#include "vision/decoders.h"
#include "vision/exif.h"

namespace calandra {
namespace {

struct PngReader {
  png_structp png = nullptr;
  png_infop info = nullptr;
  const uint8_t* at = nullptr;
  size_t left = 0;  // bytes
  char message[160] = "";

  PngReader() = default;
  PngReader(const PngReader&) = delete;
  ~PngReader() { png_destroy_read_struct(&png, &info, nullptr); }
};

[[noreturn]] void on_error(png_structp png, png_const_charp message) {
  auto* reader = static_cast<PngReader*>(png_get_error_ptr(png));
  std::snprintf(reader->message, sizeof reader->message, "%s", message);
  png_longjmp(png, 1);
}

void on_warning(png_structp, png_const_charp) {}

void on_read(png_structp png, png_bytep to, size_t bytes) {
  auto* reader = static_cast<PngReader*>(png_get_io_ptr(png));
  if (bytes > reader->left) png_error(png, "the file ends early");
  std::memcpy(to, reader->at, bytes);
  reader->at += bytes;
  reader->left -= bytes;
}

// Reads up to the first IDAT chunk. False: `message` says why.
bool read_header(PngReader* reader) {
  reader->png = png_create_read_struct(PNG_LIBPNG_VER_STRING, reader, on_error, on_warning);
  if (!reader->png) return false;
  if (setjmp(png_jmpbuf(reader->png)) != 0) return false;
  reader->info = png_create_info_struct(reader->png);
  if (!reader->info) png_error(reader->png, "not enough memory");
  static const png_byte kSkipped[] =
      "bKGD\0cHRM\0eXIf\0gAMA\0hIST\0iCCP\0iTXt\0oFFs\0pCAL\0pHYs\0sBIT\0sCAL\0sPLT\0sRGB\0tEXt\0tIME\0zTXt";
  png_set_keep_unknown_chunks(reader->png, PNG_HANDLE_CHUNK_NEVER, kSkipped, sizeof kSkipped / 5);
  png_set_user_limits(reader->png, PNG_UINT_31_MAX, PNG_UINT_31_MAX);  // check_size follows, with better words
  png_set_read_fn(reader->png, reader, on_read);
  png_read_info(reader->png, reader->info);
  return true;
}

// Asks for 8-bit RGB rows, or for 16-bit grey ones as they are.
bool set_transforms(PngReader* reader, bool grey16) {
  if (setjmp(png_jmpbuf(reader->png)) != 0) return false;
  const png_byte colour = png_get_color_type(reader->png, reader->info);
  if (!grey16) {
    if (colour == PNG_COLOR_TYPE_PALETTE) png_set_palette_to_rgb(reader->png);
    if (colour == PNG_COLOR_TYPE_GRAY) png_set_expand_gray_1_2_4_to_8(reader->png);
    if (colour == PNG_COLOR_TYPE_GRAY || colour == PNG_COLOR_TYPE_GRAY_ALPHA) png_set_gray_to_rgb(reader->png);
    png_set_strip_16(reader->png);  // the high byte
    png_set_strip_alpha(reader->png);
  }
  png_set_interlace_handling(reader->png);
  png_read_update_info(reader->png, reader->info);
  return true;
}

bool read_pixels(PngReader* reader, uint8_t* rows, size_t height, size_t row_bytes) {
  if (setjmp(png_jmpbuf(reader->png)) != 0) return false;
  const int passes = png_get_interlace_type(reader->png, reader->info) == PNG_INTERLACE_NONE ? 1 : 7;
  for (int pass = 0; pass < passes; ++pass) {
    for (size_t y = 0; y < height; ++y) png_read_row(reader->png, rows + y * row_bytes, nullptr);
  }
  png_read_end(reader->png, reader->info);
  return true;
}

uint32_t big_endian(std::string_view four) {
  uint32_t value = 0;
  for (const char byte : four) value = value << 8 | static_cast<uint8_t>(byte);
  return value;
}

// From the eXIf chunk, wherever it stands. libpng's own reader of it takes as much memory as the chunk claims to need,
// up to 2 GiB for a file of 80 bytes.
int orientation_of(std::string_view file) {
  constexpr size_t kSignatureBytes = 8, kFrameBytes = 12;  // a chunk's length, name and checksum
  for (file.remove_prefix(kSignatureBytes); file.size() >= kFrameBytes;) {
    const size_t length = big_endian(file.substr(0, 4));
    if (length > file.size() - kFrameBytes) return 1;
    const std::string_view named = file.substr(4, 4 + length);
    if (named.starts_with("eXIf") &&
        crc32(0, reinterpret_cast<const Bytef*>(named.data()), named.size()) == big_endian(file.substr(8 + length, 4)))
      return exif_orientation(named.substr(4));
    file.remove_prefix(kFrameBytes + length);
  }
  return 1;
}

}  // namespace

Decoded decode_png(std::string_view bytes, const ImageLimits& limits) {
  PngReader reader;
  reader.at = reinterpret_cast<const uint8_t*>(bytes.data());
  reader.left = bytes.size();
  if (!read_header(&reader)) return bad_image("PNG", reader.png ? reader.message : "not enough memory");
  const int64_t width = png_get_image_width(reader.png, reader.info);
  const int64_t height = png_get_image_height(reader.png, reader.info);
  if (auto error = check_size(width, height, limits)) return std::move(*error);
  const bool grey16 = png_get_color_type(reader.png, reader.info) == PNG_COLOR_TYPE_GRAY &&
                      png_get_bit_depth(reader.png, reader.info) == 16;
  if (!set_transforms(&reader, grey16)) return bad_image("PNG", reader.message);
  const size_t row_bytes = png_get_rowbytes(reader.png, reader.info);
  if (row_bytes != static_cast<size_t>(width) * (grey16 ? 2 : 3))
    return bad_image("PNG", "its rows have an odd length");
  Image image = black_image(width, height);
  std::vector<uint8_t> grey(grey16 ? height * row_bytes : 0);  // [height, width] big-endian
  if (!read_pixels(&reader, grey16 ? grey.data() : image.rgb.data(), height, row_bytes))
    return bad_image("PNG", reader.message);
  for (size_t i = 0; i < grey.size() / 2; ++i) {
    // QUIRK: Pillow clips 16-bit grey to 255 instead of scaling it.
    const uint8_t level = grey[2 * i] != 0 ? 255 : grey[2 * i + 1];
    for (int c = 0; c < 3; ++c) image.rgb[3 * i + c] = level;
  }
  return DecodedImage{std::move(image), orientation_of(bytes)};
}

}  // namespace calandra

// JPEG through libjpeg-turbo: accurate DCT and smooth chroma upsampling, its defaults and Pillow's.
#include <csetjmp>
#include <cstddef>
#include <cstdio>
#include <cstring>
// jpeglib.h needs size_t and FILE declared before it.
#include <jpeglib.h>

#include <utility>

#include "vision/decoders.h"
#include "vision/exif.h"

namespace calandra {
namespace {

struct JpegReader {
  jpeg_decompress_struct decoder{};
  jpeg_error_mgr errors{};
  jpeg_source_mgr source{};
  jpeg_progress_mgr progress{};
  std::jmp_buf jump;
  char message[JMSG_LENGTH_MAX] = "";

  JpegReader() = default;
  JpegReader(const JpegReader&) = delete;
  ~JpegReader() { jpeg_destroy_decompress(&decoder); }  // does nothing before jpeg_create_decompress
};

JpegReader* reader_of(j_common_ptr common) { return static_cast<JpegReader*>(common->client_data); }

[[noreturn]] void fail(j_common_ptr common, const char* problem) {
  JpegReader* reader = reader_of(common);
  std::snprintf(reader->message, sizeof reader->message, "%s", problem);
  std::longjmp(reader->jump, 1);
}

[[noreturn]] void on_error(j_common_ptr common) {
  common->err->format_message(common, reader_of(common)->message);
  std::longjmp(reader_of(common)->jump, 1);
}

void on_message(j_common_ptr) {}  // warnings of damaged data: shown as far as it can be, as Pillow does

void on_scan(j_common_ptr common) {
  if (reader_of(common)->decoder.input_scan_number > kMaxJpegScans) fail(common, "it has too many scans");
}

void on_source(j_decompress_ptr) {}

boolean on_end_of_bytes(j_decompress_ptr decoder) {
  fail(reinterpret_cast<j_common_ptr>(decoder), "the file ends early");
}

void on_skip(j_decompress_ptr decoder, long bytes) {
  if (bytes <= 0) return;
  jpeg_source_mgr& source = *decoder->src;
  if (static_cast<size_t>(bytes) > source.bytes_in_buffer) on_end_of_bytes(decoder);
  source.next_input_byte += bytes;
  source.bytes_in_buffer -= bytes;
}

// Reads up to the first scan. False: `message` says why.
bool read_header(JpegReader* reader, const JOCTET* bytes, size_t size) {
  jpeg_decompress_struct& decoder = reader->decoder;
  decoder.err = jpeg_std_error(&reader->errors);
  decoder.client_data = reader;
  reader->errors.error_exit = on_error;
  reader->errors.output_message = on_message;
  if (setjmp(reader->jump) != 0) return false;
  jpeg_create_decompress(&decoder);
  reader->source = {bytes, size, on_source, on_end_of_bytes, on_skip, jpeg_resync_to_restart, on_source};
  decoder.src = &reader->source;
  reader->progress.progress_monitor = on_scan;
  decoder.progress = &reader->progress;
  jpeg_save_markers(&decoder, JPEG_APP0 + 1, 0xFFFF);  // EXIF
  jpeg_read_header(&decoder, TRUE);
  return true;
}

// Pillow takes every CMYK JPEG to be stored inverted, as Adobe does, and multiplies by the key in 8 bits.
void cmyk_to_rgb(const uint8_t* cmyk, int64_t pixels, uint8_t* rgb) {
  for (int64_t i = 0; i < pixels; ++i, cmyk += 4, rgb += 3) {
    const int light = cmyk[3];
    for (int c = 0; c < 3; ++c) {
      const int product = (255 - cmyk[c]) * light + 128;
      rgb[c] = static_cast<uint8_t>(light - ((product >> 8) + product) / 256);
    }
  }
}

// `cmyk_row` [width, 4] is needed for four components only.
bool read_pixels(JpegReader* reader, uint8_t* rgb, uint8_t* cmyk_row) {
  jpeg_decompress_struct& decoder = reader->decoder;
  if (setjmp(reader->jump) != 0) return false;
  decoder.out_color_space = cmyk_row ? JCS_CMYK : JCS_RGB;
  jpeg_start_decompress(&decoder);
  while (decoder.output_scanline < decoder.output_height) {
    uint8_t* to = rgb + size_t{decoder.output_scanline} * decoder.output_width * 3;
    JSAMPROW row = cmyk_row ? cmyk_row : to;
    if (jpeg_read_scanlines(&decoder, &row, 1) == 1 && cmyk_row) cmyk_to_rgb(cmyk_row, decoder.output_width, to);
  }
  jpeg_finish_decompress(&decoder);
  return true;
}

int orientation_of(const JpegReader& reader) {
  for (const jpeg_marker_struct* marker = reader.decoder.marker_list; marker; marker = marker->next) {
    const std::string_view block(reinterpret_cast<const char*>(marker->data), marker->data_length);
    if (block.starts_with(std::string_view("Exif\0\0", 6))) return exif_orientation(block);
  }
  return 1;
}

}  // namespace

Decoded decode_jpeg(std::string_view bytes, const ImageLimits& limits) {
  JpegReader reader;
  if (!read_header(&reader, reinterpret_cast<const JOCTET*>(bytes.data()), bytes.size()))
    return bad_image("JPEG", reader.message);
  const int64_t width = reader.decoder.image_width, height = reader.decoder.image_height;
  if (auto error = check_size(width, height, limits)) return std::move(*error);
  const int components = reader.decoder.num_components;
  if (components != 1 && components != 3 && components != 4)
    return bad_image("JPEG", "it has " + std::to_string(components) + " colour components, not 1, 3 or 4");
  const int orientation = orientation_of(reader);  // before read_pixels, whose end frees the markers
  Image image = black_image(width, height);
  std::vector<uint8_t> cmyk_row(components == 4 ? width * 4 : 0);
  if (!read_pixels(&reader, image.rgb.data(), components == 4 ? cmyk_row.data() : nullptr))
    return bad_image("JPEG", reader.message);
  return DecodedImage{std::move(image), orientation};
}

}  // namespace calandra

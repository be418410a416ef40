// Odd images: every file of tests/images cut, flipped, and with false sizes in its header. Each one becomes an image or
// a RequestError, and no memory is taken for pixels that a limit forbids.
#include <fmt/format.h>
#include <gtest/gtest.h>
#include <sys/resource.h>

#include <random>

#include "vision/image.h"
#include "vision/image_files_for_test.h"

namespace calandra {
namespace {

// Small, so that a decoder that trusted a header would stand out.
const ImageLimits kLimits{.max_file_bytes = 1 << 20, .max_pixels = 1 << 20, .max_side = 1 << 15};

// Freed memory that the address sanitizer keeps.
#if defined(__SANITIZE_ADDRESS__)
constexpr int64_t kQuarantineBytes = int64_t{512} << 20;
#else
constexpr int64_t kQuarantineBytes = 0;
#endif

int64_t peak_bytes() {
  rusage usage{};
  getrusage(RUSAGE_SELF, &usage);
  return int64_t{usage.ru_maxrss} * 1024;
}

struct Counts {
  int images = 0, errors = 0;
};

void decode_odd(std::string_view bytes, Counts* counts) {
  const auto decoded = decode_image(bytes, kLimits);
  if (const auto* error = std::get_if<RequestError>(&decoded)) {
    ++counts->errors;
    EXPECT_EQ(error->status, 400);
    EXPECT_TRUE(error->code == "invalid_image" || error->code == "image_too_large") << error->code;
    EXPECT_FALSE(error->message.empty());
  } else {
    ++counts->images;
    const Image& image = std::get<Image>(decoded);
    EXPECT_GT(image.height, 0);
    EXPECT_GT(image.width, 0);
    EXPECT_LE(image.height * image.width, kLimits.max_pixels);
    EXPECT_EQ(std::ssize(image.rgb), image.height * image.width * 3);
  }
}

uint32_t crc_of(std::string_view bytes) {
  uint32_t crc = ~0u;
  for (const char byte : bytes) {
    crc ^= static_cast<uint8_t>(byte);
    for (int bit = 0; bit < 8; ++bit) crc = crc & 1 ? crc >> 1 ^ 0xEDB88320u : crc >> 1;
  }
  return ~crc;
}

// PNG chunks checksummed anew, so that a changed byte reaches the parser behind the checksum.
std::string with_checksums(std::string png) {
  for (size_t at = 8; at + 12 <= png.size();) {
    size_t length = 0;
    for (int i = 0; i < 4; ++i) length = length << 8 | static_cast<uint8_t>(png[at + i]);
    if (length > png.size() - at - 12) break;
    const uint32_t crc = crc_of(std::string_view(png).substr(at + 4, length + 4));
    for (int i = 0; i < 4; ++i) png[at + 8 + length + i] = static_cast<char>(crc >> (24 - 8 * i));
    at += 12 + length;
  }
  return png;
}

// Where a file's header keeps its width and its height, and in what bytes.
struct SizeField {
  size_t width = 0, height = 0, bytes = 0;
  bool big_endian = false;
};

SizeField size_field(const std::string& file) {
  switch (image_format(file)) {
    case ImageFormat::kPng:
      return {16, 20, 4, true};
    case ImageFormat::kGif:
      return {6, 8, 2, false};
    case ImageFormat::kJpeg:
      for (size_t at = 2; at + 9 < file.size();) {  // SOF0, SOF1 or SOF2
        const auto marker = static_cast<uint8_t>(file[at + 1]);
        if (marker >= 0xC0 && marker <= 0xC2) return {at + 7, at + 5, 2, true};
        at += 2 + (static_cast<uint8_t>(file[at + 2]) << 8 | static_cast<uint8_t>(file[at + 3]));
      }
      return {};
    case ImageFormat::kWebp:
      if (file.substr(12, 4) == "VP8X") return {24, 27, 3, false};
      if (file.substr(12, 4) == "VP8 ") return {26, 28, 2, false};
      return {21, 22, 2, false};  // 14 bits each, so both are hit
    case ImageFormat::kUnknown:
      break;
  }
  return {};
}

std::string with_size(std::string file, uint32_t width, uint32_t height) {
  const SizeField field = size_field(file);
  const auto write = [&](size_t at, uint32_t value) {
    for (size_t i = 0; i < field.bytes; ++i)
      file[at + i] = static_cast<char>(value >> 8 * (field.big_endian ? field.bytes - 1 - i : i));
  };
  write(field.width, width);
  write(field.height, height);
  return image_format(file) == ImageFormat::kPng ? with_checksums(std::move(file)) : file;
}

class HostileImages : public testing::Test {
 protected:
  void SetUp() override {
    // Everything that stays loaded, once.
    for (const auto& [name, file] : image_files()) decode_image(file);
    before_ = peak_bytes();
  }
  void TearDown() override {
    // The largest allowed decode, and as much again for what the allocator holds back.
    EXPECT_LT(peak_bytes() - before_, 2 * kLimits.max_pixels * kDecodeBytesPerPixel + kQuarantineBytes);
    fmt::print("{} images, {} refused, peak grew by {} KiB\n", counts_.images, counts_.errors,
               (peak_bytes() - before_) / 1024);
  }
  Counts counts_;

 private:
  int64_t before_ = 0;
};

TEST_F(HostileImages, Cut) {
  for (const auto& [name, file] : image_files()) {
    SCOPED_TRACE(name);
    for (size_t part = 0; part < 24; ++part)
      decode_odd(std::string_view(file).substr(0, file.size() * part / 24), &counts_);
    for (size_t missing = 1; missing <= 16; ++missing)
      decode_odd(std::string_view(file).substr(0, file.size() - missing), &counts_);
    for (size_t size = 0; size <= 64; ++size) decode_odd(std::string_view(file).substr(0, size), &counts_);
  }
  EXPECT_GT(counts_.errors, 300);
}

TEST_F(HostileImages, Flipped) {
  std::mt19937 random(20);
  for (const auto& [name, file] : image_files()) {
    SCOPED_TRACE(name);
    for (int round = 0; round < 40; ++round) {
      std::string odd = file;
      // Half of the rounds change the header only.
      const size_t end = round % 2 == 0 ? std::min<size_t>(odd.size(), 80) : odd.size();
      for (int flips = 1 + round % 4; flips > 0; --flips) odd[random() % end] ^= static_cast<char>(1 << random() % 8);
      decode_odd(odd, &counts_);
      if (image_format(odd) == ImageFormat::kPng) decode_odd(with_checksums(odd), &counts_);
    }
  }
  EXPECT_GT(counts_.images, 100);
  EXPECT_GT(counts_.errors, 300);
}

TEST_F(HostileImages, FalseSizes) {
  constexpr uint32_t kSides[] = {0, 1, 36, 54, 4096, 32'767, 65'535, 0x7fffffff, 0xffffffff};
  for (const auto& [name, file] : image_files()) {
    SCOPED_TRACE(name);
    for (const uint32_t width : kSides) {
      for (const uint32_t height : kSides) decode_odd(with_size(file, width, height), &counts_);
    }
  }
  EXPECT_GT(counts_.errors, 300);
}

TEST_F(HostileImages, HugeSizesAreRefusedByName) {
  for (const std::string name :
       {"rgb_8.png", "grey_16_interlaced.png", "progressive.jpg", "cmyk.jpg", "own_palette.gif", "animated.webp"}) {
    SCOPED_TRACE(name);
    const auto decoded = decode_image(with_size(image_files().at(name), 32'767, 32'767), kLimits);
    ASSERT_TRUE(std::holds_alternative<RequestError>(decoded));
    EXPECT_EQ(std::get<RequestError>(decoded).code, "image_too_large");
  }
  // 52,800 x 44: within the pixel limit, as long as it is thin.
  const auto thin = decode_image(with_size(image_files().at("rgb_8.png"), 52'800, 44));
  EXPECT_TRUE(std::holds_alternative<RequestError>(thin));
}

TEST_F(HostileImages, WrongMagic) {
  for (const auto& [name, file] : image_files()) {
    SCOPED_TRACE(name);
    for (const std::string_view magic :
         {std::string_view("\xff\xd8\xff\xe0"), std::string_view("\x89PNG\r\n\x1a\n"), std::string_view("GIF89a"),
          std::string_view("GIF87a"), std::string_view("RIFF\x10\0\0\0WEBP", 12), std::string_view("BM")}) {
      std::string odd = file;
      odd.replace(0, magic.size(), magic);
      decode_odd(odd, &counts_);
      decode_odd(std::string(magic) + file, &counts_);
    }
  }
  EXPECT_GT(counts_.errors, 300);
}

TEST_F(HostileImages, ScanBomb) {
  // A progressive JPEG whose last scan is repeated: every repetition would cost a pass over all pixels.
  const std::string& file = image_files().at("grey_progressive.jpg");
  const size_t last = file.rfind("\xff\xda");
  ASSERT_NE(last, std::string::npos);
  const std::string scan = file.substr(last, file.size() - 2 - last);
  std::string odd = file.substr(0, file.size() - 2);
  for (int i = 0; i < kMaxJpegScans; ++i) odd += scan;
  odd += file.substr(file.size() - 2);
  const auto decoded = decode_image(odd, kLimits);
  ASSERT_TRUE(std::holds_alternative<RequestError>(decoded));
  EXPECT_NE(std::get<RequestError>(decoded).message.find("too many scans"), std::string::npos);
  ++counts_.errors;
}

}  // namespace
}  // namespace calandra

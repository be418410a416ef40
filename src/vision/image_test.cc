// Decoding: every file of tests/images gives exactly the pixels that Pillow reads from it; limits come before memory.
#include "vision/image.h"

#include <fmt/format.h>
#include <gtest/gtest.h>

#include "vision/exif.h"
#include "vision/image_files_for_test.h"

namespace calandra {
namespace {

std::string error_of(const std::variant<Image, RequestError>& result) {
  const auto* error = std::get_if<RequestError>(&result);
  return error ? error->code + ": " + error->message : "";
}

TEST(Image, EveryFileAsPillowReadsIt) {
  const json::object expected = read_json_file(kImageFolder / "expected.json").as_object();
  EXPECT_EQ(expected.size(), image_files().size());
  EXPECT_GE(expected.size(), 60u);
  for (const auto& [name, facts] : expected) {
    SCOPED_TRACE(std::string(name));
    const auto decoded = decode_image(image_files().at(name));
    ASSERT_EQ(error_of(decoded), "");
    const Image& image = std::get<Image>(decoded);
    EXPECT_EQ((std::vector{image.height, image.width}), json::value_to<std::vector<int64_t>>(facts.at("size")));
    EXPECT_EQ(std::ssize(image.rgb), image.height * image.width * 3);
    EXPECT_EQ(fmt::format("{:016x}", fnv1a(image.rgb)), std::string_view(facts.at("fnv1a").as_string()));
  }
}

TEST(Image, AskedBeforeMemoryIsTaken) {
  const json::object expected = read_json_file(kImageFolder / "expected.json").as_object();
  for (const auto& [name, bytes] : image_files()) {
    int asked = 0;
    ImageLimits limits;
    limits.admit = [&, name = name](int64_t width, int64_t height) -> std::optional<RequestError> {
      ++asked;
      const int64_t pixels =
          expected.at(name).at("size").at(0).as_int64() * expected.at(name).at("size").at(1).as_int64();
      EXPECT_EQ(width * height, pixels) << name;  // turned or not
      return RequestError{503, "full", "", "no memory"};
    };
    EXPECT_EQ(error_of(decode_image(bytes, limits)), "full: no memory") << name;
    EXPECT_EQ(asked, 1) << name;
  }
}

TEST(Image, FormatByFirstBytes) {
  EXPECT_EQ(image_format(image_files().at("rgb_8.png")), ImageFormat::kPng);
  EXPECT_EQ(image_format(image_files().at("cmyk.jpg")), ImageFormat::kJpeg);
  EXPECT_EQ(image_format(image_files().at("lossy.webp")), ImageFormat::kWebp);
  EXPECT_EQ(image_format(image_files().at("static.gif")), ImageFormat::kGif);
  EXPECT_EQ(error_of(decode_image("")), "invalid_image: the image is empty");
  for (const std::string_view bytes : {"RIFF1234WAVE", "BM....", "\x89PN", "<svg/>", "GIF88a", "RIFF", "P6 1 1 255"}) {
    EXPECT_EQ(image_format(bytes), ImageFormat::kUnknown);
    EXPECT_EQ(error_of(decode_image(bytes)),
              "invalid_image: the image is none of JPEG, PNG, WebP and GIF by its first bytes");
  }
}

TEST(Image, LimitsNameTheSizes) {
  for (const std::string name : {"rgb_8.png", "baseline_420.jpg", "lossy.webp", "lossless.webp", "own_palette.gif"}) {
    SCOPED_TRACE(name);
    const std::string& file = image_files().at(name);  // 53 x 37
    EXPECT_EQ(error_of(decode_image(file, {.max_pixels = 53 * 37, .max_side = 53})), "");
    EXPECT_EQ(error_of(decode_image(file, {.max_pixels = 53 * 37 - 1})),
              "image_too_large: the image has 53 x 37 = 1961 pixels; at most 1960 are accepted");
    EXPECT_EQ(error_of(decode_image(file, {.max_side = 52})),
              "image_too_large: the image has 53 x 37 pixels; a side may have at most 52");
    const auto size = static_cast<int64_t>(file.size());
    EXPECT_EQ(error_of(decode_image(file, {.max_file_bytes = size})), "");
    EXPECT_EQ(error_of(decode_image(file, {.max_file_bytes = size - 1})),
              fmt::format("image_too_large: the image file has {} bytes; at most {} are accepted", size, size - 1));
  }
}

TEST(Image, EndsEarly) {
  for (const auto& [name, file] : image_files()) {
    SCOPED_TRACE(name);
    EXPECT_NE(error_of(decode_image(std::string_view(file).substr(0, file.size() / 4))), "");
  }
}

TEST(Image, OrientationsOfTwoByThree) {
  // The pixels 1 2 3 / 4 5 6, upright for each orientation, as the EXIF standard draws them.
  const std::map<int, std::vector<int>> upright{
      {1, {1, 2, 3, 4, 5, 6}}, {2, {3, 2, 1, 6, 5, 4}}, {3, {6, 5, 4, 3, 2, 1}}, {4, {4, 5, 6, 1, 2, 3}},
      {5, {1, 4, 2, 5, 3, 6}}, {6, {4, 1, 5, 2, 6, 3}}, {7, {6, 3, 5, 2, 4, 1}}, {8, {3, 6, 2, 5, 1, 4}}};
  for (const auto& [orientation, expected] : upright) {
    SCOPED_TRACE(orientation);
    Image image{2, 3, {}};
    for (uint8_t i = 1; i <= 6; ++i) image.rgb.insert(image.rgb.end(), 3, i);
    const Image turned = apply_orientation(image, orientation);
    EXPECT_EQ(turned.height, orientation < 5 ? 2 : 3);
    EXPECT_EQ(turned.width, orientation < 5 ? 3 : 2);
    ASSERT_EQ(turned.rgb.size(), 18u);
    for (size_t i = 0; i < 18; ++i) EXPECT_EQ(turned.rgb[i], expected[i / 3]);
  }
}

TEST(Exif, BrokenBlocksAreUpright) {
  const std::string block("II*\0\x08\0\0\0\x01\0\x12\x01\x03\0\x01\0\0\0\x06\0\0\0\0\0\0\0", 26);
  EXPECT_EQ(exif_orientation(block), 6);
  EXPECT_EQ(exif_orientation(std::string("Exif\0\0", 6) + block), 6);
  for (size_t size = 0; size < 20; ++size) EXPECT_EQ(exif_orientation(block.substr(0, size)), 1);
  const auto changed = [&](size_t at, char byte) {
    std::string other = block;
    other[at] = byte;
    return exif_orientation(other);
  };
  EXPECT_EQ(changed(0, 'X'), 1);     // neither byte order
  EXPECT_EQ(changed(2, '+'), 1);     // not 42
  EXPECT_EQ(changed(7, '\xff'), 1);  // a directory far behind the end
  EXPECT_EQ(changed(8, 0), 1);       // no entries
  EXPECT_EQ(changed(12, 7), 1);      // a type that is no number
  EXPECT_EQ(changed(14, 2), 1);      // two values
  EXPECT_EQ(changed(18, 0), 1);
  EXPECT_EQ(changed(18, 9), 1);
  EXPECT_EQ(changed(18, 8), 8);
}

}  // namespace
}  // namespace calandra

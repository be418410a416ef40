#include "base/json.h"

#include <gtest/gtest.h>

#include "base/error.h"
#include "base/scalar.h"

namespace calandra {
namespace {

TEST(Json, NumbersAreWrittenInShortestForm) {
  EXPECT_EQ(to_json(parse_json("[1, 1.5, 1e-7, -2.0, 1e300]", "text")), "[1,1.5,1e-07,-2.0,1e+300]");
}

TEST(Json, FloatsAsTheyWereWritten) {
  EXPECT_EQ(to_json(json::array{as_written(0.7F), as_written(1), as_written(1e-8F), as_written(3e38F)}),
            "[0.7,1.0,1e-08,3e+38]");
}

TEST(Json, KeysKeepTheirOrder) {
  EXPECT_EQ(to_json(parse_json(R"({"z":1,"a":{"y":null,"b":true}})", "text")), R"({"z":1,"a":{"y":null,"b":true}})");
}

TEST(Json, StringsAreEscapedWhereTheyMustBe) {
  std::string all;
  for (int c = 0; c < 256; ++c) (all += static_cast<char>(c)) += c % 3 == 0 ? "plain \xc3\xa9" : "";
  for (const std::string& text : {all, std::string(), std::string("a"), std::string("\"\\\b\f\n\r\t\x1f/")})
    EXPECT_EQ(to_json(json::string(text)), json::serialize(json::string(text)));
}

TEST(Json, ErrorsNameTheText) {
  try {
    parse_json("{\n  \"a\": tru }", "config.json");
    FAIL();
  } catch (const LoadError& error) {
    EXPECT_NE(std::string(error.what()).find("config.json"), std::string::npos);
    EXPECT_NE(std::string(error.what()).find("line 2"), std::string::npos) << error.what();
  }
}

TEST(Json, RefusesInvalidUtf8AndDeepNesting) {
  EXPECT_THROW(parse_json("\"\xff\"", "text"), LoadError);
  EXPECT_THROW(parse_json(std::string(1000, '['), "text"), LoadError);
  EXPECT_THROW(parse_json("1 2", "text"), LoadError);
}

TEST(Json, RefusesMoreValuesThanItMayHave) {
  // With keys that are none, and a text with commas that is one.
  const std::string text =
      R"({"a": [1, -2, 18446744073709551615, 0.5], "b": {"c,d": [[], {}, null, true]}, "e": ",[{,"})";
  constexpr size_t kValues = 17;  // four of them names
  size_t left = 2 * kValues + 1;
  EXPECT_EQ(parse_json(text, "text", left), parse_json(text, "text"));
  EXPECT_EQ(parse_json(text, "text", left), parse_json(text, "text"));
  EXPECT_EQ(left, 1u);
  for (size_t most = 0; most < kValues; ++most) {
    try {
      left = most;
      parse_json(text, "text", left);
      FAIL() << most;
    } catch (const LoadError& error) {
      EXPECT_EQ(std::string(error.what()), "text has more than " + std::to_string(most) + " values");
    }
  }
}

TEST(Scalar, Bfloat16RoundsToNearestEven) {
  EXPECT_EQ(bf16(1.0f).bits, 0x3f80);
  EXPECT_EQ(bf16(std::bit_cast<float>(0x3f808000u)).bits, 0x3f80);  // tie to even
  EXPECT_EQ(bf16(std::bit_cast<float>(0x3f818000u)).bits, 0x3f82);
  EXPECT_NE(static_cast<float>(bf16(std::bit_cast<float>(0x7fc00000u))), static_cast<float>(bf16(0.0f)));
  for (uint32_t bits = 0; bits < 0x10000; ++bits) {
    const float value = static_cast<float>(bf16::from_bits(static_cast<uint16_t>(bits)));
    if (value == value) {
      EXPECT_EQ(bf16(value).bits, bits);
    }
  }
}

}  // namespace
}  // namespace calandra

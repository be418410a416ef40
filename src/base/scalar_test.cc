#include "base/scalar.h"

#include <gtest/gtest.h>

#include <cmath>

namespace calandra {
namespace {

// 1.f * 2^e with a fraction of ten bits, from the definition of the format.
double value_of_half(uint16_t bits) {
  const int exponent = bits >> 10 & 31, fraction = bits & 1023;
  const double magnitude = exponent == 0 ? std::ldexp(fraction, -24) : std::ldexp(1024 + fraction, exponent - 25);
  return bits & 0x8000 ? -magnitude : magnitude;
}

f16 half(uint32_t bits) {
  f16 h;
  h.bits = static_cast<uint16_t>(bits);
  return h;
}

TEST(Half, EveryValueThereAndBack) {
  for (uint32_t bits = 0; bits < 0x10000; ++bits) {
    const auto value = static_cast<float>(half(bits));
    if ((bits & 0x7c00) != 0x7c00) {
      ASSERT_EQ(value, value_of_half(static_cast<uint16_t>(bits))) << bits;
      ASSERT_EQ(std::signbit(value), (bits & 0x8000) != 0) << bits;
    } else {
      ASSERT_EQ(std::isnan(value), (bits & 0x3ff) != 0) << bits;
      ASSERT_EQ(std::isinf(value), (bits & 0x3ff) == 0) << bits;
      if (std::isnan(value)) {
        ASSERT_EQ(f16(value).bits, bits | 0x200);
        continue;
      }
    }
    ASSERT_EQ(f16(value).bits, bits);
  }
}

TEST(Half, RoundsToNearestEven) {
  for (uint32_t bits = 0; bits < 0x7bff; ++bits) {  // between each two neighbours, infinity excluded
    const double low = value_of_half(static_cast<uint16_t>(bits)),
                 high = value_of_half(static_cast<uint16_t>(bits + 1));
    const auto middle = static_cast<float>((low + high) / 2);  // exact: one bit more than a half has
    for (const uint32_t sign : {0u, 0x8000u}) {
      const float s = sign != 0 ? -1.0f : 1.0f;
      ASSERT_EQ(f16(s * middle).bits, sign | (bits + (bits & 1))) << bits;
      ASSERT_EQ(f16(s * std::nextafter(middle, 0.0f)).bits, sign | bits) << bits;
      ASSERT_EQ(f16(s * std::nextafter(middle, 1e9f)).bits, sign | (bits + 1)) << bits;
    }
  }
  EXPECT_EQ(f16(std::nextafter(65520.0f, 0.0f)).bits, 0x7bff);
  EXPECT_EQ(f16(65520.0f).bits, 0x7c00);
  EXPECT_EQ(f16(-1e30f).bits, 0xfc00);
}

TEST(Float8, RoundsToNearestEven) {
  const auto value_of = [](uint32_t bits) {
    return static_cast<float>(f8_e4m3::from_bits(static_cast<uint8_t>(bits)));
  };
  for (uint32_t bits = 0; bits <= 0x7e; ++bits) {
    for (const uint32_t sign : {0u, 0x80u}) {
      const float s = sign != 0 ? -1.0f : 1.0f;
      ASSERT_EQ(f8_e4m3::nearest(value_of(sign | bits)).bits, sign | bits);
      if (bits == 0x7e) continue;
      const float middle = (value_of(bits) + value_of(bits + 1)) / 2;
      ASSERT_EQ(f8_e4m3::nearest(s * middle).bits, sign | (bits + (bits & 1))) << bits;
      ASSERT_EQ(f8_e4m3::nearest(s * std::nextafter(middle, 0.0f)).bits, sign | bits) << bits;
      ASSERT_EQ(f8_e4m3::nearest(s * std::nextafter(middle, 1e9f)).bits, sign | (bits + 1)) << bits;
    }
  }
  EXPECT_EQ(f8_e4m3::nearest(1e30f).bits, 0x7e);  // 448 is the largest
  EXPECT_EQ(f8_e4m3::nearest(-INFINITY).bits, 0xfe);
  EXPECT_EQ(f8_e4m3::nearest(NAN).bits, 0x7f);
  EXPECT_EQ(f8_e4m3::nearest(-0.0f).bits, 0x80);
}

#ifdef __FLT16_MANT_DIG__
TEST(Half, IsWhatTheCompilerComputes) {
  for (uint64_t bits = 0; bits < (uint64_t{1} << 32); bits += 9973) {
    const auto value = std::bit_cast<float>(static_cast<uint32_t>(bits));
    ASSERT_EQ(f16(value).bits, std::bit_cast<uint16_t>(static_cast<_Float16>(value))) << bits;
  }
}
#endif

}  // namespace
}  // namespace calandra

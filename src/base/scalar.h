// Number formats of weights and activations: bfloat16, IEEE half, FP8 e4m3. Conversions from f32 round to nearest even.
#pragma once

#include <bit>
#include <cstdint>

namespace calandra {

struct bf16 {
  uint16_t bits = 0;

  bf16() = default;
  explicit bf16(float value) : bits(round(value)) {}
  explicit operator float() const { return std::bit_cast<float>(static_cast<uint32_t>(bits) << 16); }
  static bf16 from_bits(uint16_t bits) {
    bf16 x;
    x.bits = bits;
    return x;
  }

 private:
  static uint16_t round(float value) {
    const uint32_t u = std::bit_cast<uint32_t>(value);
    if ((u & 0x7fffffffu) > 0x7f800000u) return static_cast<uint16_t>((u >> 16) | 0x40u);  // NaN stays NaN
    return static_cast<uint16_t>((u + 0x7fffu + ((u >> 16) & 1u)) >> 16);
  }
};

// In integers, since _Float16 is an extension that not every compiler has on every processor.
struct f16 {
  uint16_t bits = 0;

  f16() = default;
  explicit f16(float value) : bits(round(value)) {}
  explicit operator float() const {
    const uint32_t sign = (bits & 0x8000u) << 16, magnitude = (bits & 0x7fffu) << 13;
    if (magnitude >= 0x0f800000u)  // infinity; NaN, made quiet
      return std::bit_cast<float>(sign | 0x7f800000u | magnitude | (magnitude > 0x0f800000u ? 0x400000u : 0u));
    if (magnitude < 0x00800000u) {  // subnormal: the fraction in units of 2^-24
      const float value = static_cast<float>(bits & 0x3ffu) * 0x1p-24f;
      return sign != 0 ? -value : value;
    }
    return std::bit_cast<float>(sign | (magnitude + 0x38000000u));
  }

 private:
  static uint16_t round(float value) {
    uint32_t u = std::bit_cast<uint32_t>(value);
    const uint32_t sign = (u >> 16) & 0x8000u;
    u &= 0x7fffffffu;
    if (u > 0x7f800000u) return static_cast<uint16_t>(sign | 0x7e00u | ((u >> 13) & 0x3ffu));  // NaN stays NaN
    if (u >= 0x477ff000u) return static_cast<uint16_t>(sign | 0x7c00u);                        // 65520 and above
    if (u < 0x38800000u)  // below 2^-14: adding 0.5 leaves the fraction in units of 2^-24, rounded
      return static_cast<uint16_t>(sign | (std::bit_cast<uint32_t>(std::bit_cast<float>(u) + 0.5f) - 0x3f000000u));
    return static_cast<uint16_t>(sign | ((u - 0x38000000u + 0xfffu + ((u >> 13) & 1u)) >> 13));
  }
};

// Four exponent bits, three of fraction, no infinity ("fn"): the largest number is 448, 0x7f and 0xff are NaN.
struct f8_e4m3 {
  uint8_t bits = 0;

  explicit operator float() const {
    const uint32_t sign = (bits & 0x80u) << 24, magnitude = bits & 0x7fu;
    if (magnitude == 0x7f) return std::bit_cast<float>(sign | 0x7fc00000u);
    if (magnitude < 8) {  // subnormal: the fraction in units of 2^-9
      const float value = static_cast<float>(magnitude) * 0x1p-9f;
      return sign != 0 ? -value : value;
    }
    return std::bit_cast<float>(sign | ((magnitude << 20) + (120u << 23)));
  }
  // The nearest one, at most 448, its largest; NaN stays NaN.
  static f8_e4m3 nearest(float value) {
    const uint32_t u = std::bit_cast<uint32_t>(value), magnitude = u & 0x7fffffffu;
    const auto sign = static_cast<uint8_t>(u >> 31 << 7);
    if (magnitude > 0x7f800000u) return from_bits(0x7f);
    if (magnitude >= 0x43e00000u) return from_bits(sign | 0x7e);  // 448
    if (magnitude < 0x3c800000u) {                                // 2^-6: adding 2^14 rounds to multiples of 2^-9
      const float rounded = std::bit_cast<float>(magnitude) + 0x1p14f;
      return from_bits(sign | static_cast<uint8_t>(std::bit_cast<uint32_t>(rounded) & 0xffu));
    }
    const uint32_t rounded = magnitude + 0x7ffffu + ((magnitude >> 20) & 1u);
    return from_bits(sign | static_cast<uint8_t>((rounded - (120u << 23)) >> 20));
  }
  static f8_e4m3 from_bits(uint8_t bits) {
    f8_e4m3 x;
    x.bits = bits;
    return x;
  }
};

}  // namespace calandra

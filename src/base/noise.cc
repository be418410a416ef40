#include "base/noise.h"

namespace calandra {
namespace {

constexpr float kLn2High = 0x1.62e000p-1f;  // 12 bits: n * kLn2High is exact for |n| < 2^12
constexpr float kLn2Low = 0x1.0bfbe8p-15f;

// log(1 + r) for r in [sqrt(1/2) - 1, sqrt(2) - 1] is r - r^2/2 + r^3 Q(r). Q of degree 8: interpolation at Chebyshev
// nodes, rounded to f32; its error is below 1e-8 of the result.
constexpr float kLog[] = {0x1.555554p-2f,  -0x1.fffffcp-3f, 0x1.999d5ap-3f,  -0x1.555b4ap-3f, 0x1.23d21ap-3f,
                          -0x1.fcf4c6p-4f, 0x1.dea282p-4f,  -0x1.d635bcp-4f, 0x1.1d8ea6p-4f};

// exponent * log 2 + log(1 + r)
float log_of(float exponent, float r) {
  float q = kLog[8];
  for (int i = 7; i >= 0; --i) q = q * r + kLog[i];
  const float t = (r * r) * (r * q - 0.5f);
  return exponent * kLn2High + (r + (t + exponent * kLn2Low));
}

}  // namespace

float log_f32(float x) {
  // x = 2^e m with m in [sqrt(1/2), sqrt(2))
  constexpr uint32_t kSqrtHalf = 0x3f3504f3u;
  const uint32_t offset = std::bit_cast<uint32_t>(x) - kSqrtHalf;
  const int32_t e = static_cast<int32_t>(offset) >> 23;
  const float m = std::bit_cast<float>((offset & 0x007fffffu) + kSqrtHalf);
  return log_of(static_cast<float>(e), m - 1.0f);
}

float gumbel(uint32_t x) {
  constexpr float kBelowOne = 0x1.fffffep-1f;  // 1 - 2^-24
  constexpr float kSmall = 0x1.2bec34p-2f;     // 1 - sqrt(1/2): below it, 1 - w would lose bits of w
  float w = (static_cast<float>(x) + 0.5f) * 0x1p-32f;
  if (w > kBelowOne) w = kBelowOne;
  const float minus_log1p = w < kSmall ? -log_of(0.0f, -w) : -log_f32(1.0f - w);
  return -log_f32(minus_log1p);
}

void exp_nonpositive(const float* x, float* out, int64_t n) {
  // exp(x) = 2^k exp(r), k = round(x / log 2), r in [-log(2)/2, log(2)/2]; exp(r) = 1 + r + r^2 Q(r).
  constexpr float kLog2E = 0x1.715476p+0f;
  constexpr float kRound = 0x1.8p23f;  // adding it rounds to an integer, kept in the low bits
  for (int64_t i = 0; i < n; ++i) {
    const float v = x[i] < -87.0f ? -87.0f : x[i];
    const float shifted = v * kLog2E + kRound;
    const float k = shifted - kRound;
    const float r = (v - k * kLn2High) - k * kLn2Low;
    float q = 0x1.6d1122p-10f;
    q = q * r + 0x1.120b86p-7f;
    q = q * r + 0x1.55551ap-5f;
    q = q * r + 0x1.5554dcp-3f;
    q = q * r + 0.5f;
    const float y = (r * r) * q + r + 1.0f;
    const uint32_t scaled = std::bit_cast<uint32_t>(y) + (std::bit_cast<uint32_t>(shifted) << 23);
    out[i] = x[i] < -87.0f ? 0.0f : std::bit_cast<float>(scaled);
  }
}

void exp_mass(const float* x, uint64_t* out, int64_t n) {
  constexpr int64_t kBlock = 256;
  constexpr double kInteger = 0x1p52;  // adding it rounds to an integer, kept in the low bits
  float e[kBlock];
  for (int64_t begin = 0; begin < n; begin += kBlock) {
    const int64_t count = n - begin < kBlock ? n - begin : kBlock;
    exp_nonpositive(x + begin, e, count);
    for (int64_t i = 0; i < count; ++i)
      out[begin + i] =
          std::bit_cast<uint64_t>(static_cast<double>(e[i]) * 0x1p44 + kInteger) - std::bit_cast<uint64_t>(kInteger);
  }
}

}  // namespace calandra

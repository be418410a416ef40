// The noise and the masses of base/noise.h in kernels: the operations of noise.cc in their order, so the same bits.
// Files that include this are compiled with -fmad=false.
#pragma once

#include "base/noise.h"

namespace calandra::cuda {

constexpr float kLn2High = 0x1.62e000p-1f;
constexpr float kLn2Low = 0x1.0bfbe8p-15f;

__device__ __forceinline__ float log_of(float exponent, float r) {
  float q = 0x1.1d8ea6p-4f;
  q = q * r + -0x1.d635bcp-4f;
  q = q * r + 0x1.dea282p-4f;
  q = q * r + -0x1.fcf4c6p-4f;
  q = q * r + 0x1.23d21ap-3f;
  q = q * r + -0x1.555b4ap-3f;
  q = q * r + 0x1.999d5ap-3f;
  q = q * r + -0x1.fffffcp-3f;
  q = q * r + 0x1.555554p-2f;
  const float t = (r * r) * (r * q - 0.5f);
  return exponent * kLn2High + (r + (t + exponent * kLn2Low));
}

__device__ __forceinline__ float log_f32(float x) {
  constexpr uint32_t kSqrtHalf = 0x3f3504f3u;
  const uint32_t offset = __float_as_uint(x) - kSqrtHalf;
  const int e = static_cast<int>(offset) >> 23;
  const float m = __uint_as_float((offset & 0x007fffffu) + kSqrtHalf);
  return log_of(static_cast<float>(e), m - 1.0f);
}

__device__ __forceinline__ float gumbel(uint32_t x) {
  constexpr float kBelowOne = 0x1.fffffep-1f;
  constexpr float kSmall = 0x1.2bec34p-2f;
  float w = (__uint2float_rn(x) + 0.5f) * 0x1p-32f;
  if (w > kBelowOne) w = kBelowOne;
  const float minus_log1p = w < kSmall ? -log_of(0.0f, -w) : -log_f32(1.0f - w);
  return -log_f32(minus_log1p);
}

__device__ __forceinline__ float gumbel_bound(uint32_t x) {
  return static_cast<float>(__clz(static_cast<int>(x)) + 1) * 0.69315f + 1e-4f;
}

__device__ __forceinline__ float exp_nonpositive(float x) {
  constexpr float kLog2E = 0x1.715476p+0f, kRound = 0x1.8p23f;
  const float v = x < -87.0f ? -87.0f : x, shifted = v * kLog2E + kRound, k = shifted - kRound;
  const float r = (v - k * kLn2High) - k * kLn2Low;
  float q = 0x1.6d1122p-10f;
  q = q * r + 0x1.120b86p-7f;
  q = q * r + 0x1.55551ap-5f;
  q = q * r + 0x1.5554dcp-3f;
  q = q * r + 0.5f;
  const float y = (r * r) * q + r + 1.0f;
  const uint32_t scaled = __float_as_uint(y) + (__float_as_uint(shifted) << 23);
  return x < -87.0f ? 0.0f : __uint_as_float(scaled);
}

__device__ __forceinline__ uint64_t exp_mass(float x) {
  constexpr double kInteger = 0x1p52;
  return static_cast<uint64_t>(__double_as_longlong(static_cast<double>(exp_nonpositive(x)) * 0x1p44 + kInteger) -
                               __double_as_longlong(kInteger));
}

}  // namespace calandra::cuda

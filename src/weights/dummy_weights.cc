#include "weights/dummy_weights.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <cstring>

namespace calandra {
namespace {

// splitmix64: 64 random bits per step.
struct Random {
  uint64_t state;
  uint64_t next() {
    uint64_t z = state += 0x9e3779b97f4a7c15u;
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
    z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
    return z ^ (z >> 31);
  }
  double uniform() { return static_cast<double>(next() >> 11) * 0x1p-53; }
};

uint64_t hash(std::string_view name) {  // FNV-1a
  uint64_t h = 0xcbf29ce484222325u;
  for (const unsigned char c : name) h = (h ^ c) * 0x100000001b3u;
  return h;
}

// Codes without the upper exponent bit: 0, subnormals and numbers below 2, as many of each exponent.
constexpr uint8_t kCodes = 0xbf;

void fill_fp8(Random& random, uint8_t* x, int64_t n) {
  constexpr uint64_t kEight = 0x0101010101010101u * kCodes;
  int64_t i = 0;
  for (; i + 8 <= n; i += 8) {
    const uint64_t r = random.next() & kEight;
    std::memcpy(x + i, &r, sizeof r);
  }
  for (uint64_t r = random.next() & kEight; i < n; ++i, r >>= 8) x[i] = static_cast<uint8_t>(r);
}

using Levels = std::array<uint16_t, 256>;

void fill_bf16(Random& random, const Levels& level, uint16_t* x, int64_t n) {
  int64_t i = 0;
  for (; i + 8 <= n; i += 8) {
    uint64_t r = random.next();
    for (int j = 0; j < 8; ++j, r >>= 8) x[i + j] = level[r & 255];
  }
  for (uint64_t r = random.next(); i < n; ++i, r >>= 8) x[i] = level[r & 255];
}

void fill_f32(Random& random, std::string_view name, float* x, int64_t n) {
  for (int64_t i = 0; i < n; ++i) {
    const double u = random.uniform();
    if (name.ends_with("A_log")) {
      x[i] = static_cast<float>(std::log(1 + 15 * u));
    } else if (name.ends_with("dt_bias")) {
      x[i] = static_cast<float>(-4 + 3 * u);
    } else if (name.ends_with("linear_attn.norm.weight")) {
      x[i] = 1;  // the plain one
    } else {
      x[i] = static_cast<float>(0.2 * (u - 0.5));
    }
  }
}

}  // namespace

void fill_dummy(std::string_view name, int64_t row, const Tensor& tensor) {
  const uint64_t seed = hash(name);
  if (tensor.dtype() == DType::kF32) {
    Random random{seed};
    return fill_f32(random, name, tensor.as<float>(), tensor.numel());
  }
  // 256 levels, uniform, of standard deviation 1 / sqrt(K): the size of a normalised vector's projection stays near 1.
  const int64_t K = tensor.size(-1);
  Levels level{};
  for (int i = 0; i < 256; ++i)
    level[i] = bf16(static_cast<float>((i - 127.5) / 127.5 * std::sqrt(3.0 / static_cast<double>(K)))).bits;
  for (int64_t r = 0; r < tensor.numel() / std::max<int64_t>(1, K); ++r) {
    Random random{Random{seed ^ static_cast<uint64_t>(row + r)}.next()};
    if (tensor.dtype() == DType::kF8E4M3)
      fill_fp8(random, reinterpret_cast<uint8_t*>(tensor.as<f8_e4m3>()) + r * K, K);
    else
      fill_bf16(random, level, reinterpret_cast<uint16_t*>(tensor.as<bf16>()) + r * K, K);
  }
}

float dummy_scale(int64_t K) {  // to a standard deviation of 1 / sqrt(K)
  double squares = 0;
  for (int code = 0; code < 256; ++code) {
    const double value = static_cast<float>(f8_e4m3::from_bits(code & kCodes));
    squares += value * value / 256;
  }
  return static_cast<float>(1 / std::sqrt(squares * static_cast<double>(K)));
}

bool released_in_fp8(std::string_view name) {
  for (const char* part : {"embed", "lm_head", "in_proj_a", "in_proj_b", "visual.", "mtp.fc", "eh_proj"})
    if (name.find(part) != std::string_view::npos) return false;
  return !name.ends_with("gate.weight");
}

}  // namespace calandra

#include "layers/rotary_embedding.h"

#include <algorithm>
#include <cmath>
#include <numbers>

#include "ops/backend.h"

namespace calandra {
namespace {

// YaRN, arXiv:2309.00071 as HF's _compute_yarn_parameters: frequencies that turn less than beta_slow times within the
// original context are divided by factor, those above beta_fast stay, a linear ramp between.
std::vector<double> yarn(const RopeParameters& p) {
  const double dim = static_cast<double>(p.rotary_dim);
  const auto correction_dim = [&](double rotations) {
    return dim *
           std::log(static_cast<double>(p.original_max_position_embeddings) / (rotations * 2 * std::numbers::pi)) /
           (2 * std::log(p.rope_theta));
  };
  double low = correction_dim(p.beta_fast);
  double high = correction_dim(p.beta_slow);
  if (p.truncate) {
    low = std::floor(low);
    high = std::ceil(high);
  }
  low = std::max(low, 0.0);
  high = std::min(high, dim - 1);
  if (low == high) high += 0.001;  // HF: keeps the ramp finite

  std::vector<double> inv_freq;
  for (int64_t i = 0; i < p.rotary_dim / 2; ++i) {
    const double plain = std::pow(p.rope_theta, -2.0 * static_cast<double>(i) / dim);
    const double ramp = std::clamp((static_cast<double>(i) - low) / (high - low), 0.0, 1.0);
    inv_freq.push_back(plain / p.factor * ramp + plain * (1 - ramp));
  }
  return inv_freq;
}

}  // namespace

RotaryEmbedding::RotaryEmbedding(const RopeParameters& p, Backend& backend) {
  const int64_t half = p.rotary_dim / 2;
  if (p.rope_type == RopeParameters::Type::kYarn) {
    inv_freq_ = yarn(p);
    scale_ = p.attention_factor > 0 ? p.attention_factor : p.factor <= 1 ? 1.0 : 0.1 * std::log(p.factor) + 1.0;
  } else {
    for (int64_t i = 0; i < half; ++i)
      inv_freq_.push_back(std::pow(p.rope_theta, -2.0 * static_cast<double>(i) / static_cast<double>(p.rotary_dim)));
  }

  // Interleaved M-RoPE: frequency i belongs to H when i mod 3 = 1 and i < 3 section[1], to W when i mod 3 = 2 and
  // i < 3 section[2], otherwise to T.
  std::vector<int32_t> axis(half, 0);
  for (int64_t i = 0; i < half; ++i) {
    const int64_t a = i % 3;
    if (a != 0 && i < 3 * p.mrope_section[a]) axis[i] = static_cast<int32_t>(a);
  }

  const size_t frequency_bytes = half * sizeof(double);
  buffer_ = backend.allocate(frequency_bytes + half * sizeof(int32_t));
  frequencies_.inv_freq = buffer_.tensor(DType::kF64, {half});
  frequencies_.axis = buffer_.tensor(DType::kI32, {half}, frequency_bytes);
  frequencies_.scale = static_cast<float>(scale_);
  backend.copy_bytes(frequencies_.inv_freq.data(), inv_freq_.data(), frequency_bytes);
  backend.copy_bytes(frequencies_.axis.data(), axis.data(), half * sizeof(int32_t));
}

Tensor RotaryEmbedding::table(ExecContext& ctx, const Tensor& positions, DType dtype) const {
  return ops::rope_table(ctx, positions, frequencies_, dtype);
}

}  // namespace calandra

// Rotary embedding: inverse frequencies of a config, then a table of cosines and sines per step.
// transformers 5.17 modeling_rope_utils.py (default, yarn), Qwen3_5TextRotaryEmbedding (interleaved M-RoPE).
#pragma once

#include <algorithm>
#include <array>
#include <vector>

#include "ops/attention.h"

namespace calandra {

// rope_parameters of a config, under HF's names.
struct RopeParameters {
  enum class Type { kDefault, kYarn };
  Type rope_type = Type::kDefault;
  double rope_theta = 10000;               // HF's default when rope_parameters are absent
  int64_t rotary_dim = 0;                  // head_dim * partial_rotary_factor, even
  std::array<int64_t, 3> mrope_section{};  // frequencies of the T, H, W axes; zeros: all frequencies take T
  // yarn
  double factor = 1;
  int64_t original_max_position_embeddings = 0;
  double attention_factor = 0;  // 0: 0.1 ln(factor) + 1
  double beta_fast = 32;
  double beta_slow = 1;
  bool truncate = true;

  // Tokens of the longest sequence: max_position_embeddings, or what yarn stretches the original to, if that is more.
  int64_t reach(int64_t max_position_embeddings) const {
    const double stretched = factor * static_cast<double>(original_max_position_embeddings);
    return std::max(max_position_embeddings, static_cast<int64_t>(std::min(stretched, 0x1p30)));
  }
};

class RotaryEmbedding {
 public:
  // Puts the frequencies into memory of the backend's device.
  RotaryEmbedding(const RopeParameters& parameters, Backend& backend);

  // Cosines and sines for every row of the batch, [2, T, R / 2] in `dtype`.
  Tensor table(ExecContext& ctx, const Tensor& positions, DType dtype) const;

  const std::vector<double>& inv_freq() const { return inv_freq_; }
  double scale() const { return scale_; }

 private:
  std::vector<double> inv_freq_;  // [R / 2]
  double scale_ = 1;
  Buffer buffer_;
  ops::RopeFrequencies frequencies_;
};

}  // namespace calandra

// The causal convolution's inputs in a range of channels, over the tokens of one sequence in one step.
#pragma once

#include <cstring>

#include "backends/cpu/chain.h"
#include "backends/cpu/recurrence_kernels.h"
#include "ops/cache_views.h"

namespace calandra {

// Channels [first, first + count) of a chain. Copies the window of the chain's source, so that windows may be written
// in any order with reads.
class ConvChannels {
 public:
  // window: working memory for (W - 1) * count elements
  ConvChannels(const Tensor& x, const ConvState& state, const Chain& chain, int64_t first, int64_t count,
               std::byte* window)
      : x_(x),
        state_(state),
        chain_(chain),
        first_(first),
        bytes_(count * static_cast<int64_t>(size_of(x.dtype()))),
        columns_(state.window.size(1)),
        window_(window) {
    if (chain.src < 0) {
      std::memset(window_, 0, columns_ * bytes_);
      return;
    }
    for (int64_t j = 0; j < columns_; ++j) std::memcpy(window_ + j * bytes_, of(state_.window, chain.src, j), bytes_);
  }

  // Raw inputs of a token, from -(W - 1) on.
  const std::byte* at(int64_t token) const {
    if (token < 0) return window_ + (columns_ + token) * bytes_;
    if (token < chain_.pending) return of(state_.pending, chain_.src, token);
    return x_.bytes_at(chain_.row_of(token) * x_.stride(0) + first_);
  }
  void taps(int64_t token, const void** x) const {
    for (int64_t j = 0; j <= columns_; ++j) x[j] = at(token - columns_ + j);
  }

  // The windows at the segments' ends and the new pending inputs: after all reads of this range, in all threads.
  void write(const Batch& batch) const {
    const int32_t* dst = batch.state_dst.as<int32_t>();
    for (int64_t s = chain_.segment_begin; s < chain_.segment_end; ++s) {
      const int64_t end = chain_.segment_tokens(batch, s);
      for (int64_t j = 0; j < columns_; ++j) std::memcpy(of(state_.window, dst[s], j), at(end - columns_ + j), bytes_);
    }
    for (int64_t i = 0; i < chain_.drafts; ++i)
      std::memcpy(of(state_.pending, dst[chain_.segment_end - 1], i), at(chain_.certain() + i), bytes_);
  }

 private:
  std::byte* of(const Tensor& columns, int64_t slot, int64_t j) const {
    return columns.bytes_at(slot * columns.stride(0) + j * columns.stride(1) + first_);
  }

  const Tensor& x_;
  const ConvState& state_;
  const Chain& chain_;
  const int64_t first_, bytes_, columns_;
  std::byte* window_;
};

// [count, W] as [W, stride]
inline void transpose_conv_weight(const float* weight, int64_t count, int64_t W, int64_t stride, float* out) {
  for (int64_t c = 0; c < count; ++c)
    for (int64_t j = 0; j < W; ++j) out[j * stride + c] = weight[c * W + j];
}

}  // namespace calandra

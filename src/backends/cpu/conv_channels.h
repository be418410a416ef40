// The causal convolution's inputs in a range of channels, over the tokens of one sequence in one step.
#pragma once

#include <algorithm>
#include <cstring>

#include "backends/cpu/recurrence_kernels.h"
#include "ops/batch.h"
#include "ops/cache_views.h"

namespace calandra {

// What a step does with the state of one sequence (ops/recurrence.h): tokens 0 .. pending - 1 are the accepted pending
// ones of `src`, then come the rows; the last `drafts` of them leave no trace in the state.
struct Chain {
  int64_t segment_begin, segment_end;
  int64_t row, rows;
  int64_t pending, drafts;
  int32_t src;  // slot, -1: the empty state
  bool live;    // active, with rows

  int64_t certain() const { return pending + rows - drafts; }  // tokens
  int64_t row_of(int64_t token) const { return row + token - pending; }
  // The token behind the last one that segment s folds into its state.
  int64_t segment_tokens(const Batch& batch, int64_t s) const {
    if (s + 1 == segment_end) return certain();
    return pending + batch.segment_start.as<int32_t>()[s + 1] - row;
  }
};

inline Chain chain_of(const Batch& batch, const Tensor& accepted, int64_t sequence) {
  const int32_t* query_start = batch.query_start.as<int32_t>();
  const int32_t* owner = batch.segment_sequence.as<int32_t>();
  const auto [begin, end] = std::equal_range(owner, owner + batch.segments(), static_cast<int32_t>(sequence));
  Chain chain{.segment_begin = begin - owner,
              .segment_end = end - owner,
              .row = query_start[sequence],
              .rows = query_start[sequence + 1] - query_start[sequence],
              .pending = 0,
              .drafts = 0,
              .src = -1,
              .live = false};
  chain.live = batch.active.as<int32_t>()[sequence] != 0 && chain.rows > 0 && begin != end;
  if (!chain.live) return chain;
  chain.src = batch.state_src.as<int32_t>()[chain.segment_begin];
  chain.pending = chain.src < 0 ? 0 : accepted.as<int32_t>()[chain.src];
  chain.drafts = batch.draft_count.as<int32_t>()[sequence];
  return chain;
}

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

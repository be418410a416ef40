// What a step does with the state of one sequence (ops/recurrence.h).
#pragma once

#include <algorithm>

#include "ops/batch.h"

namespace calandra {

// Tokens 0 .. pending - 1 are the accepted pending ones of `src`, then come the rows; the last `drafts` of them leave
// no trace in the state.
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

// Sequences that have at least half of the rows of the longest: those that fill the threads.
inline int64_t long_sequences(const Batch& batch) {
  const int32_t* start = batch.query_start.as<int32_t>();
  const int64_t B = batch.sequences();
  int64_t longest = 0, count = 0;
  for (int64_t b = 0; b < B; ++b) longest = std::max<int64_t>(longest, start[b + 1] - start[b]);
  for (int64_t b = 0; b < B; ++b) count += 2 * (start[b + 1] - start[b]) >= longest;
  return count;
}

}  // namespace calandra

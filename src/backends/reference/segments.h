// The segments of a batch that change state, as the recurrences walk them (ops/recurrence.h).
#pragma once

#include "ops/batch.h"
#include "ops/cache_views.h"

namespace calandra::reference {

struct Segment {
  int64_t begin, drafts_begin, end;  // rows; certain ones, then drafts
  int64_t src, dst;                  // slots; src -1: the empty state
  int64_t folded;                    // accepted pending inputs of src to fold in first
};

// Calls each(segment) in order; rows of inactive sequences go to idle_row(row).
template <class Each, class IdleRow>
void for_each_segment(const Batch& batch, const Tensor& accepted, Each each, IdleRow idle_row) {
  const auto at = [](const Tensor& tensor, int64_t i) -> int64_t { return tensor.as<int32_t>()[i]; };
  const int64_t S = batch.segments();
  for (int64_t s = 0; s < S; ++s) {
    const int64_t b = at(batch.segment_sequence, s);
    Segment segment{};
    segment.begin = at(batch.segment_start, s);
    segment.end = at(batch.segment_start, s + 1);
    if (!at(batch.active, b)) {
      for (int64_t t = segment.begin; t < segment.end; ++t) idle_row(t);
      continue;
    }
    if (at(batch.query_start, b) == at(batch.query_start, b + 1)) continue;
    const bool first = s == 0 || at(batch.segment_sequence, s - 1) != b;
    const bool last = s + 1 == S || at(batch.segment_sequence, s + 1) != b;
    segment.drafts_begin = segment.end - (last ? at(batch.draft_count, b) : 0);
    CHECK_GE(segment.drafts_begin, segment.begin);
    segment.src = at(batch.state_src, s);
    segment.dst = at(batch.state_dst, s);
    segment.folded = first && segment.src >= 0 ? at(accepted, segment.src) : 0;
    each(segment);
  }
}

}  // namespace calandra::reference

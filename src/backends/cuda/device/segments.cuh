// The segments of a batch as the recurrences walk them on the device (ops/recurrence.h). Everything is read from the
// batch there; the host knows the number of sequences and of segments only.
#pragma once

#include <cstdint>

#include "ops/batch.h"

namespace calandra::cuda {

// A sequence with at most so many rows in a step has them computed one by one, bit for bit as decoding does; the rows
// of a longer chunk share tensor core tiles where there is a kernel for that.
constexpr int kFewRows = 16;

struct Segment {
  int begin, drafts_begin, end;  // rows; certain ones, then drafts
  int src, dst;                  // slots; src -1: the empty state
  int folded;                    // accepted pending inputs of src to fold in first
};

struct SegmentedBatch {
  SegmentedBatch(const Batch& batch, const Tensor& accepted_counts)
      : query_start(batch.query_start.as<int32_t>()),
        active(batch.active.as<int32_t>()),
        draft_count(batch.draft_count.as<int32_t>()),
        segment_start(batch.segment_start.as<int32_t>()),
        segment_sequence(batch.segment_sequence.as<int32_t>()),
        state_src(batch.state_src.as<int32_t>()),
        state_dst(batch.state_dst.as<int32_t>()),
        accepted(accepted_counts.as<int32_t>()),
        segments(static_cast<int>(batch.segment_sequence.size(0))) {}

  const int32_t *query_start, *active, *draft_count, *segment_start, *segment_sequence, *state_src, *state_dst,
      *accepted;
  int segments;

  // True if sequence b has rows that change its state.
  __device__ __forceinline__ bool runs(int b) const { return active[b] && query_start[b] < query_start[b + 1]; }
  __device__ __forceinline__ bool has_many_rows(int b) const { return query_start[b + 1] - query_start[b] > kFewRows; }
  // The first segment of sequence b.
  __device__ __forceinline__ int first(int b) const {
    int low = 0, high = segments;
    while (low < high) {
      const int middle = (low + high) / 2;
      if (segment_sequence[middle] < b)
        low = middle + 1;
      else
        high = middle;
    }
    return low;
  }
  __device__ __forceinline__ bool belongs(int s, int b) const { return s < segments && segment_sequence[s] == b; }
  // Segment s of sequence b, which runs.
  __device__ __forceinline__ Segment at(int s, int b) const {
    Segment segment;
    segment.begin = segment_start[s];
    segment.end = segment_start[s + 1];
    segment.drafts_begin = segment.end - (belongs(s + 1, b) ? 0 : draft_count[b]);
    segment.src = state_src[s];
    segment.dst = state_dst[s];
    const bool is_first = s == 0 || segment_sequence[s - 1] != b;
    segment.folded = is_first && segment.src >= 0 ? accepted[segment.src] : 0;
    return segment;
  }
  // The last one.
  __device__ __forceinline__ Segment last(int b) const {
    int s = first(b);
    while (belongs(s + 1, b)) ++s;
    return at(s, b);
  }
};

}  // namespace calandra::cuda

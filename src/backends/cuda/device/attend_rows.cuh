// The kernels around attend.cuh and their launches. Rows that a source skips are another kernel's.
//   attend_rows   one block per row, group of query heads and, with few rows, range; shared memory as attend.cuh says
//   join_ranges   one block per row, head and kAttendThreads values, up to 4 spans of ranges at once; 4 kB of shared
//                 memory. Bound by the latency of its reads and joins, which are one after the other in a span.
#pragma once

#include <algorithm>
#include <limits>

#include "backends/cuda/device/attend.cuh"
#include "backends/cuda/device/launch.cuh"
#include "backends/cuda/device/pipeline.cuh"
#include "backends/cuda/device/rows.cuh"
#include "backends/cuda/device/segments.cuh"
#include "ops/batch.h"
#include "ops/exec_context.h"

namespace calandra::cuda {

constexpr int kHeadsOfBlock = 4;  // query heads that share a read of the keys

// What attention reads of a batch.
struct PagedBatch {
  // all_few: no sequence has many rows.
  explicit PagedBatch(const Batch& batch, bool all_few = false)
      : query_start(batch.query_start.as<int32_t>()),
        row_sequence(batch.row_sequence.as<int32_t>()),
        token_index(batch.token_index.as<int32_t>()),
        active(batch.active.as<int32_t>()),
        block_table(batch.block_table.as<int32_t>()),
        table_stride(batch.block_table.stride(0)),
        few_rows(all_few ? std::numeric_limits<int>::max() : kFewRows) {}
  __device__ __forceinline__ bool has_many_rows(int64_t b) const {
    return query_start[b + 1] - query_start[b] > few_rows;
  }
  const int32_t *query_start, *row_sequence, *token_index, *active, *block_table;
  int64_t table_stride;
  int few_rows;  // of a sequence, at most
};

// Keys [begin, end) that a row sees; {0, 0} if there are none.
struct KeySpan {
  int64_t begin, end;
};

// What a source of pages says of a row.
__device__ __forceinline__ KeySpan paged_span(const PagedBatch& batch, const int32_t* first_key, int64_t row) {
  const int64_t b = batch.row_sequence[row], begin = first_key != nullptr ? first_key[b] : 0,
                end = batch.token_index[row] + 1;
  return batch.active[b] && begin < end ? KeySpan{begin, end} : KeySpan{0, 0};
}

// Pages [pages, Hkv, page, D], or [pages, page, D] of one head.
template <class T>
struct Pages {
  explicit Pages(const Tensor& x)
      : data(static_cast<const T*>(x.data())),
        page_stride(x.stride(0)),
        head_stride(x.rank() == 4 ? x.stride(1) : 0),
        token_stride(x.stride(-2)),
        page_tokens(static_cast<int>(x.size(-2))) {}
  // Numbers of token `index` of the sequence with this block table.
  __device__ __forceinline__ const T* at(const int32_t* table, int64_t index, int64_t head) const {
    const int i = static_cast<int>(index), page = i / page_tokens;
    return data + table[page] * page_stride + head * head_stride + (i - page * page_tokens) * token_stride;
  }
  const T* data;
  int64_t page_stride, head_stride, token_stride;
  int page_tokens;
};

// Queries [T, H, D] and, for the extra numbers of keys, [T, H, R].
template <class Q, class P = Q>
struct HeadRows {
  Rows<const Q> q;
  Rows<const P> extra;
};

struct AttendShape {
  int64_t T, H, Hkv, D;  // D: numbers of a value
  int64_t R;             // extra numbers of a key
  float scale;

  int64_t group() const { return H / Hkv; }
  // Blocks of one row.
  int64_t parts(int heads) const { return Hkv * ((group() + heads - 1) / heads); }
  // Rows whose blocks of attend_rows fill the device.
  int64_t most_rows() const { return std::max<int64_t>(1, 2 * kMultiprocessors / parts(kHeadsOfBlock)); }
};

// Memory for the results of ranges, when few rows leave the device idle otherwise: whether it is used depends on the
// shapes alone, the bits do not. In the workspace until it goes out of scope.
class RangeScratch {
 public:
  RangeScratch() = default;
  // For kernels with ranges of so many keys, in `parts`, that keep the device busy with `most` rows. In a dry run room
  // for every smaller number of rows and keys too, but never more than kMostBytes.
  RangeScratch(ExecContext& ctx, const AttendShape& shape, int64_t max_keys, int keys, int64_t most, int parts = 1)
      : workspace_(&ctx.workspace), mark_(ctx.workspace.mark()) {
    constexpr int64_t kMostBytes = int64_t{512} << 20;
    const int64_t ranges = (max_keys + keys - 1) / keys,
                  limit = kMostBytes / (static_cast<int64_t>(sizeof(float)) * shape.H * (shape.D + 2)),
                  results = std::min(shape.T, most) * ranges * parts;
    if (ranges * parts <= 1 || (!ctx.dry_run && (shape.T > most || results > limit))) return;
    const int64_t room = shape.H * std::min(results, limit);
    const Tensor ml = ctx.workspace.alloc(DType::kF32, {room, 2}),
                 o = ctx.workspace.alloc(DType::kF32, {room, shape.D});
    results_ = {static_cast<float*>(ml.data()), static_cast<float*>(o.data()), ranges, keys, parts};
  }
  ~RangeScratch() {
    if (workspace_ != nullptr) workspace_->release(mark_);
  }
  RangeScratch(const RangeScratch&) = delete;
  RangeScratch& operator=(const RangeScratch&) = delete;

  bool split() const { return results_.ranges > 0; }
  const RangeResults& results() const { return results_; }

 private:
  Workspace* workspace_ = nullptr;
  size_t mark_ = 0;
  RangeResults results_{};
};

template <class Source, class In, int E, int G, int X>
__global__ void __launch_bounds__(kAttendThreads)
    attend_rows(Source source, In in, AttendShape s, RangeResults results, bool aligned, Output out) {
  const int64_t row = blockIdx.x, chunks = (s.H / s.Hkv + G - 1) / G, head = blockIdx.y / chunks,
                first = head * (s.H / s.Hkv) + blockIdx.y % chunks * G;
  if (source.skips(row)) return;
  const int heads = static_cast<int>(min(int64_t{G}, (head + 1) * (s.H / s.Hkv) - first)), lane = threadIdx.x % kWarp;
  const KeySpan span = source.span(row);
  const bool split = results.ranges > 0;
  const int64_t begin_range = split ? blockIdx.z : span.begin / kKeyRange,
                end_range = split ? blockIdx.z + 1 : (span.end + kKeyRange - 1) / kKeyRange;
  if (split && (begin_range * kKeyRange >= span.end || end_range * kKeyRange <= span.begin)) return;

  Queries<E, G, X> queries;
#pragma unroll
  for (int g = 0; g < G; ++g) {
    const int64_t h = first + min(g, heads - 1);  // heads beyond the last repeat it and are not written
#pragma unroll
    for (int e = 0; e < E; ++e) queries.q[g][e] = lane * E + e < s.D ? to_float(in.q[row][h * s.D + lane * E + e]) : 0;
    if constexpr (X > 0)
#pragma unroll
      for (int e = 0; e < X; ++e)
        queries.qx[g][e] = lane * X + e < s.R ? to_float(in.extra[row][h * s.R + lane * X + e]) : 0;
  }
  const auto keys = source.keys(row, head);
  Softmax<kOwnValues<E>> total[G];
  for (int64_t range = begin_range; range < end_range; ++range) {
    Softmax<kOwnValues<E>> part[G];
    attend_range(queries, keys, max(span.begin, range * kKeyRange), min(span.end, (range + 1) * kKeyRange), s.scale,
                 min(max(static_cast<int>(s.D) - lane * E, 0), E), min(max(static_cast<int>(s.R) - lane * X, 0), X),
                 aligned, part);
    if (split) {
#pragma unroll
      for (int g = 0; g < G; ++g) {
        if (g >= heads) continue;
        const int64_t place = results.place(row, s.H, first + g, range);
        if (threadIdx.x == 0) results.ml[2 * place] = part[g].m, results.ml[2 * place + 1] = part[g].l;
#pragma unroll
        for (int j = 0; j < kOwnValues<E>; ++j)
          if (const int64_t d = threadIdx.x + j * kAttendThreads; d < s.D) results.o[place * s.D + d] = part[g].o[j];
      }
    } else {
#pragma unroll
      for (int g = 0; g < G; ++g) total[g].join(part[g].m, part[g].l, part[g].o);
    }
  }
  if (split) return;
#pragma unroll
  for (int g = 0; g < G; ++g) {
    if (g >= heads) continue;
#pragma unroll
    for (int j = 0; j < kOwnValues<E>; ++j)
      if (const int64_t d = threadIdx.x + j * kAttendThreads; d < s.D)
        out.store((row * s.H + first + g) * s.D + d, total[g].l == 0 ? 0 : total[g].o[j] / total[g].l);
  }
}

constexpr int kJoiners = 4;

// One block per row, head and kAttendThreads values, one value a thread; threadIdx.y: a span of kSpan ranges (0: of all
// ranges) of which the block joins some at once, each range by range, and then span by span. Results are read some at a
// time. `gate`: of bf16 rows [T, H D] whose sigmoid multiplies them, rounded as ops::sigmoid_mul does; null: none.
template <int kParts, int kSpan, class Source>
__global__ void __launch_bounds__(kAttendThreads* kJoiners)
    join_ranges(Source source, AttendShape s, RangeResults results, Rows<const bf16_t> gate, Output out) {
  constexpr int kAhead = kSpan > 0 ? kSpan * kParts : 8;  // a multiple of kParts
  __shared__ float span_m[2][kJoiners], span_l[2][kJoiners], span_o[2][kJoiners][kAttendThreads];  // in turns
  let_next_grid_begin();
  const int64_t row = blockIdx.x, head = blockIdx.y, own = int64_t{blockIdx.z} * kAttendThreads + threadIdx.x,
                d = min(own, s.D - 1);
  if (source.skips(row)) return wait_for_grid();
  const KeySpan keys = source.span(row);
  const int64_t begin = keys.begin / results.keys * kParts, end = (keys.end + results.keys - 1) / results.keys * kParts,
                first = results.place(row, s.H, head, 0);
  wait_for_grid();
  const float open = gate.data != nullptr ? to_float(gate[row][head * s.D + d]) : 0;
  const auto join_span = [&](int64_t begin, int64_t end) {
    Softmax<1> span;
    for (int64_t at = begin; at < end; at += kAhead) {
      float m[kAhead], l[kAhead], o[kAhead];
#pragma unroll
      for (int i = 0; i < kAhead; ++i) {
        const int64_t place = first + min(at + i, end - 1);
        m[i] = results.ml[2 * place], l[i] = at + i < end ? results.ml[2 * place + 1] : 0;
        o[i] = results.o[place * s.D + d];
      }
#pragma unroll
      for (int i = 0; i < kAhead; i += kParts) {
        Softmax<1> range;
#pragma unroll
        for (int part = 0; part < kParts; ++part) {
          const float one[1] = {o[i + part]};
          range.join(m[i + part], l[i + part], one);
        }
        span.join(range.m, range.l, range.o);
      }
    }
    return span;
  };
  Softmax<1> total;
  if constexpr (kSpan == 0) {
    total = join_span(begin, end);
  } else {
    constexpr int kSpanParts = kSpan * kParts;
    const int joiners = static_cast<int>(blockDim.y), joiner = static_cast<int>(threadIdx.y);
    int turn = 0;
    for (int64_t round = begin / kSpanParts; round * kSpanParts < end; round += joiners, turn ^= 1) {
      const int64_t at = (round + joiner) * kSpanParts;
      const Softmax<1> span = join_span(max(begin, at), min(end, at + kSpanParts));
      if (threadIdx.x == 0) span_m[turn][joiner] = span.m, span_l[turn][joiner] = span.l;
      span_o[turn][joiner][threadIdx.x] = span.o[0];
      __syncthreads();
      if (joiner > 0) continue;
      for (int i = 0; i < joiners; ++i) {
        const float one[1] = {span_o[turn][i][threadIdx.x]};
        total.join(span_m[turn][i], span_l[turn][i], one);
      }
    }
    if (joiner > 0) return;
  }
  if (own >= s.D) return;
  float value = total.l == 0 ? 0 : total.o[0] / total.l;
  if (gate.data != nullptr) value = rounded<bf16_t>(value) * rounded<bf16_t>(sigmoid(open));
  out.store((row * s.H + head) * s.D + d, value);
}

template <int E, int G, int X, class Source, class In>
void run_attend_rows(cudaStream_t stream, const Source& source, const In& in, const AttendShape& shape,
                     const RangeScratch& scratch, bool aligned, Output out) {
  const dim3 grid(static_cast<unsigned>(shape.T), static_cast<unsigned>(shape.parts(G)),
                  scratch.split() ? static_cast<unsigned>(scratch.results().ranges) : 1);
  attend_rows<Source, In, E, G, X>
      <<<grid, kAttendThreads, 0, stream>>>(source, in, shape, scratch.results(), aligned, out);
}

// Of up to kSpan ranges there is one span, whose join takes less when it is known to be.
template <int kParts = 1, int kSpan = 0, class Source>
void run_join_ranges(cudaStream_t stream, const Source& source, const AttendShape& shape, const RangeScratch& scratch,
                     Rows<const bf16_t> gate, Output out) {
  const dim3 grid(static_cast<unsigned>(shape.T), static_cast<unsigned>(shape.H), blocks_for(shape.D, kAttendThreads));
  const RangeResults& results = scratch.results();
  if (kSpan == 0 || results.ranges <= kSpan) {
    launch_follower(join_ranges<kParts, 0, Source>, grid, dim3(kAttendThreads), 0, stream, source, shape, results, gate,
                    out);
  } else {
    const unsigned joiners = std::min<unsigned>(kJoiners, blocks_for(results.ranges, std::max(kSpan, 1)));
    launch_follower(join_ranges<kParts, kSpan, Source>, grid, dim3(kAttendThreads, joiners), 0, stream, source, shape,
                    results, gate, out);
  }
}

}  // namespace calandra::cuda

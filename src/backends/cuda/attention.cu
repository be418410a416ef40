// Rotary positions, paged attention and the attention of vision towers (ops/attention.h, ops/vision.h).
//   rope_table, rope, store_kv   one number or pair a thread; no shared memory; bound by memory
//   paged_attention     bf16 on tensor cores: chunks of prompts by device/attend_queries.cuh, heads of more than 128
//                       numbers by device/sm90_attend_wide.cuh, sequences of few rows by device/attend_few.cuh; f32 by
//                       device/attend.cuh
//   attention_mixer     few rows of few sequences: heads, keys and gate inside the kernels of paged_attention
//   segment_attention   bf16 on tensor cores, f32 by device/attend.cuh
#include "backends/cuda/device/attend_few.cuh"
#include "backends/cuda/device/attend_queries.cuh"
#include "backends/cuda/device/sm90_attend_wide.cuh"
#include "backends/cuda/device/types.cuh"

namespace calandra {
namespace cuda {
namespace {

constexpr int kThreads = 256;

// Angles in f64: positions reach 2^18 and the angle is rounded once.
__global__ void __launch_bounds__(kThreads)
    rope_angles(Rows<const int32_t> positions, const double* inv_freq, const int32_t* axis, double scale, int64_t T,
                int64_t half, Output cosines, Output sines) {
  const int64_t i = int64_t{blockIdx.x} * kThreads + threadIdx.x;
  if (i >= T * half) return;
  const int64_t t = i / half, f = i % half;
  double s, c;
  sincos(positions[axis[f]][t] * inv_freq[f], &s, &c);
  cosines.store(i, static_cast<float>(c * scale));
  sines.store(i, static_cast<float>(s * scale));
}

// One pair, or one number behind the pairs, a thread.
template <class T, class C>
__global__ void __launch_bounds__(kThreads) rotate(Rows<const T> x, const C* cosines, const C* sines, bool halves,
                                                   int64_t T_, int64_t H, int64_t Dh, int64_t half, T* out) {
  const int64_t per_head = Dh - half, i = int64_t{blockIdx.x} * kThreads + threadIdx.x;
  if (i >= T_ * H * per_head) return;
  const int64_t t = i / (H * per_head), h = i / per_head % H, j = i % per_head;
  const T* in = x[t] + h * Dh;
  T* to = out + (t * H + h) * Dh;
  if (j >= half) {
    to[j + half] = in[j + half];
    return;
  }
  const int64_t low = halves ? j : 2 * j, high = halves ? j + half : 2 * j + 1;
  const float a = to_float(in[low]), b = to_float(in[high]), c = to_float(cosines[t * half + j]),
              s = to_float(sines[t * half + j]);
  to[low] = from_float<T>(fmaf(a, c, -__fmul_rn(b, s)));
  to[high] = from_float<T>(fmaf(b, c, __fmul_rn(a, s)));
}

template <class T>
__global__ void __launch_bounds__(kThreads)
    store_keys(Rows<const T> k, Rows<const T> v, Pages<T> k_pages, Pages<T> v_pages, PagedBatch batch, int64_t T_,
               int64_t Hkv, int64_t Dh) {
  const int64_t i = int64_t{blockIdx.x} * kThreads + threadIdx.x;
  if (i >= T_ * Hkv * Dh) return;
  const int64_t t = i / (Hkv * Dh), h = i / Dh % Hkv, d = i % Dh, b = batch.row_sequence[t];
  if (!batch.active[b]) return;
  const int64_t index = batch.token_index[t];
  const int32_t* table = batch.block_table + b * batch.table_stride;
  const_cast<T*>(k_pages.at(table, index, h))[d] = k[t][h * Dh + d];
  const_cast<T*>(v_pages.at(table, index, h))[d] = v[t][h * Dh + d];
}

template <class T>
struct PagedKeys {
  static constexpr bool kValueIsKey = false;
  Pages<T> k, v;
  const int32_t* table;
  int64_t head;
  __device__ __forceinline__ const T* key(int64_t i) const { return k.at(table, i, head); }
  __device__ __forceinline__ const T* value(int64_t i) const { return v.at(table, i, head); }
};

template <class T>
struct PagedSource {
  Pages<T> k, v;
  PagedBatch batch;
  const int32_t* first_key;  // null: 0
  bool few_only;             // sequences of many rows are not for this
  __device__ __forceinline__ bool skips(int64_t row) const {
    return few_only && batch.has_many_rows(batch.row_sequence[row]);
  }
  __device__ __forceinline__ KeySpan span(int64_t row) const { return paged_span(batch, first_key, row); }
  __device__ __forceinline__ PagedKeys<T> keys(int64_t row, int64_t head) const {
    return {k, v, batch.block_table + batch.row_sequence[row] * batch.table_stride, head};
  }
};

// Keys of a segment, counted from its begin.
template <class T>
struct SegmentKeys {
  static constexpr bool kValueIsKey = false;
  const T *k, *v;
  int64_t k_stride, v_stride;
  __device__ __forceinline__ const T* key(int64_t i) const { return k + i * k_stride; }
  __device__ __forceinline__ const T* value(int64_t i) const { return v + i * v_stride; }
};

template <class T>
struct SegmentSource {
  Rows<const T> k, v;
  const int32_t* start;
  int segments;
  int64_t Dh;
  __device__ __forceinline__ bool skips(int64_t) const { return false; }
  // The segment that holds the row: the last that begins at or before it.
  __device__ __forceinline__ int segment(int64_t row) const {
    int low = 0, high = segments;
    while (high - low > 1) {
      const int middle = (low + high) / 2;
      (start[middle] <= row ? low : high) = middle;
    }
    return low;
  }
  __device__ __forceinline__ KeySpan span(int64_t row) const {
    const int s = segment(row);
    return {0, start[s + 1] - start[s]};
  }
  __device__ __forceinline__ SegmentKeys<T> keys(int64_t row, int64_t head) const {
    const int64_t begin = start[segment(row)];
    return {k[begin] + head * Dh, v[begin] + head * Dh, k.stride, v.stride};
  }
};

const int32_t* first_keys(const Tensor& first_key) { return first_key.rank() != 0 ? first_key.as<int32_t>() : nullptr; }

// For attend_queries, which runs sequences with many rows, and attend_few, which runs the others.
struct PagedGroups {
  PagedGroups(const KvPages& pages, const Batch& batch_, const Tensor& first_key_, bool deterministic)
      : keys_of_pages(pages.k),
        values_of_pages(pages.v),
        batch(batch_, deterministic),
        first_key(first_keys(first_key_)) {}
  // For join_ranges: the rows of sequences that attend_few runs.
  PagedSource<bf16_t> rows() const { return {keys_of_pages, values_of_pages, batch, first_key, true}; }

  Pages<bf16_t> keys_of_pages, values_of_pages;
  PagedBatch batch;
  const int32_t* first_key;  // null: 0
  __device__ __forceinline__ const bf16_t* k() const { return keys_of_pages.data; }
  __device__ __forceinline__ const bf16_t* v() const { return values_of_pages.data; }
  __device__ __forceinline__ int64_t offset(int b, int64_t head, int64_t i) const {
    return keys_of_pages.at(batch.block_table + b * batch.table_stride, i, head) - keys_of_pages.data;
  }
  __device__ __forceinline__ bool runs(int b) const { return batch.has_many_rows(b); }
  __device__ __forceinline__ KeySpan keys(int b) const {
    if (!batch.active[b]) return {0, 0};
    return {first_key != nullptr ? first_key[b] : 0, batch.token_index[batch.query_start[b + 1] - 1] + 1};
  }
  __device__ __forceinline__ int64_t end(int, int64_t row) const { return batch.token_index[row] + 1; }
  // Keys before it were stored by earlier steps.
  __device__ __forceinline__ int64_t first_of_step(int b) const { return batch.token_index[batch.query_start[b]]; }
};

// For attend_queries: the rows of a segment see each other.
struct SegmentGroups {
  Rows<const bf16_t> key_rows, value_rows;
  const int32_t* start;
  int64_t Dh;
  __device__ __forceinline__ const bf16_t* k() const { return key_rows.data; }
  __device__ __forceinline__ const bf16_t* v() const { return value_rows.data; }
  __device__ __forceinline__ int64_t offset(int segment, int64_t head, int64_t i) const {
    return (start[segment] + i) * key_rows.stride + head * Dh;
  }
  __device__ __forceinline__ bool runs(int) const { return true; }
  __device__ __forceinline__ KeySpan keys(int segment) const { return {0, start[segment + 1] - start[segment]}; }
  __device__ __forceinline__ int64_t end(int segment, int64_t) const { return start[segment + 1] - start[segment]; }
};

// Whether attend_queries and attend_few serve: 16 bytes at a time, keys and values alike. However many rows there are.
bool tiles_serve(const Tensor& q, const Tensor& k, const Tensor& v, const Tensor& out) {
  const auto aligned = [](const Tensor& x) {
    bool all = reinterpret_cast<uintptr_t>(x.data()) % 16 == 0 && x.size(-1) % 8 == 0;
    for (int axis = 0; axis + 1 < x.rank(); ++axis)
      all = all && (x.stride(axis) % 8 == 0 || (axis > 0 && x.size(axis) <= 1));
    return all;
  };
  bool alike = k.rank() == v.rank();
  for (int axis = 0; alike && axis < k.rank(); ++axis) alike = k.stride(axis) == v.stride(axis);
  return is_bf16(q) && is_bf16(out) && q.size(-1) <= 256 && alike && aligned(q) && aligned(k) && aligned(v);
}

// For attend_part.
RangeScratch scratch_of_few(ExecContext& ctx, const AttendShape& shape, const Batch& batch) {
  return {ctx, shape, batch.max_seq_len, kFewRange, std::max<int64_t>(1, kMultiprocessors / shape.Hkv), kFewParts};
}

// Calls f with the width of a tile for heads of Dh numbers.
template <class F>
void on_tile_width(int64_t Dh, F f) {
  if (Dh <= 64)
    f(std::integral_constant<int, 64>());
  else if (Dh <= 80)
    f(std::integral_constant<int, 80>());
  else if (Dh <= 128)
    f(std::integral_constant<int, 128>());
  else
    f(std::integral_constant<int, 256>());
}

template <class Source>
void run_tiles(cudaStream_t stream, const Source& source, QueryTiles tiles, const Tensor& q, int64_t key_heads,
               float scale, Tensor& out) {
  const TileShape shape{q.size(1), q.size(2), scale};
  auto* to = static_cast<bf16_t*>(out.data());
  on_tile_width(q.size(2), [&](auto D) {
    if constexpr (D == kWideDim) {
      tiles.size = kWideQueries;
      run_attend_wide(stream, source, tiles, rows_of<bf16_t>(q), q.size(0), key_heads, shape, to);
    } else {
      run_attend_queries<D>(stream, source, tiles, rows_of<bf16_t>(q), q.size(0), key_heads, shape, to);
    }
  });
}

// Calls f with E for heads of Dh numbers: 32 lanes hold one.
template <int kMost, class F>
void on_head_dim(int64_t Dh, F f) {
  CHECK_LE(Dh, kMost);
  if (Dh <= 64)
    f(std::integral_constant<int, 2>());
  else if (Dh <= 128)
    f(std::integral_constant<int, 4>());
  else if (Dh <= 256)
    f(std::integral_constant<int, 8>());
  else if constexpr (kMost > 256)
    f(std::integral_constant<int, 16>());
}

bool lanes_aligned(const Tensor& x, int64_t Dh, int E) {
  const size_t bytes = std::min<size_t>(static_cast<size_t>(E) * size_of(x.dtype()), 16);
  return Dh % E == 0 && rows_aligned(x, bytes);
}

}  // namespace
}  // namespace cuda

using namespace cuda;

void CudaBackend::rope_table(ExecContext& ctx, const Tensor& positions, const ops::RopeFrequencies& frequencies,
                             Tensor& out) {
  const int64_t T = out.size(1), half = out.size(2);
  Tensor cosines = out[0], sines = out[1];
  rope_angles<<<blocks_for(T * half, kThreads), kThreads, 0, stream_of(ctx)>>>(
      rows_of<int32_t>(positions), frequencies.inv_freq.as<double>(), frequencies.axis.as<int32_t>(), frequencies.scale,
      T, half, output_of(cosines), output_of(sines));
  launched(ctx, "rope_table");
}

void CudaBackend::rope(ExecContext& ctx, const Tensor& x, const Tensor& table, ops::RopePairing pairing, Tensor& out) {
  const int64_t T = x.size(0), H = x.size(1), Dh = x.size(2), half = table.size(2);
  const Tensor cosines = table[0], sines = table[1];
  on_type(x.dtype(), [&]<class T_>(T_) {
    on_type(table.dtype(), [&]<class C>(C) {
      rotate<T_, C><<<blocks_for(T * H * (Dh - half), kThreads), kThreads, 0, stream_of(ctx)>>>(
          rows_of<T_>(x), static_cast<const C*>(cosines.data()), static_cast<const C*>(sines.data()),
          pairing == ops::RopePairing::kHalves, T, H, Dh, half, static_cast<T_*>(out.data()));
    });
  });
  launched(ctx, "rope");
}

void CudaBackend::store_kv(ExecContext& ctx, const Tensor& k, const Tensor& v, KvPages& pages, const Batch& batch) {
  on_type(k.dtype(), [&]<class T>(T) {
    store_keys<T><<<blocks_for(k.numel(), kThreads), kThreads, 0, stream_of(ctx)>>>(
        rows_of<T>(k), rows_of<T>(v), Pages<T>(pages.k), Pages<T>(pages.v), PagedBatch(batch), k.size(0), k.size(1),
        k.size(2));
  });
  launched(ctx, "store_kv");
}

void CudaBackend::paged_attention(ExecContext& ctx, const Tensor& q, const KvPages& pages, const Batch& batch,
                                  float scale, const Tensor& first_key, Tensor& out) {
  const int64_t H = q.size(1), Dh = q.size(2);
  const AttendShape shape{q.size(0), H, pages.k.size(1), Dh, 0, scale};
  const bool tiled = tiles_serve(q, pages.k, pages.v, out);
  const RangeScratch scratch = tiled ? scratch_of_few(ctx, shape, batch)
                                     : RangeScratch(ctx, shape, batch.max_seq_len, kKeyRange, shape.most_rows());
  if (ctx.dry_run) return;
  if (tiled) {
    const PagedGroups source(pages, batch, first_key, options_.deterministic);
    const auto* start = batch.query_start.as<int32_t>();
    const int64_t B = batch.sequences(), most_rows = std::min<int64_t>(batch.max_query_len, source.batch.few_rows);
    if (batch.max_query_len > source.batch.few_rows) {
      const QueryTiles tiles{start, static_cast<int>(B), static_cast<int>(shape.group())};
      run_tiles(stream_of(ctx), source, tiles, q, shape.Hkv, scale, out);
      launched(ctx, "paged_attention tiles");
    }
    on_tile_width(Dh, [&](auto D) {
      if (scratch.split())
        run_attend_part<D>(stream_of(ctx), source, start, B, most_rows, shape.Hkv, rows_of<bf16_t>(q),
                           TileShape{H, Dh, scale}, scratch.results());
      else
        run_attend_few<D>(stream_of(ctx), source, start, B, most_rows, shape.Hkv, rows_of<bf16_t>(q),
                          TileShape{H, Dh, scale}, static_cast<bf16_t*>(out.data()));
    });
    launched(ctx, "paged_attention");
    if (!scratch.split()) return;
    run_join_ranges<kFewParts, kFewSpan>(stream_of(ctx), source.rows(), shape, scratch, {}, output_of(out));
    return launched(ctx, "paged_attention join");
  }
  on_type(q.dtype(), [&]<class T>(T) {
    on_head_dim<256>(Dh, [&](auto E) {
      const bool aligned = lanes_aligned(pages.k, Dh, E) && lanes_aligned(pages.v, Dh, E);
      const PagedSource<T> source{Pages<T>(pages.k), Pages<T>(pages.v), PagedBatch(batch), first_keys(first_key),
                                  false};
      const HeadRows<T> queries{rows_of<T>(q), {nullptr, 0}};
      run_attend_rows<E, kHeadsOfBlock, 0>(stream_of(ctx), source, queries, shape, scratch, aligned, output_of(out));
      launched(ctx, "paged_attention");
      if (!scratch.split()) return;
      run_join_ranges(stream_of(ctx), source, shape, scratch, {}, output_of(out));
      launched(ctx, "paged_attention join");
    });
  });
}

// Two kernels where few rows of few sequences leave the device idle otherwise.
void CudaBackend::attention_mixer(ExecContext& ctx, const Tensor& q, const Tensor& k, const Tensor& v,
                                  const Tensor& gate, const ops::QkNorm& norm, const Tensor& table, KvPages& pages,
                                  const Batch& batch, float scale, const Tensor& first_key, Tensor& out) {
  // A dry run measures the parts, which take more.
  if (ctx.dry_run || ctx.taps != nullptr)
    return Backend::attention_mixer(ctx, q, k, v, gate, norm, table, pages, batch, scale, first_key, out);
  const PagedGroups source(pages, batch, first_key, options_.deterministic);
  if (tiles_serve(q, pages.k, pages.v, out) && rows_aligned(v, 16) && batch.max_query_len <= source.batch.few_rows) {
    const int64_t H = q.size(1), Dh = q.size(2);
    const AttendShape shape{q.size(0), H, pages.k.size(1), Dh, 0, scale};
    const RangeScratch scratch = scratch_of_few(ctx, shape, batch);
    if (scratch.split()) {
      on_tile_width(Dh, [&](auto D) {
        run_attend_part<D>(stream_of(ctx), source, batch.query_start.as<int32_t>(), batch.sequences(),
                           batch.max_query_len, shape.Hkv, ProjectedHeads<bf16_t>(q, k, v, norm, table),
                           TileShape{H, Dh, scale}, scratch.results());
      });
      launched(ctx, "attention_mixer");
      const Rows<const bf16_t> gates = gate.rank() != 0 ? rows_of<bf16_t>(gate) : Rows<const bf16_t>{};
      run_join_ranges<kFewParts, kFewSpan>(stream_of(ctx), source.rows(), shape, scratch, gates, output_of(out));
      return launched(ctx, "attention_mixer join");
    }
  }
  Backend::attention_mixer(ctx, q, k, v, gate, norm, table, pages, batch, scale, first_key, out);
}

// A key head has one query head, and every row walks its whole segment: no use in ranges of their own.
void CudaBackend::segment_attention(ExecContext& ctx, const Tensor& q, const Tensor& k, const Tensor& v,
                                    const Tensor& segment_start, float scale, Tensor& out) {
  if (ctx.dry_run) return;
  const int64_t H = q.size(1), Dh = q.size(2);
  const AttendShape shape{q.size(0), H, H, Dh, 0, scale};
  const int segments = static_cast<int>(segment_start.size(0)) - 1;
  if (tiles_serve(q, k, v, out)) {
    const SegmentGroups source{rows_of<bf16_t>(k), rows_of<bf16_t>(v), segment_start.as<int32_t>(), Dh};
    run_tiles(stream_of(ctx), source, QueryTiles{segment_start.as<int32_t>(), segments, 1}, q, H, scale, out);
    return launched(ctx, "segment_attention tiles");
  }
  on_type(q.dtype(), [&]<class T>(T) {
    on_head_dim<512>(Dh, [&](auto E) {
      const bool aligned = lanes_aligned(k, Dh, E) && lanes_aligned(v, Dh, E);
      const SegmentSource<T> source{rows_of<T>(k), rows_of<T>(v), segment_start.as<int32_t>(), segments, Dh};
      const HeadRows<T> queries{rows_of<T>(q), {nullptr, 0}};
      run_attend_rows<E, 1, 0>(stream_of(ctx), source, queries, shape, RangeScratch(), aligned, output_of(out));
      launched(ctx, "segment_attention");
    });
  });
}

}  // namespace calandra

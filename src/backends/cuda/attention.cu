// Rotary positions, paged attention and the attention of vision towers (ops/attention.h, ops/vision.h).
//   rope_table, rope, store_kv   one number or pair a thread; bound by memory
//   paged_attention, segment_attention   device/attend.cuh
#include "backends/cuda/device/attend_rows.cuh"
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
  AttendShape shape{q.size(0), H, pages.k.size(1), Dh, 0, scale};
  const RangeScratch scratch(ctx, shape, batch.max_seq_len, kHeadsOfBlock);
  if (ctx.dry_run) return;
  on_type(q.dtype(), [&]<class T>(T) {
    on_head_dim<256>(Dh, [&](auto E) {
      const bool aligned = lanes_aligned(pages.k, Dh, E) && lanes_aligned(pages.v, Dh, E);
      const PagedSource<T> source{Pages<T>(pages.k), Pages<T>(pages.v), PagedBatch(batch),
                                  first_key.rank() != 0 ? first_key.as<int32_t>() : nullptr};
      const HeadRows<T> queries{rows_of<T>(q), {nullptr, 0}};
      attend_rows<E, kHeadsOfBlock, 0>(stream_of(ctx), source, queries, shape, scratch, aligned, output_of(out));
      launched(ctx, "paged_attention");
      if (scratch.split()) {
        join_ranges(stream_of(ctx), source, shape, scratch, output_of(out));
        launched(ctx, "paged_attention join");
      }
    });
  });
}

// A key head has one query head, and every row walks its whole segment: no use in ranges of their own.
void CudaBackend::segment_attention(ExecContext& ctx, const Tensor& q, const Tensor& k, const Tensor& v,
                                    const Tensor& segment_start, float scale, Tensor& out) {
  if (ctx.dry_run) return;
  const int64_t H = q.size(1), Dh = q.size(2);
  const AttendShape shape{q.size(0), H, H, Dh, 0, scale};
  on_type(q.dtype(), [&]<class T>(T) {
    on_head_dim<512>(Dh, [&](auto E) {
      const bool aligned = lanes_aligned(k, Dh, E) && lanes_aligned(v, Dh, E);
      const SegmentSource<T> source{rows_of<T>(k), rows_of<T>(v), segment_start.as<int32_t>(),
                                    static_cast<int>(segment_start.size(0)) - 1, Dh};
      const HeadRows<T> queries{rows_of<T>(q), {nullptr, 0}};
      attend_rows<E, 1, 0>(stream_of(ctx), source, queries, shape, RangeScratch(), aligned, output_of(out));
      launched(ctx, "segment_attention");
    });
  });
}

}  // namespace calandra

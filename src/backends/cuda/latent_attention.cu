// Multi-head latent attention, absorbed (ops/latent_attention.h):
//   store_latents   one number a thread; bound by memory
//   head_products   q_lat = q_nope W_UK, [T, H, L] f32: keys stay latent; by device/head_products.cuh, few rows of f32
//                   heads and the sizes of oracles by a warp for each row of a weight
//   attention       scores q_lat . c + q_pe . k_pe, then sum_u p_u c_u, [T, H, L] f32: bf16 of the releases' sizes by
//                   device/attend_latents.cuh, others by device/attend.cuh, where a read of a latent serves four heads
//   head_products   the values, W_UV of the sum
// Kernels of this file have no shared memory.
#include "backends/cuda/device/attend_latents.cuh"
#include "backends/cuda/device/head_products.cuh"
#include "backends/cuda/device/types.cuh"
#include "backends/cuda/packed_rows.h"

namespace calandra {
namespace cuda {
namespace {

constexpr int kThreads = 256;
constexpr int kWarps = kThreads / kWarp;
constexpr int kMostInputs = 512;

template <class T>
__global__ void __launch_bounds__(kThreads)
    store_latents(Rows<const T> latent, Rows<const T> k_pe, Pages<T> latents, Pages<T> keys, PagedBatch batch,
                  int64_t T_, int64_t L, int64_t R) {
  const int64_t i = int64_t{blockIdx.x} * kThreads + threadIdx.x;
  if (i >= T_ * (L + R)) return;
  const int64_t t = i / (L + R), d = i % (L + R), b = batch.row_sequence[t], index = batch.token_index[t];
  if (!batch.active[b]) return;
  const int32_t* table = batch.block_table + b * batch.table_stride;
  if (d < L)
    const_cast<T*>(latents.at(table, index, 0))[d] = latent[t][d];
  else
    const_cast<T*>(keys.at(table, index, 0))[d - L] = k_pe[t][d - L];
}

// out[t, h, n] = sum_k x[t, h, k] W_h[n, k]. A warp holds one row of one head's weight in registers, 16 numbers a lane,
// and walks the rows of x.
template <class X, class W>
__global__ void __launch_bounds__(kThreads)
    head_products(Rows<const X> x, const std::byte* weight, int64_t head_bytes, int64_t row_bytes, int64_t scales_at,
                  int64_t block_k, int64_t T, int64_t N, int64_t K, Output out) {
  constexpr int kOwn = kMostInputs / kWarp;
  const int64_t n = int64_t{blockIdx.x} * kWarps + threadIdx.x / kWarp, h = blockIdx.y, H = gridDim.y;
  const int lane = threadIdx.x % kWarp;
  if (n >= N) return;
  const std::byte* row = weight + h * head_bytes + n * row_bytes;
  float w[kOwn];
#pragma unroll
  for (int i = 0; i < kOwn; ++i) {
    const int64_t k = lane + i * kWarp;
    w[i] = k < K ? to_float(reinterpret_cast<const W*>(row)[k]) : 0;
    if constexpr (sizeof(W) == 1)
      if (k < K) w[i] = __fmul_rn(w[i], reinterpret_cast<const float*>(row + scales_at)[k / block_k]);
  }
  for (int64_t t = 0; t < T; ++t) {
    const X* in = x[t] + h * K;
    float sum = 0;
#pragma unroll
    for (int i = 0; i < kOwn; ++i) {
      const int64_t k = lane + i * kWarp;
      if (k < K) sum = fmaf(to_float(in[k]), w[i], sum);
    }
    sum = warp_sum(sum);
    if (lane == 0) out.store((t * H + h) * N + n, sum);
  }
}

// split: f32 weights may be taken as two bf16. Those of FP8 checkpoints are f32, since heads are cut out of their
// blocks.
void run_head_products(cudaStream_t stream, const Tensor& x, const GroupedWeight& weight, bool split, Tensor& out) {
  if ((weight.dtype == DType::kBF16 || (weight.dtype == DType::kF32 && split)) &&
      head_products_serve(x, weight.N, weight.K) && weight.packed.stride(0) % 16 == 0)
    return on_type(x.dtype(), [&]<class X>(X) {
      on_type(weight.dtype, [&]<class W>(W) {
        constexpr int64_t kBytes = sizeof(W);
        run_head_tiles<X, W>(stream, rows_of<X>(x), reinterpret_cast<const W*>(weight.packed.bytes_at(0)),
                             weight.packed.stride(0) / kBytes, packed_row(weight.dtype, weight.K, 0) / kBytes,
                             x.size(0), weight.E, weight.N, weight.K, output_of(out));
      });
    });
  CHECK_LE(weight.K, kMostInputs);
  const dim3 grid(blocks_for(weight.N, kWarps), static_cast<unsigned>(weight.E));
  on_type(x.dtype(), [&]<class X>(X) {
    on_stored_type(weight.dtype, [&]<class W>(W) {
      head_products<X, W><<<grid, kThreads, 0, stream>>>(
          rows_of<X>(x), weight.packed.bytes_at(0), weight.packed.stride(0),
          packed_row(weight.dtype, weight.K, weight.block_k), padded_values(weight.dtype, weight.K), weight.block_k,
          x.size(0), weight.N, weight.K, output_of(out));
    });
  });
}

template <class T>
struct LatentKeys {
  static constexpr bool kValueIsKey = true;
  Pages<T> latents, keys;
  const int32_t* table;
  __device__ __forceinline__ const T* key(int64_t i) const { return latents.at(table, i, 0); }
  __device__ __forceinline__ const T* extra(int64_t i) const { return keys.at(table, i, 0); }
};

template <class T>
struct LatentSource {
  Pages<T> latents, k_pe;
  PagedBatch batch;
  const int32_t* first_key;  // null: 0
  bool few_only;             // sequences of many rows are not for this
  __device__ __forceinline__ bool skips(int64_t row) const {
    return few_only && batch.has_many_rows(batch.row_sequence[row]);
  }
  __device__ __forceinline__ KeySpan span(int64_t row) const { return paged_span(batch, first_key, row); }
  __device__ __forceinline__ LatentKeys<T> keys(int64_t row, int64_t) const {
    return {latents, k_pe, batch.block_table + batch.row_sequence[row] * batch.table_stride};
  }
};

// For attend_latents.
struct LatentGroups {
  Pages<bf16_t> latent_pages, rope_pages;
  PagedBatch batch;
  const int32_t* first_key;  // null: 0
  __device__ __forceinline__ const bf16_t* latents() const { return latent_pages.data; }
  __device__ __forceinline__ const bf16_t* ropes() const { return rope_pages.data; }
  __device__ __forceinline__ int64_t latent_offset(int b, int64_t i) const {
    return latent_pages.at(batch.block_table + b * batch.table_stride, i, 0) - latent_pages.data;
  }
  __device__ __forceinline__ int64_t rope_offset(int b, int64_t i) const {
    return rope_pages.at(batch.block_table + b * batch.table_stride, i, 0) - rope_pages.data;
  }
  __device__ __forceinline__ bool runs(int b) const { return batch.has_many_rows(b); }
  __device__ __forceinline__ KeySpan keys(int b) const {
    if (!batch.active[b]) return {0, 0};
    return {first_key != nullptr ? first_key[b] : 0, batch.token_index[batch.query_start[b + 1] - 1] + 1};
  }
  __device__ __forceinline__ int64_t end(int, int64_t row) const { return batch.token_index[row] + 1; }
};

bool tiles_serve(const Tensor& q_pe, const LatentPages& pages) {
  const auto aligned = [](const Tensor& x) { return rows_aligned(x, 16) && x.stride(1) % 8 == 0; };
  return is_bf16(q_pe) && is_bf16(pages.latent) && pages.latent.size(2) == kLatent &&
         pages.k_pe.size(2) == kLatentRope && aligned(q_pe) && aligned(pages.latent) && aligned(pages.k_pe);
}

constexpr int kRope = 2;  // numbers of a rotary key that a lane holds

// Calls f with the numbers of a latent that a lane holds.
template <class F>
void on_latent(int64_t L, F f) {
  CHECK_LE(L, kMostInputs);
  if (L <= 64)
    f(std::integral_constant<int, 2>());
  else
    f(std::integral_constant<int, 16>());
}

}  // namespace
}  // namespace cuda

using namespace cuda;

void CudaBackend::store_latent(ExecContext& ctx, const Tensor& latent, const Tensor& k_pe, LatentPages& pages,
                               const Batch& batch) {
  const int64_t T = latent.size(0), L = latent.size(1), R = k_pe.size(1);
  on_type(latent.dtype(), [&]<class N>(N) {
    store_latents<N><<<blocks_for(T * (L + R), kThreads), kThreads, 0, stream_of(ctx)>>>(
        rows_of<N>(latent), rows_of<N>(k_pe), Pages<N>(pages.latent), Pages<N>(pages.k_pe), PagedBatch(batch), T, L, R);
  });
  launched(ctx, "store_latent");
}

void CudaBackend::latent_attention(ExecContext& ctx, const Tensor& q_nope, const Tensor& q_pe,
                                   const ops::LatentUpProjection& up, const LatentPages& pages, const Batch& batch,
                                   float scale, const Tensor& first_key, Tensor& out) {
  const int64_t T = q_nope.size(0), H = q_nope.size(1), L = pages.latent.size(2), R = q_pe.size(2);
  CHECK_LE(R, kRope * kWarp);
  const size_t mark = ctx.workspace.mark();
  Tensor q = ctx.workspace.alloc(DType::kF32, {T, H, L}), sum = ctx.workspace.alloc(DType::kF32, {T, H, L});
  const AttendShape shape{T, H, 1, L, R, scale};
  const bool tiled = tiles_serve(q_pe, pages);
  constexpr int64_t kRowsOfWarps = 16;  // in which warps are done before the tiles of f32
  const bool split = is_bf16(q_pe) && (T > kRowsOfWarps || options_.deterministic);
  {
    const RangeScratch scratch(ctx, shape, batch.max_seq_len, tiled ? kLatentRange : kKeyRange,
                               tiled ? kMultiprocessors : shape.most_rows());
    if (!ctx.dry_run) {
      run_head_products(stream_of(ctx), q_nope, up.key, split, q);
      launched(ctx, "latent queries");
      const int32_t* first = first_key.rank() != 0 ? first_key.as<int32_t>() : nullptr;
      const auto join = [&](const auto& source) {
        if (!scratch.split()) return;
        run_join_ranges(stream_of(ctx), source, shape, scratch, {}, output_of(sum));
        launched(ctx, "latent_attention join");
      };
      if (tiled) {
        const LatentGroups source{Pages<bf16_t>(pages.latent), Pages<bf16_t>(pages.k_pe),
                                  PagedBatch(batch, options_.deterministic), first};
        const QueryTiles tiles{batch.query_start.as<int32_t>(), static_cast<int>(batch.sequences()),
                               static_cast<int>(H)};
        const auto q_lat = rows_of<float>(std::as_const(q));
        if (batch.max_query_len > source.batch.few_rows) {
          run_attend_latents(stream_of(ctx), source, tiles, q_lat, rows_of<bf16_t>(q_pe), T, scale, sum.as<float>());
          launched(ctx, "latent_attention tiles");
        }
        run_attend_few_latents(stream_of(ctx), source, tiles, q_lat, rows_of<bf16_t>(q_pe),
                               std::min<int64_t>(batch.max_query_len, source.batch.few_rows), scale, scratch.results(),
                               sum.as<float>());
        launched(ctx, "latent_attention");
        join(LatentSource<bf16_t>{source.latent_pages, source.rope_pages, source.batch, first, true});
      } else {
        on_type(pages.latent.dtype(), [&]<class N>(N) {
          on_latent(L, [&](auto E) {
            const auto fits = [](const Tensor& x, int64_t width, int64_t lane) {
              const auto bytes = static_cast<size_t>(lane) * size_of(x.dtype());
              return width % lane == 0 && rows_aligned(x, std::min<size_t>(bytes, 16));
            };
            const bool aligned = fits(pages.latent, L, E) && fits(pages.k_pe, R, kRope);
            const LatentSource<N> source{Pages<N>(pages.latent), Pages<N>(pages.k_pe), PagedBatch(batch), first, false};
            const HeadRows<float, N> queries{rows_of<float>(std::as_const(q)), rows_of<N>(q_pe)};
            run_attend_rows<E, kHeadsOfBlock, kRope>(stream_of(ctx), source, queries, shape, scratch, aligned,
                                                     output_of(sum));
            launched(ctx, "latent_attention");
            join(source);
          });
        });
      }
      run_head_products(stream_of(ctx), sum, up.value, split, out);
      launched(ctx, "latent values");
    }
  }
  ctx.workspace.release(mark);
}

}  // namespace calandra

// What stands between the projections and the softmax of attention (ops/attention.h, qk_norm_rope_store), as one
// kernel: a warp has a head of a row. Heads of queries and keys are normalised and rotated, rounded after each as the
// parts are; keys and values go to their pages. One pass; D floats of shared memory a warp. Few rows are bound by
// latency.
#include "backends/cuda/device/attend_rows.cuh"
#include "backends/cuda/device/heads.cuh"
#include "backends/cuda/device/launch.cuh"
#include "backends/cuda/device/pipeline.cuh"
#include "backends/cuda/device/types.cuh"

namespace calandra {
namespace cuda {
namespace {

constexpr int kWarps = 4;

template <class T, class C>
struct HeadsIn {
  Rows<const T> q, k, v;
  const float *q_norm, *k_norm;  // null: no norm
  float eps, offset;
  const C *cosines, *sines;  // [T, half]
  Pages<T> k_pages, v_pages;
  PagedBatch batch;
  int64_t T_;
  int H, Hkv, D, half;
  T* out;
};

template <class T, class C>
__global__ void __launch_bounds__(kWarps* kWarp) heads_in(const __grid_constant__ HeadsIn<T, C> a) {
  extern __shared__ float memory[];
  const int warp = threadIdx.x / kWarp, lane = threadIdx.x % kWarp, heads = a.H + 2 * a.Hkv;
  const int64_t item = int64_t{blockIdx.x} * kWarps + warp;
  float* head = memory + warp * a.D;
  let_next_grid_begin();
  if (item >= a.T_ * heads) return wait_for_grid();
  const int64_t t = item / heads;
  const int h = static_cast<int>(item % heads), kv = (h - a.H) % a.Hkv;
  T* to = a.out + (t * a.H + h) * a.D;
  if (h >= a.H) {
    const int b = a.batch.row_sequence[t];
    if (!a.batch.active[b]) return wait_for_grid();
    const Pages<T>& pages = h < a.H + a.Hkv ? a.k_pages : a.v_pages;
    to = const_cast<T*>(pages.at(a.batch.block_table + b * a.batch.table_stride, a.batch.token_index[t], kv));
  }
  wait_for_grid();
  if (h >= a.H + a.Hkv) {
    const T* in = a.v[t] + kv * a.D;
    for (int i = lane; i < a.D; i += kWarp) to[i] = in[i];
    return;
  }
  const T* in = h < a.H ? a.q[t] + h * a.D : a.k[t] + kv * a.D;
  for (int i = lane; i < a.D; i += kWarp) head[i] = to_float(in[i]);
  if (a.q_norm != nullptr) norm_head<T>(head, h < a.H ? a.q_norm : a.k_norm, a.eps, a.offset, a.D, lane);
  __syncwarp();
  rotate_and_store(head, a.cosines + t * a.half, a.sines + t * a.half, a.half, a.D, lane, to);
}

}  // namespace
}  // namespace cuda

using namespace cuda;

void CudaBackend::qk_norm_rope_store(ExecContext& ctx, const Tensor& q, const Tensor& k, const Tensor& v,
                                     const ops::QkNorm& norm, const Tensor& table, KvPages& pages, const Batch& batch,
                                     Tensor& out) {
  const int64_t rows = q.size(0), D = q.size(2);
  if (ctx.taps != nullptr || D > kMostOfHead || norm.q_norm.rank() != norm.k_norm.rank())
    return Backend::qk_norm_rope_store(ctx, q, k, v, norm, table, pages, batch, out);
  if (ctx.dry_run) return;
  const Tensor cosines = table[0], sines = table[1];
  const bool with_norm = norm.q_norm.rank() != 0;
  const int H = static_cast<int>(q.size(1)), Hkv = static_cast<int>(k.size(1));
  on_type(q.dtype(), [&]<class T>(T) {
    on_type(table.dtype(), [&]<class C>(C) {
      const HeadsIn<T, C> args{rows_of<T>(q),
                               rows_of<T>(k),
                               rows_of<T>(v),
                               with_norm ? norm.q_norm.as<float>() : nullptr,
                               with_norm ? norm.k_norm.as<float>() : nullptr,
                               norm.eps,
                               norm.weight_offset,
                               static_cast<const C*>(cosines.data()),
                               static_cast<const C*>(sines.data()),
                               Pages<T>(pages.k),
                               Pages<T>(pages.v),
                               PagedBatch(batch),
                               rows,
                               H,
                               Hkv,
                               static_cast<int>(D),
                               static_cast<int>(table.size(2)),
                               static_cast<T*>(out.data())};
      launch_follower(heads_in<T, C>, dim3(blocks_for(rows * (H + 2 * Hkv), kWarps)), dim3(kWarps * kWarp),
                      static_cast<size_t>(kWarps * D) * sizeof(float), stream_of(ctx), args);
    });
  });
  launched(ctx, "qk_norm_rope_store");
}

}  // namespace calandra

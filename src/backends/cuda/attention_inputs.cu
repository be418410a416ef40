// What stands between the projections and the softmax of attention (ops/attention.h, qk_norm_rope_store), as one
// kernel: a warp has a head of a row. Heads of queries and keys are normalised and rotated, rounded after each as the
// parts are; keys and values go to their pages. One pass; D floats of shared memory a warp. Few rows are bound by
// latency; where sequences are few too, attend_few.cuh has this inside.
#include "backends/cuda/device/attend_rows.cuh"
#include "backends/cuda/device/heads.cuh"
#include "backends/cuda/device/launch.cuh"
#include "backends/cuda/device/pipeline.cuh"
#include "backends/cuda/device/projected_heads.cuh"
#include "backends/cuda/device/types.cuh"

namespace calandra {
namespace cuda {
namespace {

constexpr int kWarps = 4;

template <class T>
struct HeadsIn {
  ProjectedHeads<T> heads;
  Pages<T> k_pages, v_pages;
  PagedBatch batch;
  int64_t T_;
  int H, Hkv, D;
  T* out;
};

template <class T>
__global__ void __launch_bounds__(kWarps* kWarp) heads_in(const __grid_constant__ HeadsIn<T> a) {
  extern __shared__ float memory[];
  const ProjectedHeads<T>& in = a.heads;
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
    const T* from = in.v[t] + kv * a.D;
    for (int i = lane; i < a.D; i += kWarp) to[i] = from[i];
    return;
  }
  const T* from = h < a.H ? in.q[t] + h * a.D : in.k[t] + kv * a.D;
  for (int i = lane; i < a.D; i += kWarp) head[i] = to_float(from[i]);
  if (in.q_norm != nullptr) norm_head<T>(head, h < a.H ? in.q_norm : in.k_norm, in.eps, in.offset, a.D, lane);
  __syncwarp();
  rotate_and_store(head, in.cosines + t * in.half, in.sines + t * in.half, in.half, a.D, lane, to);
}

}  // namespace
}  // namespace cuda

using namespace cuda;

void CudaBackend::qk_norm_rope_store(ExecContext& ctx, const Tensor& q, const Tensor& k, const Tensor& v,
                                     const ops::QkNorm& norm, const Tensor& table, KvPages& pages, const Batch& batch,
                                     Tensor& out) {
  const int64_t rows = q.size(0), D = q.size(2);
  if (ctx.taps != nullptr || D > kMostOfHead)
    return Backend::qk_norm_rope_store(ctx, q, k, v, norm, table, pages, batch, out);
  if (ctx.dry_run) return;
  const int H = static_cast<int>(q.size(1)), Hkv = static_cast<int>(k.size(1));
  on_type(q.dtype(), [&]<class T>(T) {
    const HeadsIn<T> args{ProjectedHeads<T>(q, k, v, norm, table),
                          Pages<T>(pages.k),
                          Pages<T>(pages.v),
                          PagedBatch(batch),
                          rows,
                          H,
                          Hkv,
                          static_cast<int>(D),
                          static_cast<T*>(out.data())};
    launch_follower(heads_in<T>, dim3(blocks_for(rows * (H + 2 * Hkv), kWarps)), dim3(kWarps * kWarp),
                    static_cast<size_t>(kWarps * D) * sizeof(float), stream_of(ctx), args);
  });
  launched(ctx, "qk_norm_rope_store");
}

}  // namespace calandra

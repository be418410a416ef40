// Rows from one table into another by lists (ops/dense.h, copy_rows). Bound by memory: one pass, 16 bytes a thread
// where rows are aligned to that, two otherwise. No shared memory.
#include "backends/cuda/cuda_backend.h"
#include "backends/cuda/device/rows.cuh"
#include "backends/cuda/device/types.cuh"

namespace calandra {
namespace cuda {
namespace {

constexpr int kThreads = 256;

template <class U>
__global__ void __launch_bounds__(kThreads) copy_listed(Rows<const U> from, const int32_t* from_rows, Rows<U> to,
                                                        const int32_t* to_rows, int64_t count, int64_t width) {
  const int64_t i = int64_t{blockIdx.x} * kThreads + threadIdx.x;
  if (i >= count * width) return;
  to[to_rows[i / width]][i % width] = from[from_rows[i / width]][i % width];
}

}  // namespace
}  // namespace cuda

using namespace cuda;

void CudaBackend::copy_rows(ExecContext& ctx, const Tensor& from, const Tensor& from_rows, Tensor& to,
                            const Tensor& to_rows) {
  const auto element = static_cast<int64_t>(size_of(to.dtype()));
  const auto as = [&](auto unit) {
    using U = decltype(unit);
    const int64_t count = from_rows.size(0), width = to.size(1) * element / static_cast<int64_t>(sizeof(U));
    const auto stride = [&](const Tensor& x) { return x.stride(0) * element / static_cast<int64_t>(sizeof(U)); };
    copy_listed<U><<<blocks_for(count * width, kThreads), kThreads, 0, stream_of(ctx)>>>(
        {static_cast<const U*>(from.data()), stride(from)}, from_rows.as<int32_t>(),
        {static_cast<U*>(to.data()), stride(to)}, to_rows.as<int32_t>(), count, width);
  };
  if (to.size(1) * element % 16 == 0 && rows_aligned(from, 16) && rows_aligned(to, 16))
    as(uint4{});
  else
    as(uint16_t{});
  launched(ctx, "copy_rows");
}

}  // namespace calandra

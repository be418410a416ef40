// Projections (ops/dense.h) and products with experts (ops/moe.h).
//
// bf16 activations with bf16 or f8 weights: few rows device/few_rows.cuh, 16 rows at a time, each weight read once for
// them; many rows device/sm90_gemm.cuh and sm90_gemm_f8.cuh, up to 128 of them with f8 weights
// device/sm90_stream_f8.cuh. What follows a product (a residual; of few rows and in stream_f8 SwiGLU) is done where its
// sum is.
//
// Everything else (f32 activations, f32 and f16 weights, odd blocks of scales): one warp sums one output of up to four
// rows, 32 inputs at a time. For oracles and small parts of a model.
#include "backends/cuda/device/reduce.cuh"
#include "backends/cuda/linear_args.cuh"
#include "backends/cuda/linear_few_rows.h"
#include "backends/cuda/linear_gemm.h"
#include "backends/cuda/linear_stream.h"
#include "backends/cuda/moe_gemm.h"
#include "backends/cuda/scratch.h"

namespace calandra {
namespace cuda {
namespace {

constexpr int kWarps = 8;
constexpr int kPlainRows = 4;

template <class X, class W>
__global__ void __launch_bounds__(kWarps* kWarp) linear_plain(const __grid_constant__ LinearArgs a) {
  const LinearPart& p = a.part_of(blockIdx.y);
  const int n = (static_cast<int>(blockIdx.y) - p.first_tile) * kWarps + threadIdx.x / kWarp;
  const int lane = threadIdx.x % kWarp, rows = a.experts == nullptr ? kPlainRows : 1;
  const int64_t r0 = int64_t{blockIdx.x} * rows;
  if (n >= p.N) return;
  const std::byte* weight = a.weight_of(p, r0);
  float sum[kPlainRows] = {};
  if (weight != nullptr) {
    const std::byte* row = weight + n * p.row_bytes;
#pragma unroll 4
    for (int k = lane; k < a.K; k += kWarp) {
      float w = to_float(reinterpret_cast<const W*>(row)[k]);
      if constexpr (sizeof(W) == 1) w = __fmul_rn(w, reinterpret_cast<const float*>(row + p.scales_at)[k / p.block_k]);
#pragma unroll
      for (int r = 0; r < kPlainRows; ++r)
        if (r < rows && r0 + r < a.T) sum[r] = fmaf(to_float(a.row<X>(r0 + r)[k]), w, sum[r]);
    }
  }
#pragma unroll
  for (int r = 0; r < kPlainRows; ++r) {
    float total = warp_sum(sum[r]);
    if (weight != nullptr && p.bias != nullptr) total += p.bias[n];
    if (lane == 0 && r < rows && r0 + r < a.T) a.out.store((r0 + r) * a.out_stride + p.column + n, total);
  }
}

void launch_plain(cudaStream_t stream, const LinearArgs& args, DType x, DType weight, int tiles) {
  const dim3 grid(blocks_for(args.T, args.experts != nullptr ? 1 : kPlainRows), tiles);
  on_type(x, [&]<class X>(X) {
    on_stored_type(weight, [&]<class W>(W) { linear_plain<X, W><<<grid, kWarps * kWarp, 0, stream>>>(args); });
  });
}

LinearPart part_of(const PackedWeight& weight, int column, int first_tile) {
  return {weight.packed.bytes_at(0),
          weight.bias ? weight.bias.as<float>() : nullptr,
          packed_row(weight.dtype, weight.K, weight.block_k),
          padded_values(weight.dtype, weight.K),
          weight.block_k,
          static_cast<int>(weight.N),
          column,
          first_tile};
}

// x [T, K], or with choices [T, k, K]
LinearArgs args_for(const Tensor& x, int64_t rows, int64_t K, Tensor& out) {
  LinearArgs args{};
  args.x = x.data();
  args.x_stride = x.stride(0);
  args.T = static_cast<int>(rows);
  args.K = static_cast<int>(K);
  args.out = output_of(out);
  return args;
}

}  // namespace
}  // namespace cuda

using namespace cuda;

// The parts that one kernel has and that follow each other are one launch.
void CudaBackend::linear(ExecContext& ctx, const Tensor& x, const LinearPack& pack, Tensor& out) {
  const auto parts = pack.parts();
  const auto streamed = [&](const PackedWeight& weight) { return !options_.deterministic && has_stream(x, weight); };
  const auto many = [&](const PackedWeight& weight) { return !options_.deterministic && has_gemm(x, weight); };
  int64_t column = 0;
  for (size_t i = 0; i < parts.size();) {
    const PackedWeight& first = parts[i];
    if (streamed(first)) {
      StreamLaunch stream(x);
      for (; i < parts.size() && streamed(parts[i]); column += parts[i++].N)
        if (parts[i].N > 0) stream.add(parts[i], out, column);
      stream.run(stream_of(ctx));
      launched(ctx, "linear");
      continue;
    }
    if (many(first)) {
      GemmLaunch gemm(x);
      for (; i < parts.size() && parts[i].dtype == first.dtype && many(parts[i]); column += parts[i++].N)
        if (parts[i].N > 0) gemm.add(parts[i], out, column);
      gemm.run(stream_of(ctx));
      launched(ctx, "linear");
      continue;
    }
    const bool fast = has_few_rows(x.dtype(), first);
    FewRowsLaunch few_rows(x.size(0));
    LinearArgs plain = args_for(x, x.size(0), pack.K(), out);
    plain.out_stride = out.stride(0);
    int tiles = 0;
    for (; i < parts.size() && has_few_rows(x.dtype(), parts[i]) == fast && !streamed(parts[i]) && !many(parts[i]) &&
           (fast || parts[i].dtype == first.dtype);
         ++i) {
      if (parts[i].N == 0) continue;
      if (fast)
        few_rows.add(x, parts[i], out, column);
      else
        plain.part[plain.parts++] = part_of(parts[i], static_cast<int>(column), tiles);
      tiles += static_cast<int>(blocks_for(parts[i].N, kWarps));
      column += parts[i].N;
    }
    if (tiles == 0) continue;
    if (fast)
      few_rows.run(stream_of(ctx));
    else
      launch_plain(stream_of(ctx), plain, x.dtype(), first.dtype, tiles);
    launched(ctx, "linear");
  }
}

void CudaBackend::linear_add(ExecContext& ctx, const Tensor& x, const PackedWeight& weight, const Tensor& residual,
                             Tensor& out) {
  const bool streamed = !options_.deterministic && has_stream(x, weight),
             many = !options_.deterministic && has_gemm(x, weight);
  if (!streamed && !many && !has_few_rows(x.dtype(), weight)) return Backend::linear_add(ctx, x, weight, residual, out);
  if (ctx.dry_run) return;
  if (streamed) {
    StreamLaunch stream(x);
    stream.add(weight, out, 0, residual);
    stream.run(stream_of(ctx));
  } else if (many) {
    GemmLaunch gemm(x);
    gemm.add(weight, out, 0, residual);
    gemm.run(stream_of(ctx));
  } else {
    FewRowsLaunch launch(x.size(0));
    launch.add_to(x, weight, residual, out);
    launch.run(stream_of(ctx));
  }
  launched(ctx, "linear_add");
}

void CudaBackend::swiglu_mlp(ExecContext& ctx, const Tensor& x, const LinearPack& gate_up, const PackedWeight& down,
                             const Tensor& residual, Tensor& out) {
  const PackedWeight &gate = gate_up.parts()[0], &up = gate_up.parts()[1];
  const bool streamed = !options_.deterministic && has_stream(x, gate) && has_stream(x, up) && gate.N == up.N;
  if (ctx.taps != nullptr ||
      (!streamed && ((x.size(0) > kMostRows && !options_.deterministic) || !has_swiglu(x.dtype(), gate, up))))
    return Backend::swiglu_mlp(ctx, x, gate_up, down, residual, out);
  const Scratch scratch(ctx.workspace);
  const Tensor h = ctx.workspace.alloc(x.dtype(), {x.size(0), gate.N});
  if (!ctx.dry_run) {
    if (streamed) {
      StreamLaunch stream(x);
      stream.swiglu(gate, up, h);
      stream.run(stream_of(ctx));
    } else {
      FewRowsLaunch launch(x.size(0));
      launch.swiglu(x, gate, up, h);
      launch.run(stream_of(ctx));
    }
    launched(ctx, "swiglu");
  }
  linear_add(ctx, h, down, residual, out);
}

void CudaBackend::grouped_linear(ExecContext& ctx, const Tensor& x, const GroupedWeight& weight, const Tensor& experts,
                                 Tensor& out) {
  if (!options_.deterministic && has_grouped_gemm(x, weight)) {
    if (grouped_gemm(ctx, x, weight, experts, out) > 0) launched(ctx, "grouped_linear");
    return;
  }
  if (ctx.dry_run) return;
  const PackedWeight one = weight.expert(0);
  if (has_few_rows(x.dtype(), one) && experts.size(1) * kMostRows <= kMostChoices) {
    FewRowsLaunch launch(x.size(0));
    launch.experts(x, weight, experts, out);
    launch.run(stream_of(ctx));
  } else {
    LinearArgs args = args_for(x, experts.numel(), weight.K, out);
    args.x_choice = x.rank() == 3 ? weight.K : 0;
    args.out_stride = weight.N;
    args.part[args.parts++] = part_of(one, 0, 0);
    args.experts = experts.as<int32_t>();
    args.experts_stride = experts.stride(0);
    args.expert_bytes = weight.packed.stride(0);
    args.top_k = static_cast<int>(experts.size(1));
    args.E = static_cast<int>(weight.E);
    launch_plain(stream_of(ctx), args, x.dtype(), weight.dtype, static_cast<int>(blocks_for(weight.N, kWarps)));
  }
  launched(ctx, "grouped_linear");
}

}  // namespace calandra

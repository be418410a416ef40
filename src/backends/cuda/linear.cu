// Projections (ops/dense.h) and products with experts (ops/moe.h).
//
// bf16 activations with bf16 or f8 weights, on tensor cores (device/mma.cuh): a tile of 16 outputs (rows of the weight)
// by 8 or 16 rows of x. A block has one tile; each of its 8 warps sums one slice of K, and the slices are added in
// order. Weights go from memory straight to registers, 16 bytes a thread and four steps ahead; 8 kB of shared memory
// hold the partial sums. Bound by the read of the weights: every weight is read once per 16 rows. The order of a sum
// depends on K alone (and on the blocks of the scales): a row gives the same bits alone, in any batch, and with
// experts.
//
// Everything else (f32 activations, f32 and f16 weights, odd blocks of scales): one warp sums one output of up to four
// rows, 32 inputs at a time. For oracles and small parts of a model.
#include "backends/cuda/device/mma.cuh"
#include "backends/cuda/device/reduce.cuh"
#include "backends/cuda/linear_args.cuh"

namespace calandra {
namespace cuda {
namespace {

constexpr int kThreads = kSlices * kWarp;
constexpr int kTileN = 16;
constexpr int kAhead = 4;  // steps whose weights are loaded before the first is used

template <bool kF8, int kColumns>
__global__ void __launch_bounds__(kThreads) linear_few_rows(const __grid_constant__ LinearArgs a) {
  __shared__ float sums[kSlices][kColumns * 8][kTileN];
  const LinearPart& p = a.part_of(blockIdx.y);
  const int n0 = (static_cast<int>(blockIdx.y) - p.first_tile) * kTileN;
  const int rows = a.experts == nullptr ? kColumns * 8 : 1;
  const int64_t r0 = int64_t{blockIdx.x} * rows;
  const int warp = threadIdx.x / kWarp, g = threadIdx.x % kWarp / 4, t = threadIdx.x % 4;
  const std::byte* weight = a.weight_of(p, r0);

  if (weight != nullptr) {
    const std::byte *low = weight + int64_t{min(n0 + g, p.N - 1)} * p.row_bytes,
                    *high = weight + int64_t{min(n0 + g + 8, p.N - 1)} * p.row_bytes;
    const bf16_t* x[kColumns];
#pragma unroll
    for (int c = 0; c < kColumns; ++c) {
      const int64_t r = r0 + c * 8 + g;
      x[c] = c * 8 + g < rows && r < a.T ? a.row<bf16_t>(r) : nullptr;
    }
    const int begin = warp * a.slice, end = min(a.K, begin + a.slice);
    float total[kColumns][4] = {}, block[kColumns][4] = {};
    const auto add_block = [&](int k) {  // f8: the sum over one block of inputs times its scale
      const int64_t scale = k / p.block_k;
      const float s_low = reinterpret_cast<const float*>(low + p.scales_at)[scale],
                  s_high = reinterpret_cast<const float*>(high + p.scales_at)[scale];
#pragma unroll
      for (int c = 0; c < kColumns; ++c)
#pragma unroll
        for (int i = 0; i < 4; ++i) {
          total[c][i] = fmaf(block[c][i], i < 2 ? s_low : s_high, total[c][i]);
          block[c][i] = 0;
        }
    };
    for (int k0 = begin; k0 < end; k0 += kAhead * kStep) {
      uint4 w_low[kAhead], w_high[kAhead], v[kAhead][kColumns];
#pragma unroll
      for (int i = 0; i < kAhead; ++i) {
        const int k = k0 + i * kStep + 8 * t;
        w_low[i] = w_high[i] = uint4{};
        if (k0 + i * kStep < end) {
          w_low[i] = load_weight<kF8>(low, k);
          w_high[i] = load_weight<kF8>(high, k);
        }
#pragma unroll
        for (int c = 0; c < kColumns; ++c)
          v[i][c] = x[c] != nullptr && k0 + i * kStep < end ? load_x(x[c], k, a.K, a.x_aligned) : uint4{};
      }
#pragma unroll
      for (int i = 0; i < kAhead; ++i) {
        const int k = k0 + i * kStep;
        if (k >= end) break;
#pragma unroll
        for (int c = 0; c < kColumns; ++c) mma_step(kF8 ? block[c] : total[c], w_low[i], w_high[i], v[i][c]);
        if (kF8 && ((k + kStep) % p.block_k == 0 || k + kStep >= end)) add_block(k);
      }
    }
#pragma unroll
    for (int c = 0; c < kColumns; ++c)
#pragma unroll
      for (int i = 0; i < 4; ++i) sums[warp][c * 8 + 2 * t + i % 2][g + i / 2 * 8] = total[c][i];
  }
  __syncthreads();
  for (int i = threadIdx.x; i < kColumns * 8 * kTileN; i += kThreads) {
    const int n = i % kTileN, c = i / kTileN;
    if (c >= rows || r0 + c >= a.T || n0 + n >= p.N) continue;
    float sum = 0;
    if (weight != nullptr) {
#pragma unroll
      for (int s = 0; s < kSlices; ++s) sum += sums[s][c][n];
      if (p.bias != nullptr) sum += p.bias[n0 + n];
    }
    a.out.store((r0 + c) * a.out_stride + p.column + n0 + n, sum);
  }
}

constexpr int kWarps = 8;  // of the plain kernel
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

// Formats that have a kernel.
enum class Kind { kBf16, kF8, kPlain };
Kind kind_of(DType x, const PackedWeight& weight) {
  if (x != DType::kBF16) return Kind::kPlain;
  if (weight.dtype == DType::kBF16) return Kind::kBf16;
  return weight.dtype == DType::kF8E4M3 && weight.block_k % kStep == 0 ? Kind::kF8 : Kind::kPlain;
}

void launch_few_rows(cudaStream_t stream, const LinearArgs& args, bool f8, int tiles) {
  const bool narrow = args.T <= 8 || args.experts != nullptr;
  const dim3 grid(blocks_for(args.T, args.experts != nullptr ? 1 : narrow ? 8 : 16), tiles);
  const auto launch = [&](auto kernel) { kernel<<<grid, kThreads, 0, stream>>>(args); };
  if (f8)
    narrow ? launch(linear_few_rows<true, 1>) : launch(linear_few_rows<true, 2>);
  else
    narrow ? launch(linear_few_rows<false, 1>) : launch(linear_few_rows<false, 2>);
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
  args.x_aligned = K % 8 == 0 && rows_aligned(x, 16);
  args.T = static_cast<int>(rows);
  args.K = static_cast<int>(K);
  args.slice = static_cast<int>(padded((K + kSlices - 1) / kSlices, kStep));
  args.out = output_of(out);
  return args;
}

}  // namespace
}  // namespace cuda

using namespace cuda;

// The parts of one kind that follow each other are one launch.
void CudaBackend::linear(ExecContext& ctx, const Tensor& x, const LinearPack& pack, Tensor& out) {
  const auto parts = pack.parts();
  int column = 0;
  for (size_t i = 0; i < parts.size();) {
    const Kind kind = kind_of(x.dtype(), parts[i]);
    LinearArgs args = args_for(x, x.size(0), pack.K(), out);
    args.out_stride = out.stride(0);
    int tiles = 0;
    const DType stored = parts[i].dtype;
    for (; i < parts.size() && kind_of(x.dtype(), parts[i]) == kind && parts[i].dtype == stored; ++i) {
      if (parts[i].N == 0) continue;
      args.part[args.parts++] = part_of(parts[i], column, tiles);
      tiles += static_cast<int>(blocks_for(parts[i].N, kind == Kind::kPlain ? kWarps : kTileN));
      column += static_cast<int>(parts[i].N);
    }
    if (tiles == 0) continue;
    if (kind == Kind::kPlain)
      launch_plain(stream_of(ctx), args, x.dtype(), stored, tiles);
    else
      launch_few_rows(stream_of(ctx), args, kind == Kind::kF8, tiles);
    launched(ctx, "linear");
  }
}

// One row a block: rows of one expert share its weights in the caches only.
void CudaBackend::grouped_linear(ExecContext& ctx, const Tensor& x, const GroupedWeight& weight, const Tensor& experts,
                                 Tensor& out) {
  if (ctx.dry_run) return;
  const PackedWeight one = weight.expert(0);
  LinearArgs args = args_for(x, experts.numel(), weight.K, out);
  args.x_choice = x.rank() == 3 ? weight.K : 0;
  args.out_stride = weight.N;
  args.part[args.parts++] = part_of(one, 0, 0);
  args.experts = experts.as<int32_t>();
  args.experts_stride = experts.stride(0);
  args.expert_bytes = weight.packed.stride(0);
  args.top_k = static_cast<int>(experts.size(1));
  args.E = static_cast<int>(weight.E);
  const Kind kind = kind_of(x.dtype(), one);
  if (kind == Kind::kPlain)
    launch_plain(stream_of(ctx), args, x.dtype(), weight.dtype, static_cast<int>(blocks_for(weight.N, kWarps)));
  else
    launch_few_rows(stream_of(ctx), args, kind == Kind::kF8, static_cast<int>(blocks_for(weight.N, kTileN)));
  launched(ctx, "grouped_linear");
}

}  // namespace calandra

// Launches of device/sm90_gemm.cuh. The tile is chosen by how many there are; it changes no bit.
#include "backends/cuda/linear_gemm.h"

#include <limits>

#include "backends/cuda/device/launch.cuh"
#include "backends/cuda/device/sm90_gemm_f8.cuh"
#include "backends/cuda/device/types.cuh"
#include "backends/cuda/packed_rows.h"
#include "backends/cuda/tensor_map.h"

namespace calandra::cuda {

namespace {

constexpr int kSms = 132;

// Tiles of `rows` rows of kTileDepth numbers of [matrices, N, K] bf16.
CUtensorMap map_tiles(const void* data, int64_t K, int64_t N, int64_t row_bytes, int rows, int64_t matrices = 0,
                      int64_t matrix_bytes = 0) {
  return encode({.data = data,
                 .type = CU_TENSOR_MAP_DATA_TYPE_BFLOAT16,
                 .columns = K,
                 .N = N,
                 .row_bytes = row_bytes,
                 .box_columns = kTileDepth,
                 .box_rows = rows,
                 .matrices = matrices,
                 .matrix_bytes = matrix_bytes});
}

}  // namespace

bool has_gemm(const Tensor& x, const PackedWeight& weight) {
  if (x.dtype() != DType::kBF16 || weight.K % 8 != 0 || !rows_aligned(x, 16)) return false;
  if (weight.dtype == DType::kF8E4M3) return weight.block_k == kF8Depth && x.size(0) >= kGemmF8Rows;
  return weight.dtype == DType::kBF16 && x.size(0) >= kGemmRows;
}

GemmLaunch::GemmLaunch(const Tensor& x) : x_(x) {
  args_.T = static_cast<int>(x.size(0));
  args_.K = static_cast<int>(x.size(1));
}

GemmLaunch::GemmLaunch(const Tensor& x, const SortedRows& sorted) : GemmLaunch(x) {
  sorted_tile_ = sorted.tile;
  args_.row_tiles = static_cast<int>(sorted.most_tiles);
  args_.tile_count = sorted.tile_count;
  args_.tiles = sorted.tiles;
  args_.out_rows = sorted.out_rows;
}

GemmPart& GemmLaunch::part(const PackedWeight& weight, int64_t experts, int64_t expert_bytes, const Tensor& out) {
  CHECK_LT(args_.parts, GemmArgs::kMostParts);
  CHECK(args_.parts == 0 || weight.dtype == stored_);
  stored_ = weight.dtype;
  experts_[static_cast<size_t>(args_.parts)] = experts;
  GemmPart& p = args_.part[args_.parts++];
  p.packed = weight.packed.bytes_at(0);
  p.expert_bytes = expert_bytes;
  p.row_bytes = static_cast<int>(packed_row(weight.dtype, weight.K, weight.block_k));
  p.value_bytes = static_cast<int>(padded_values(weight.dtype, weight.K));
  p.N = static_cast<int>(weight.N);
  p.out = {const_cast<void*>(out.data()), is_bf16(out)};
  return p;
}

void GemmLaunch::add(const PackedWeight& weight, const Tensor& out, int64_t column, const Tensor& residual) {
  GemmPart& p = part(weight, 1, weight.packed.numel(), out);
  p.bias = weight.bias ? weight.bias.as<float>() : nullptr;
  p.out.data = static_cast<std::byte*>(p.out.data) + column * static_cast<int64_t>(size_of(out.dtype()));
  p.out_stride = out.stride(0);
  p.aligned = is_bf16(out) && p.N % 8 == 0 && column % 8 == 0 && rows_aligned(out, 16);
  if (residual) {
    p.residual = static_cast<const bf16_t*>(residual.data());
    p.residual_stride = residual.stride(0);
    p.aligned = p.aligned && rows_aligned(residual, 16);
  }
}

void GemmLaunch::experts(const GroupedWeight& weight, const Tensor& out) {
  GemmPart& p = part(weight.expert(0), weight.E, weight.packed.stride(0), out);
  p.out_stride = weight.N;
  p.aligned = is_bf16(out) && p.N % 8 == 0 && reinterpret_cast<uintptr_t>(out.data()) % 16 == 0;
}

template <int kRows, int kColumns, auto kKernel>
void GemmLaunch::launch(int threads, cudaStream_t stream) {
  args_.x = map_tiles(x_.data(), args_.K, args_.T, x_.stride(0) * 2, kRows);
  if (sorted_tile_ == 0) args_.row_tiles = static_cast<int>(blocks_for(args_.T, kRows));
  args_.column_tiles = 0;
  for (int i = 0; i < args_.parts; ++i) {
    GemmPart& p = args_.part[i];
    const int64_t experts = experts_[static_cast<size_t>(i)];
    p.weight = stored_ == DType::kBF16
                   ? map_tiles(p.packed, args_.K, p.N, p.row_bytes, kColumns, experts, p.expert_bytes)
                   : encode({.data = p.packed,
                             .type = CU_TENSOR_MAP_DATA_TYPE_UINT8,
                             .columns = p.value_bytes,
                             .N = p.N,
                             .row_bytes = p.row_bytes,
                             .box_columns = kF8Depth,
                             .box_rows = kColumns,
                             .matrices = experts,
                             .matrix_bytes = p.expert_bytes});
    p.first_tile = args_.column_tiles;
    args_.column_tiles += static_cast<int>(blocks_for(p.N, kColumns));
  }
  allow_shared<kKernel>(kGemmShared);
  kKernel<<<std::min(kSms, args_.row_tiles * args_.column_tiles), threads, kGemmShared, stream>>>(args_);
}

// The least time if a tile takes what its sums and its share of the tensor cores' speed say.
void GemmLaunch::run(cudaStream_t stream, int tile) {
  struct Kind {
    int rows, columns;
    double speed;
    bool f8;
  };
  constexpr Kind kKinds[] = {{128, 256, 1.0, false}, {128, 128, 0.8, false}, {64, 128, 0.6, false},
                             {64, 64, 0.45, false},  {256, 128, 0.8, true},  {128, 128, 0.75, true},
                             {64, 128, 0.55, true}};
  if (args_.parts == 0) return;
  const bool given = tile >= 0;
  double least = std::numeric_limits<double>::infinity();
  for (int i = 0; i < (given ? 0 : 7); ++i) {
    const Kind& kind = kKinds[i];
    if (kind.f8 != (stored_ == DType::kF8E4M3) || (sorted_tile_ != 0 && sorted_tile_ != kind.rows)) continue;
    int64_t columns = 0;
    for (int j = 0; j < args_.parts; ++j) columns += blocks_for(args_.part[j].N, kind.columns);
    const int64_t rows = sorted_tile_ != 0 ? args_.row_tiles : blocks_for(args_.T, kind.rows);
    const double time = blocks_for(rows * columns, kSms) * (kind.rows * kind.columns / kind.speed);
    if (time < least) least = time, tile = i;
  }
  switch (tile) {
    case 0:
      return launch<128, 256, gemm<256, 2>>(3 * kWarpgroup, stream);
    case 1:
      return launch<128, 128, gemm<128, 2>>(3 * kWarpgroup, stream);
    case 2:
      return launch<64, 128, gemm<128, 1>>(2 * kWarpgroup, stream);
    case 3:
      return launch<64, 64, gemm<64, 1>>(2 * kWarpgroup, stream);
    case 4:
      return launch<256, kF8Columns, gemm_f8<256>>(kF8Threads, stream);
    case 5:
      return launch<128, kF8Columns, gemm_f8<128>>(kF8Threads, stream);
    default:
      return launch<64, kF8Columns, gemm_f8<64>>(kF8Threads, stream);
  }
}

}  // namespace calandra::cuda

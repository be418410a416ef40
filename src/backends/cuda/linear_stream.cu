// Launches of device/sm90_stream_f8.cuh.
#include "backends/cuda/linear_stream.h"

#include <limits>

#include "backends/cuda/device/launch.cuh"
#include "backends/cuda/device/types.cuh"
#include "backends/cuda/packed_rows.h"
#include "backends/cuda/tensor_map.h"

namespace calandra::cuda {

namespace {

// Into how many parts K is cut: the least time, in stages while all slots (blocks at once) are busy. A block alone is
// faster than one among all, and its first and last stages overlap with others' only in part.
int parts_of_K(int tiles, int blocks, int slots) {
  constexpr double kFill = 1.5, kAlone = 0.4;
  double least = std::numeric_limits<double>::infinity();
  int best = 1;
  for (int splits = 1; splits <= std::min(kMostStreamParts, blocks); ++splits) {
    const int all = tiles * splits, rest = all % slots;
    const double stages = (blocks + splits - 1) / splits;
    double time = all / slots * (stages + kFill);
    if (rest > 0) time += std::max(stages * rest / slots, stages * kAlone) + kFill;
    if (time < least) least = time, best = splits;
  }
  return best;
}

}  // namespace

bool has_stream(const Tensor& x, const PackedWeight& weight) {
  return x.dtype() == DType::kBF16 && weight.dtype == DType::kF8E4M3 && weight.block_k == kStreamInputs &&
         weight.K % 8 == 0 && rows_aligned(x, 16) && x.size(0) <= kMostStreamRows && x.size(0) >= kStreamRows;
}

StreamLaunch::StreamLaunch(const Tensor& x) : x_(x) {
  args_.T = static_cast<int>(x.size(0));
  args_.blocks = static_cast<int>(blocks_for(x.size(1), kStreamInputs));
}

StreamPart& StreamLaunch::part(const PackedWeight& first, const PackedWeight& second, const Tensor& out, After after) {
  CHECK_LT(args_.parts, StreamArgs::kMostParts);
  StreamPart& p = args_.part[args_.parts++];
  for (int group = 0; group < kStreamGroups; ++group) {
    const PackedWeight& weight = group == 0 ? first : second;
    const std::byte* data = weight.packed.bytes_at(0);
    const int64_t values = padded_values(weight.dtype, weight.K),
                  row = packed_row(weight.dtype, weight.K, weight.block_k);
    p.weight[group] = encode({.data = data,
                              .type = CU_TENSOR_MAP_DATA_TYPE_UINT8,
                              .columns = values,
                              .N = weight.N,
                              .row_bytes = row,
                              .box_columns = kStreamInputs,
                              .box_rows = 64});
    p.scales[group] = encode({.data = data + values,
                              .type = CU_TENSOR_MAP_DATA_TYPE_FLOAT32,
                              .columns = (row - values) / 4,
                              .N = weight.N,
                              .row_bytes = row,
                              .box_columns = 4,
                              .box_rows = 64,
                              .swizzle = CU_TENSOR_MAP_SWIZZLE_NONE});
    p.bias[group] = weight.bias ? weight.bias.as<float>() : nullptr;
  }
  p.N = static_cast<int>(first.N);
  p.after = after;
  p.first_tile = tiles_;
  p.out = {const_cast<void*>(out.data()), is_bf16(out)};
  p.out_stride = out.stride(0);
  tiles_ += static_cast<int>(blocks_for(p.N, p.outputs_of_tile()));
  outputs_ += after == After::kSwiGlu ? 2 * first.N : first.N;
  return p;
}

void StreamLaunch::add(const PackedWeight& weight, const Tensor& out, int64_t column, const Tensor& residual) {
  StreamPart& p = part(weight, weight, out, residual ? After::kAdd : After::kStore);
  p.out.data = static_cast<std::byte*>(p.out.data) + column * static_cast<int64_t>(size_of(out.dtype()));
  if (!residual) return;
  p.residual = static_cast<const bf16_t*>(residual.data());
  p.residual_stride = residual.stride(0);
}

void StreamLaunch::swiglu(const PackedWeight& gate, const PackedWeight& up, const Tensor& out) {
  part(gate, up, out, After::kSwiGlu);
}

template <int kRows>
void StreamLaunch::launch(cudaStream_t stream) {
  args_.x = encode({.data = x_.data(),
                    .type = CU_TENSOR_MAP_DATA_TYPE_BFLOAT16,
                    .columns = x_.size(1),
                    .N = x_.size(0),
                    .row_bytes = x_.stride(0) * 2,
                    .box_columns = kTileDepth,
                    .box_rows = kRows});
  const auto tiles = static_cast<int>(blocks_for(outputs_, kStreamOutputs));  // the same fused and not
  args_.splits = parts_of_K(tiles, args_.blocks, static_cast<int>(kMultiprocessors) * StreamStage<kRows>::kBlocks);
  constexpr size_t kBytes = StreamStage<kRows>::kShared;
  allow_shared<stream_f8<kRows>>(kBytes);
  const auto splits = static_cast<unsigned>(args_.splits);
  launch_clusters(stream_f8<kRows>, dim3(static_cast<unsigned>(tiles_) * splits), dim3(kStreamThreads), dim3(splits),
                  kBytes, stream, Split::kForMostBlocks, args_);
}

void StreamLaunch::run(cudaStream_t stream) {
  if (tiles_ == 0) return;
  const int T = args_.T;
  if (T <= 8)
    launch<8>(stream);
  else if (T <= 16)
    launch<16>(stream);
  else if (T <= 32)
    launch<32>(stream);
  else if (T <= 64)
    launch<64>(stream);
  else
    launch<kMostStreamRows>(stream);
}

}  // namespace calandra::cuda

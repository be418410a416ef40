// Launches of device/few_rows.cuh. How much a block reads at once is chosen by measurement and changes no bit: enough
// blocks to fill the device when there are many tiles, longer reads when there are few.
#include "backends/cuda/linear_few_rows.h"

#include <algorithm>

#include "backends/cuda/device/launch.cuh"
#include "backends/cuda/device/types.cuh"
#include "backends/cuda/packed_rows.h"

namespace calandra::cuda {

bool has_few_rows(DType x, const PackedWeight& weight) {
  if (x != DType::kBF16) return false;
  return weight.dtype == DType::kBF16 || (weight.dtype == DType::kF8E4M3 && weight.block_k == kOfWarp);
}

FewRowsPart& FewRowsLaunch::part(const Tensor& x, const PackedWeight& weight, const Tensor& out, After after) {
  CHECK_LT(args_.parts, FewRowsArgs::kMostParts);
  CHECK(args_.parts == 0 || args_.part[args_.parts - 1].expert_bytes == 0);
  FewRowsPart& p = args_.part[args_.parts++];
  p.weight = weight.packed.bytes_at(0);
  p.bias = weight.bias ? weight.bias.as<float>() : nullptr;
  p.x = static_cast<const bf16_t*>(x.data());
  p.x_stride = x.stride(0);
  p.out = {const_cast<void*>(out.data()), is_bf16(out)};
  p.out_stride = out.stride(0);
  p.row_bytes = static_cast<int>(packed_row(weight.dtype, weight.K, weight.block_k));
  p.value_bytes = static_cast<int>(padded_values(weight.dtype, weight.K));
  p.N = static_cast<int>(weight.N);
  p.K = static_cast<int>(weight.K);
  p.after = after;
  p.f8 = weight.dtype == DType::kF8E4M3;
  p.x_aligned = weight.K % (p.f8 ? kOfWarp : 8) == 0 && rows_aligned(x, 16);
  return p;
}

FewRowsPart& FewRowsLaunch::grouped(const Tensor& x, const GroupedWeight& weight, const Tensor& chosen,
                                    const Tensor& out, After after) {
  FewRowsPart& p = part(x, weight.expert(0), out, after);
  p.x_choice = x.rank() == 3 ? weight.K : 0;
  p.out_stride = weight.N;  // from choice to choice
  p.expert_bytes = weight.packed.stride(0);
  args_.experts = chosen.as<int32_t>();
  args_.experts_stride = chosen.stride(0);
  args_.top_k = static_cast<int>(chosen.size(1));
  args_.E = static_cast<int>(weight.E);
  CHECK_LE(args_.top_k * kMostRows, kMostChoices);
  return p;
}

void FewRowsLaunch::add(const Tensor& x, const PackedWeight& weight, const Tensor& out, int64_t column) {
  FewRowsPart& p = part(x, weight, out, After::kStore);
  p.out.data = static_cast<std::byte*>(p.out.data) + column * static_cast<int64_t>(size_of(out.dtype()));
}

void FewRowsLaunch::add_to(const Tensor& x, const PackedWeight& weight, const Tensor& residual, const Tensor& out) {
  FewRowsPart& p = part(x, weight, out, After::kAdd);
  p.residual = static_cast<const bf16_t*>(residual.data());
  p.residual_stride = residual.stride(0);
}

void FewRowsLaunch::swiglu(const Tensor& x, const PackedWeight& gate, const PackedWeight& up, const Tensor& out) {
  FewRowsPart& p = part(x, gate, out, After::kSwiGlu);
  p.other = up.packed.bytes_at(0);
  p.other_bias = up.bias ? up.bias.as<float>() : nullptr;
}

void FewRowsLaunch::experts(const Tensor& x, const GroupedWeight& weight, const Tensor& chosen, const Tensor& out) {
  grouped(x, weight, chosen, out, After::kStore);
}

void FewRowsLaunch::swiglu_experts(const Tensor& x, const GroupedWeight& gate, const GroupedWeight& up,
                                   const Tensor& chosen, const Tensor& out) {
  CHECK_EQ(gate.packed.stride(0), up.packed.stride(0));
  grouped(x, gate, chosen, out, After::kSwiGlu).other = up.packed.bytes_at(0);
}

// Each block routes one row; for more rows a launch of its own is faster.
bool FewRowsLaunch::can_route(int64_t T, const RouteArgs& route) { return T <= 4 && route.words() <= kRouteWords; }

namespace {

template <Stored kStored, class Shape, bool kGrouped, bool kAligned>
void launch(cudaStream_t stream, FewRowsArgs& args) {
  int blocks = 0;
  for (int i = 0; i < args.parts; ++i) {
    FewRowsPart& p = args.part[i];
    p.first_block = blocks;
    blocks += p.blocks(Shape::kTiles) * (p.expert_bytes == 0 ? 1 : std::min(args.T, kMostRows) * args.top_k);
  }
  args.row_tiles = static_cast<int>(blocks_for(args.T, Shape::kRows));
  launch_follower(few_rows<kStored, Shape, kGrouped, kAligned>, dim3(static_cast<unsigned>(blocks * args.row_tiles)),
                  dim3(kTileWarps * kWarp), 0, stream, args);
}

}  // namespace

// Measured on an H100: see bench/results/cuda_few_rows.md.
void FewRowsLaunch::run(cudaStream_t stream) {
  constexpr int kSms = 132;
  // Blocks of long rows take longest: they begin first, but for experts, which are the last part.
  std::sort(args_.part, args_.part + args_.parts - (args_.experts != nullptr ? 1 : 0),
            [](const FewRowsPart& a, const FewRowsPart& b) { return a.value_bytes > b.value_bytes; });
  int tiles = 0, longest = 0, of_f8 = 0;
  bool aligned = true;
  for (int i = 0; i < args_.parts; ++i) {
    tiles += args_.part[i].blocks(1);
    longest = std::max(longest, args_.part[i].value_bytes);
    of_f8 += args_.part[i].f8;
    aligned = aligned && args_.part[i].x_aligned;
  }
  const bool high = args_.T > 8, f8 = of_f8 > 0, grouped = args_.experts != nullptr;
  const auto of_format = [&]<Stored kStored>() {
    // Rows, chunks of weights ahead, of x at once, tiles, blocks of a multiprocessor.
    const auto dense = [&]<int kRows, int kAhead, int kX, int kTiles, int kBlocks>() {
      launch<kStored, FewRowsShape<kRows, kAhead, kX, kTiles, kBlocks>, false, true>(stream, args_);
    };
    const auto experts = [&]<int kRows, int kTiles, int kBlocks>() {
      launch<kStored, FewRowsShape<kRows, 1, 1, kTiles, kBlocks>, true, true>(stream, args_);
    };
    if (!aligned) {  // odd sizes: any rows, no hurry
      if (!grouped) return launch<kStored, FewRowsShape<kMostRows, 1, 1, 1, 3>, false, false>(stream, args_);
      return high ? launch<kStored, FewRowsShape<kMostRows, 1, 1, 2, 3>, true, false>(stream, args_)
                  : launch<kStored, FewRowsShape<8, 1, 1, 2, 3>, true, false>(stream, args_);
    }
    constexpr bool kOnlyBF16 = kStored == Stored::kBF16;
    if (grouped) {
      if (!high) return experts.template operator()<8, 2, 4>();
      return experts.template operator() < 16, kOnlyBF16 ? 4 : 2, kOnlyBF16 ? 2 : 3 > ();
    }
    if (args_.T > kMostRows) {
      const bool wide = tiles * blocks_for(args_.T, 64) > 4 * kSms;  // enough of them for all multiprocessors
      if (args_.T > 32)
        return wide ? dense.template operator()<64, 1, 1, 4, 1>() : dense.template operator()<64, 1, 1, 1, 2>();
      return wide ? dense.template operator()<32, 1, 1, 4, 1>() : dense.template operator()<32, 1, 1, 1, 2>();
    }
    if constexpr (!kOnlyBF16) {  // if they fit, all blocks at once
      if (high)
        return tiles > 4 * kSms ? dense.template operator()<16, 1, 1, 2, 3>()
                                : dense.template operator()<16, 1, 1, 1, 3>();
      if (tiles <= 3 * kSms) return dense.template operator()<8, 2, 2, 1, 3>();
      return tiles <= 5 * kSms ? dense.template operator()<8, 1, 1, 1, 5>()
                               : dense.template operator()<8, 1, 1, 2, 3>();
    } else {
      if (tiles <= 2 * kSms)
        return high ? dense.template operator()<16, 4, 4, 1, 2>() : dense.template operator()<8, 4, 4, 1, 2>();
      if (high)
        return longest <= 2 * kChunk ? dense.template operator()<16, 1, 1, 4, 2>()
                                     : dense.template operator()<16, 1, 1, 2, 3>();
      if (tiles <= 3 * kSms) return dense.template operator()<8, 3, 3, 1, 3>();
      if (tiles > 4 * kSms && tiles <= 5 * kSms)  // all blocks at once
        return dense.template operator()<8, 2, 1, 1, 5>();
      dense.template operator()<8, 2, 2, 1, 4>();
    }
  };
  if (!f8)
    of_format.operator()<Stored::kBF16>();
  else
    of_f8 == args_.parts ? of_format.operator()<Stored::kF8>() : of_format.operator()<Stored::kBoth>();
}

}  // namespace calandra::cuda

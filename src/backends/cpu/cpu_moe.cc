// Mixtures of experts: the (row, choice) pairs of a step are sorted by expert, so that each expert's weights are read
// once. Work is split into panels of blocks of at most kRowBlock rows of one expert; a thread takes consecutive panels,
// so that with one row all threads stream through the weights of its few experts. Each sum is that of cpu_linear.cc.
#include <algorithm>
#include <cstring>

#include "backends/cpu/cpu_backend.h"
#include "backends/cpu/dense_kernels.h"
#include "backends/cpu/moe_kernels.h"
#include "backends/cpu/panels.h"
#include "backends/cpu/row_split.h"
#include "backends/reference/route_row.h"

namespace calandra {
namespace {

constexpr int64_t kPanelCost = 2;  // reading a panel takes about as long as multiplying this many rows with it
constexpr int64_t kProductsPerThread = 1 << 17;

int index_of(const Tensor& x) { return x.dtype() == DType::kBF16; }

// Rows of one expert that are multiplied together.
struct Block {
  int64_t expert;
  int64_t first;  // place of the first row
  int64_t rows;   // at most kRowBlock
  int64_t N, K;   // of its matrix
};

// The pairs t * k + j of a step in the order of their experts; pairs of one expert keep their order.
class SortedPairs {
 public:
  // Takes its memory from the workspace. E: experts, of which the pairs may touch `touched`.
  SortedPairs(Workspace& workspace, int64_t pairs, int64_t E)
      : pairs_(pairs),
        E_(E),
        max_blocks_(std::min(E, pairs) + 2 * (pairs / kRowBlock) + 1),
        start_(workspace.alloc(DType::kI32, {E + 2})),
        order_(workspace.alloc(DType::kI32, {pairs})),
        places_(workspace.alloc(DType::kI32, {pairs})),
        blocks_(workspace.alloc(DType::kU8, {max_blocks_ * static_cast<int64_t>(sizeof(Block))})) {}

  // Experts outside [0, E) come last, in no block.
  void sort(const Tensor& experts) {
    const int64_t k = experts.size(1);
    const auto expert_of = [&](int64_t pair) {
      const int64_t e = experts.as<int32_t>()[pair / k * experts.stride(0) + pair % k];
      return e < 0 || e >= E_ ? E_ : e;
    };
    int32_t* start = start_.as<int32_t>();
    std::fill_n(start, E_ + 2, 0);
    for (int64_t pair = 0; pair < pairs_; ++pair) ++start[expert_of(pair) + 1];
    for (int64_t e = 0; e <= E_; ++e) start[e + 1] += start[e];
    for (int64_t pair = 0; pair < pairs_; ++pair) {  // start[e] moves on to the end of e
      const int32_t place = start[expert_of(pair)]++;
      order()[place] = static_cast<int32_t>(pair);
      places()[pair] = place;
    }
  }

  // The blocks of all experts, then one more expert E with `extra` rows of its own, at the places from pairs on.
  std::span<const Block> blocks(int64_t N, int64_t K, int64_t extra = 0, int64_t extra_N = 0, int64_t extra_K = 0) {
    Block* blocks = static_cast<Block*>(blocks_.data());
    count_ = 0;
    for (int64_t e = 0; e < E_; ++e) add(blocks, e, begin_of(e), end_of(e), N, K);
    add(blocks, E_, pairs_, pairs_ + extra, extra_N, extra_K);
    CHECK_LE(count_, max_blocks_);
    return {blocks, static_cast<size_t>(count_)};
  }

  int64_t begin_of(int64_t e) const { return e == 0 ? 0 : end_of(e - 1); }
  int64_t end_of(int64_t e) const { return start_.as<int32_t>()[e]; }
  int32_t* order() const { return order_.as<int32_t>(); }    // pair at each place
  int32_t* places() const { return places_.as<int32_t>(); }  // place of each pair

 private:
  void add(Block* blocks, int64_t expert, int64_t begin, int64_t end, int64_t N, int64_t K) {
    const int64_t rows = end - begin, parts = (rows + kRowBlock - 1) / kRowBlock;
    for (int64_t i = 0; i < parts; ++i) {
      const int64_t first = rows * i / parts, behind = rows * (i + 1) / parts;
      blocks[count_++] = {expert, begin + first, behind - first, N, K};
    }
  }

  int64_t pairs_, E_, max_blocks_, count_ = 0;
  Tensor start_, order_, places_, blocks_;
};

// Memory of each thread: a widened weight block, two sets of sums, the rows of a block in f32.
Tensor product_scratch(Workspace& workspace, int threads, int64_t rows, int64_t K) {
  return workspace.alloc(DType::kF32, {threads, kWide + 2 * kSums + rows * blocks_of(K) * kXStride});
}

// For every row of every block: out(place) = in(place) W^T with the one matrix of weights_of(expert), or silu(gate) *
// up with its two. in(place) gives a row's first element, out(place, column) an element of the result; both are of
// `type`.
template <class WeightsOf, class In, class Out>
void multiply_blocks(ThreadPool& pool, const DenseKernels& dense, std::span<const Block> blocks, int type,
                     const Tensor& scratch, const WeightsOf& weights_of, const In& in, const Out& out) {
  const auto panel_cost = [](const Block& block) { return (block.rows + kPanelCost) * block.K; };
  int64_t total = 0;
  for (const Block& block : blocks) total += panels_of(block.N) * panel_cost(block);
  pool.parallel_for(total, kProductsPerThread / kPanel, [&](int64_t begin, int64_t end, int thread) {
    float* wide = scratch.as<float>() + thread * scratch.stride(0);
    float* sums = wide + kWide;
    float* x = sums + 2 * kSums;
    for (const Block& block : blocks) {
      const int64_t panels = panels_of(block.N), cost = panel_cost(block);
      const auto panel_at = [&](int64_t at) { return std::clamp<int64_t>((at + cost - 1) / cost, 0, panels); };
      const int64_t first = panel_at(begin), behind = panel_at(end);
      begin -= panels * cost, end -= panels * cost;
      if (first >= behind) continue;

      const int rows = static_cast<int>(block.rows);
      for (int r = 0; r < rows; ++r)
        dense.spread[type](in(block.first + r), 0, 1, block.K, x + r * kXStride, rows * kXStride);
      const LinearPack pack = weights_of(block.expert);
      const std::span<const PackedWeight> parts = pack.parts();
      for (int64_t panel = first; panel < behind; ++panel) {
        for (size_t i = 0; i < parts.size(); ++i) {
          PanelProduct task = panel_product(parts[i], panel);
          task.x = x;
          task.x_block_stride = rows * kXStride;
          task.rows = rows;
          task.wide = wide;
          task.sums = sums + i * kSums;
          dense.multiply(task);
        }
        for (int r = 0; r < rows; ++r) {
          PanelResult result{};
          result.rows = 1;
          result.columns = static_cast<int>(std::min<int64_t>(block.N - panel * kPanel, kPanel));
          result.out = out(block.first + r, panel * kPanel);
          const float* row = sums + r * kPanel;
          if (parts.size() == 1)
            dense.finish[type](row, result);
          else
            dense.finish_swiglu[type](row, row + kSums, result);
        }
      }
    }
  });
}

}  // namespace

void CpuBackend::route(ExecContext& ctx, const Tensor& logits, const Tensor& bias, const ops::RouterOptions& options,
                       ops::Routing& out) {
  constexpr int64_t kExponential = 16;  // takes as long as reading so many numbers
  const int64_t E = logits.size(1), k = options.top_k;
  const size_t mark = ctx.workspace.mark();
  const Tensor scratch = ctx.workspace.alloc(DType::kF32, {threads(), reference::route_scratch(E, options)});
  if (!ctx.dry_run)
    pool_.parallel_for(logits.size(0), std::max<int64_t>(1, kNumbersPerThread / (kExponential * E)),
                       [&](int64_t begin, int64_t end, int thread) {
                         for (int64_t t = begin; t < end; ++t)
                           reference::route_row(logits.as<float>() + t * logits.stride(0),
                                                bias ? bias.as<float>() : nullptr, E, options,
                                                scratch.as<float>() + thread * scratch.stride(0),
                                                out.experts.as<int32_t>() + t * k, out.weights.as<float>() + t * k);
                       });
  ctx.workspace.release(mark);
}

void CpuBackend::grouped_linear(ExecContext& ctx, const Tensor& x, const GroupedWeight& weight, const Tensor& experts,
                                Tensor& out) {
  const int64_t k = experts.size(1), pairs = experts.numel(), N = weight.N, K = weight.K;
  const size_t mark = ctx.workspace.mark();
  SortedPairs sorted(ctx.workspace, pairs, weight.E);
  const Tensor scratch = product_scratch(ctx.workspace, threads(), std::min<int64_t>(pairs, kRowBlock), K);
  if (!ctx.dry_run) {
    sorted.sort(experts);
    const int32_t* order = sorted.order();
    for (int64_t place = sorted.end_of(weight.E - 1); place < pairs; ++place)  // no such expert
      std::memset(out.bytes_at(order[place] * N), 0, static_cast<size_t>(N) * size_of(out.dtype()));
    multiply_blocks(
        pool_, dense_, sorted.blocks(N, K), index_of(x), scratch,
        [&](int64_t e) { return LinearPack{weight.expert(e)}; },
        [&](int64_t place) {
          const int64_t t = order[place] / k, j = order[place] % k;
          return x.bytes_at(t * x.stride(0) + (x.rank() == 3 ? j * x.stride(1) : 0));
        },
        [&](int64_t place, int64_t column) { return out.bytes_at(order[place] * N + column); });
  }
  ctx.workspace.release(mark);
}

void CpuBackend::moe_combine(ExecContext&, const Tensor& y, const Tensor& weights, Tensor& out) {
  const int64_t k = y.size(1), D = y.size(2);
  const auto weighted_sum = moe_.weighted_sum[index_of(y)];
  for_each_row(pool_, y.size(0), k * D, [&](int64_t t) {
    weighted_sum(y.bytes_at(t * y.stride(0)), y.stride(1), nullptr, weights.as<float>() + t * weights.stride(0), k,
                 out.bytes_at(t * D), D);
  });
}

// Four regions: router and shared gate; routing; gate and up of the chosen and the shared experts with their product;
// down; the sums. The same roundings as the parts.
void CpuBackend::sparse_moe(ExecContext& ctx, const Tensor& x, const ops::SparseMoeWeights& weights,
                            const ops::RouterOptions& options, const Tensor& residual, Tensor& out) {
  if (ctx.taps != nullptr) return Backend::sparse_moe(ctx, x, weights, options, residual, out);
  const int64_t T = x.size(0), D = x.size(1), E = weights.router.N, k = options.top_k, pairs = T * k;
  const int64_t F = weights.down.K, Fs = weights.shared_down.K, shared_rows = weights.shared_down.N > 0 ? T : 0;
  const bool gated = weights.shared_gate.N > 0;
  const int type = index_of(x);
  Workspace& workspace = ctx.workspace;
  const size_t mark = workspace.mark();

  Tensor logits = workspace.alloc(DType::kF32, {T, E + (gated ? 1 : 0)});
  if (!ctx.dry_run)
    linear(ctx, x, gated ? LinearPack{weights.router, weights.shared_gate} : LinearPack{weights.router}, logits);
  const ops::Routing routing = ops::route(ctx, logits.slice(1, 0, E), weights.bias, options);

  SortedPairs sorted(workspace, pairs, E);
  const Tensor scratch = product_scratch(workspace, threads(), std::min<int64_t>(T, kRowBlock),
                                         std::max({D, F, shared_rows > 0 ? Fs : 0}));
  const Tensor h = workspace.alloc(x.dtype(), {pairs, F}), y = workspace.alloc(x.dtype(), {pairs, D});  // by place
  const Tensor shared_h = workspace.alloc(x.dtype(), {shared_rows, Fs}),
               shared_y = workspace.alloc(x.dtype(), {shared_rows, D});
  if (!ctx.dry_run) {
    sorted.sort(routing.experts);
    const auto h_at = [&](int64_t place, int64_t column) {
      return place < pairs ? h.bytes_at(place * F + column) : shared_h.bytes_at((place - pairs) * Fs + column);
    };
    multiply_blocks(
        pool_, dense_, sorted.blocks(F, D, shared_rows, Fs, D), type, scratch,
        [&](int64_t e) {
          return e < E ? LinearPack{weights.gate.expert(e), weights.up.expert(e)} : weights.shared_gate_up;
        },
        [&](int64_t place) {
          return x.bytes_at((place < pairs ? sorted.order()[place] / k : place - pairs) * x.stride(0));
        },
        h_at);
    multiply_blocks(
        pool_, dense_, sorted.blocks(D, F, shared_rows, D, Fs), type, scratch,
        [&](int64_t e) { return LinearPack{e < E ? weights.down.expert(e) : weights.shared_down}; },
        [&](int64_t place) { return h_at(place, 0); },
        [&](int64_t place, int64_t column) {
          return place < pairs ? y.bytes_at(place * D + column) : shared_y.bytes_at((place - pairs) * D + column);
        });

    for_each_row(pool_, T, (k + 3) * D, [&](int64_t t) {
      std::byte *sum = out.bytes_at(t * D), *shared = shared_y.bytes_at(t * D);
      moe_.weighted_sum[type](y.data(), D, sorted.places() + t * k, routing.weights.as<float>() + t * k, k, sum, D);
      if (gated) {
        const float gate = logits.as<float>()[t * logits.stride(0) + E];
        const bf16 narrow(gate);
        moe_.sigmoid_scale[type](shared, type == 0 ? static_cast<const void*>(&gate) : &narrow, shared, D);
      }
      if (shared_rows > 0) dense_.add[type](sum, shared, sum, D);
      dense_.add[type](residual.bytes_at(t * residual.stride(0)), sum, sum, D);
    });
  }
  workspace.release(mark);
}

}  // namespace calandra

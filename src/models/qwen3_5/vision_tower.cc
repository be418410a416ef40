#include "models/qwen3_5/vision_tower.h"

#include <algorithm>
#include <cmath>

#include "base/check.h"
#include "ops/backend.h"
#include "ops/vision.h"

namespace calandra::qwen3_5 {
namespace {

constexpr float kLayerNormEps = 1e-6f;  // fixed in HF's Qwen3_5VisionBlock and Qwen3_5VisionPatchMerger
constexpr int64_t kEntries = 4;         // of the position table that a bilinear interpolation takes

void read_linear(PackedWeight& weight, const WeightReader& reader, const std::string& name, const Axis& N,
                 const Axis& K) {
  reader.linear(weight, name + ".weight", {N, K});
  reader.vector(weight.bias, name + ".bias", N);
}

void read_norm(LayerNorm& norm, const WeightReader& reader, const std::string& name, const Axis& D) {
  reader.vector(norm.weight, name + ".weight", D);
  reader.vector(norm.bias, name + ".bias", D);
}

// fn(row, column) of each patch of a frame, in the order of the patches: blocks of merge x merge, row by row.
template <class F>
void for_each_patch(const PatchGrid& grid, int64_t merge, const F& fn) {
  for (int64_t block_row = 0; block_row < grid.h; block_row += merge)
    for (int64_t block_column = 0; block_column < grid.w; block_column += merge)
      for (int64_t r = 0; r < merge; ++r)
        for (int64_t c = 0; c < merge; ++c) fn(block_row + r, block_column + c);
}

// Place i of n on an axis of `side` entries, the first on the first and the last on the last: between entries `low` and
// `high`, by `fraction` from the one to the other.
struct Interpolation {
  Interpolation(int64_t i, int64_t n, int64_t side) {
    const double at = static_cast<double>(i * (side - 1)) / static_cast<double>(std::max<int64_t>(n - 1, 1));
    low = static_cast<int64_t>(at);
    high = std::min(low + 1, side - 1);
    fraction = at - static_cast<double>(low);
  }
  int64_t low, high;
  double fraction;
};

template <class T>
Tensor to_device(ExecContext& ctx, DType dtype, const Shape& shape, const std::vector<T>& values) {
  const Tensor tensor = ctx.workspace.alloc_step(dtype, shape);
  CHECK_EQ(static_cast<int64_t>(values.size()), tensor.numel());
  if (!ctx.dry_run) ctx.backend.copy_bytes(tensor.data(), values.data(), values.size() * sizeof(T));
  return tensor;
}

}  // namespace

Tensor LayerNorm::operator()(ExecContext& ctx, const Tensor& x) const {
  return ops::layer_norm(ctx, x, weight, bias, kLayerNormEps);
}

VisionBlock::VisionBlock(const WeightReader& reader, const VisionConfig& c) {
  const Axis D{"vision hidden_size", c.hidden_size}, I{"vision intermediate_size", c.intermediate_size};
  read_norm(norm1, reader, "norm1", D);
  read_linear(qkv, reader, "attn.qkv", {"3 * vision hidden_size", 3 * c.hidden_size}, D);
  read_linear(proj, reader, "attn.proj", D, D);
  read_norm(norm2, reader, "norm2", D);
  read_linear(fc1, reader, "mlp.linear_fc1", I, D);
  read_linear(fc2, reader, "mlp.linear_fc2", D, I);
}

VisionTower::VisionTower(const VisionConfig& c, WeightReader reader, Backend& backend, DType dtype)
    : config_(c), dtype_(dtype) {
  const Axis D{"vision hidden_size", c.hidden_size}, side{"patch_size", c.patch_size};
  reader.flattened(patch_embed_, "patch_embed.proj.weight",
                   {D, {"in_channels", c.in_channels}, {"temporal_patch_size", c.temporal_patch_size}, side, side});
  reader.vector(patch_embed_.bias, "patch_embed.proj.bias", D);
  reader.tensor(pos_embed_, "pos_embed.weight", {{"num_position_embeddings", c.num_position_embeddings}, D},
                {c.num_position_embeddings, c.hidden_size});
  for (int64_t i = 0; i < c.depth; ++i) blocks_.emplace_back(reader.child("blocks").child(std::to_string(i)), c);

  const int64_t merged = c.spatial_merge_size * c.spatial_merge_size * c.hidden_size;
  const Axis MD{"spatial_merge_size^2 * vision hidden_size", merged};
  read_norm(merger_norm_, reader, "merger.norm", D);
  read_linear(merger_fc1_, reader, "merger.linear_fc1", MD, MD);
  read_linear(merger_fc2_, reader, "merger.linear_fc2", {"out_hidden_size", c.out_hidden_size}, MD);

  // Dh / 4 frequencies, first for the row of a patch, then for its column. HF Qwen3_5VisionRotaryEmbedding.
  const int64_t Dh = c.hidden_size / c.num_heads;
  std::vector<double> inv_freq;
  std::vector<int32_t> axes;
  for (const int32_t axis : {1, 2})
    for (int64_t i = 0; i < Dh / 4; ++i) {
      inv_freq.push_back(std::pow(c.rope_theta, -4.0 * static_cast<double>(i) / static_cast<double>(Dh)));
      axes.push_back(axis);
    }
  const size_t bytes = inv_freq.size() * sizeof(double);
  rotary_memory_ = backend.allocate(bytes + axes.size() * sizeof(int32_t));
  frequencies_.inv_freq = rotary_memory_.tensor(DType::kF64, {Dh / 2});
  frequencies_.axis = rotary_memory_.tensor(DType::kI32, {Dh / 2}, bytes);
  backend.copy_bytes(frequencies_.inv_freq.data(), inv_freq.data(), bytes);
  backend.copy_bytes(frequencies_.axis.data(), axes.data(), axes.size() * sizeof(int32_t));
}

VisionTower::Places VisionTower::places_of(ExecContext& ctx, std::span<const PatchGrid> grids) const {
  const int64_t merge = config_.spatial_merge_size;
  const auto side = static_cast<int64_t>(std::llround(std::sqrt(static_cast<double>(config_.num_position_embeddings))));
  std::vector<int32_t> rows, columns, entries, segment_start{0};
  std::vector<float> weights;
  for (const PatchGrid& grid : grids) {
    CHECK_EQ(grid.h % merge, 0);
    CHECK_EQ(grid.w % merge, 0);
    for (int64_t frame = 0; frame < grid.t; ++frame) {  // every frame has the same places
      for_each_patch(grid, merge, [&](int64_t row, int64_t column) {
        rows.push_back(static_cast<int32_t>(row));
        columns.push_back(static_cast<int32_t>(column));
        const Interpolation r(row, grid.h, side), c(column, grid.w, side);
        for (const int64_t entry :
             {r.low * side + c.low, r.low * side + c.high, r.high * side + c.low, r.high * side + c.high})
          entries.push_back(static_cast<int32_t>(entry));
        for (const double weight : {(1 - r.fraction) * (1 - c.fraction), (1 - r.fraction) * c.fraction,
                                    r.fraction * (1 - c.fraction), r.fraction * c.fraction})
          weights.push_back(static_cast<float>(weight));
      });
      segment_start.push_back(static_cast<int32_t>(rows.size()));
    }
  }
  const auto P = static_cast<int64_t>(rows.size());
  std::vector<int32_t> positions(rows.size());  // temporal: none
  positions.insert(positions.end(), rows.begin(), rows.end());
  positions.insert(positions.end(), columns.begin(), columns.end());

  Places places;
  places.rotary = ops::rope_table(ctx, to_device(ctx, DType::kI32, {3, P}, positions), frequencies_, DType::kF32);
  places.entries = to_device(ctx, DType::kI32, {P, kEntries}, entries);
  places.weights = to_device(ctx, DType::kF32, {P, kEntries}, weights);
  places.segment_start = to_device(ctx, DType::kI32, {static_cast<int64_t>(segment_start.size())}, segment_start);
  return places;
}

// x + attention(norm1(x)) within each frame. Queries and keys are rotated in f32 and rounded once, as HF does.
Tensor VisionTower::attention(ExecContext& ctx, const VisionBlock& block, const Tensor& x, const Places& places) const {
  const int64_t P = x.size(0), Dv = config_.hidden_size, H = config_.num_heads, Dh = Dv / H;
  const Tensor qkv = ops::linear(ctx, block.norm1(ctx, x), block.qkv, dtype_);  // [P, 3 Dv]
  const auto heads = [&](int64_t part) { return qkv.slice(1, part * Dv, (part + 1) * Dv).view({P, H, Dh}); };
  const Tensor q = ops::rope(ctx, heads(0), places.rotary);
  const Tensor k = ops::rope(ctx, heads(1), places.rotary);
  const float scale = 1 / std::sqrt(static_cast<float>(Dh));
  const Tensor o = ops::segment_attention(ctx, q, k, heads(2), places.segment_start, scale);  // [P, H, Dh]
  return ops::linear_add(ctx, o.view({P, Dv}), block.proj, x);
}

// x + fc2(gelu(fc1(norm2(x))))
Tensor VisionTower::mlp(ExecContext& ctx, const VisionBlock& block, const Tensor& x) const {
  const Tensor h = ops::linear(ctx, block.norm2(ctx, x), block.fc1, dtype_);  // [P, I]
  return ops::linear_add(ctx, ops::gelu(ctx, h, ops::GeluForm::kTanh), block.fc2, x);
}

// The patches of each merge block, which follow one another, side by side as one row.   returns [P / M, D]
Tensor VisionTower::merger(ExecContext& ctx, const Tensor& x) const {
  const int64_t M = config_.spatial_merge_size * config_.spatial_merge_size;
  const Tensor h = merger_norm_(ctx, x).view({x.size(0) / M, M * config_.hidden_size});
  const Tensor y = ops::gelu(ctx, ops::linear(ctx, h, merger_fc1_, dtype_), ops::GeluForm::kErf);
  return ops::linear(ctx, y, merger_fc2_, dtype_);
}

Tensor VisionTower::forward(ExecContext& ctx, const Tensor& patches, std::span<const PatchGrid> grids) const {
  const Scope scope("vision tower");
  const Places places = places_of(ctx, grids);
  CHECK_EQ(patches.size(0), places.entries.size(0));

  ctx.workspace.flip();
  const Tensor embedded = ops::linear(ctx, patches, patch_embed_, dtype_);                              // [P, Dv]
  const Tensor position = ops::weighted_rows(ctx, pos_embed_, places.entries, places.weights, dtype_);  // [P, Dv]
  Tensor x = ops::add(ctx, embedded, position);
  ctx.tap("vision.patch_embed", embedded);
  ctx.tap("vision.pos_embed", position);
  if (ctx.taps != nullptr) {  // HF's tables have each value twice
    ctx.tap("vision.rotary_cos", ops::concat_columns(ctx, places.rotary[0], places.rotary[0]));
    ctx.tap("vision.rotary_sin", ops::concat_columns(ctx, places.rotary[1], places.rotary[1]));
  }

  for (size_t i = 0; i < blocks_.size(); ++i) {
    const Scope block_scope("block", static_cast<int>(i));
    ctx.workspace.flip();
    x = attention(ctx, blocks_[i], x, places);
    ctx.workspace.flip();
    x = mlp(ctx, blocks_[i], x);
    ctx.tap(("vision.block_" + std::to_string(i)).c_str(), x);
  }
  ctx.workspace.flip();
  x = merger(ctx, x);
  ctx.tap("vision.merger", x);
  return x;
}

}  // namespace calandra::qwen3_5

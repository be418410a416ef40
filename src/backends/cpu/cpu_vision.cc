// Ops of vision towers on CpuBackend: rows split over threads; attention inside segments (vision_kernels.h).
#include <algorithm>

#include "backends/cpu/cpu_backend.h"
#include "backends/cpu/row_split.h"
#include "backends/cpu/vision_kernels.h"

namespace calandra {
namespace {

constexpr int64_t kPackedBytes = int64_t{64}
                                 << 20;  // of keys and values; more heads than fit go in turns, at least one

int index_of(const Tensor& x) { return x.dtype() == DType::kBF16; }
std::byte* row_of(const Tensor& x, int64_t t) { return x.bytes_at(t * x.stride(0)); }
std::byte* head_of(const Tensor& x, int64_t t, int64_t h) { return x.bytes_at(t * x.stride(0) + h * x.stride(1)); }
int64_t padded(int64_t n) { return (n + kVectorFloats - 1) / kVectorFloats * kVectorFloats; }

// Blocks of at most `size` patches that lie in one segment, numbered without looking at all segments: those of segment
// s begin at number start[s] / size + s, and some numbers have no block.
class SegmentBlocks {
 public:
  SegmentBlocks(const Tensor& segment_start, int64_t size)
      : start_(segment_start.as<int32_t>()), segments_(segment_start.size(0) - 1), size_(size) {}

  int64_t numbers() const { return first(segments_); }
  struct Block {
    int64_t segment, begin, end;  // patches; empty: begin >= end
  };
  Block block(int64_t number) const {
    int64_t low = 0, high = segments_;  // the last segment whose first number is not above
    while (high - low > 1) {
      const int64_t middle = (low + high) / 2;
      (first(middle) <= number ? low : high) = middle;
    }
    const int64_t begin = start_[low] + (number - first(low)) * size_;
    return {low, begin, std::min<int64_t>(begin + size_, start_[low + 1])};
  }
  int64_t begin(int64_t segment) const { return start_[segment]; }
  int64_t end(int64_t segment) const { return start_[segment + 1]; }

 private:
  int64_t first(int64_t segment) const { return start_[segment] / size_ + segment; }

  const int32_t* start_;
  int64_t segments_, size_;
};

// Keys and values of some heads in f32. Keys stand transposed, block by block of kSegmentKeys from the first of their
// segment on, in columns of which every block begins at a multiple of kVectorFloats.
struct PackedHeads {
  int64_t Dh, padded_Dh, columns, P;
  float *k, *v;

  float* keys(int64_t head, int64_t segment, int64_t segment_begin, int64_t patch) const {
    const int64_t column = (segment_begin + kVectorFloats * segment) / kVectorFloats * kVectorFloats;
    return k + (head * columns + column + patch - segment_begin) * Dh;
  }
  float* values(int64_t head, int64_t patch) const { return v + (head * P + patch) * padded_Dh; }
};

}  // namespace

void CpuBackend::layer_norm(ExecContext&, const Tensor& x, const Tensor& weight, const Tensor& bias, float eps,
                            Tensor& out) {
  const auto kernel = vision_.layer_norm[index_of(x)];
  const float *w = weight.as<float>(), *b = bias.as<float>();
  for_each_row(pool_, x.size(0), x.size(1),
               [&](int64_t p) { kernel(row_of(x, p), w, b, eps, row_of(out, p), x.size(1)); });
}

void CpuBackend::gelu(ExecContext&, const Tensor& x, ops::GeluForm form, Tensor& out) {
  const auto kernel = (form == ops::GeluForm::kTanh ? vision_.gelu_tanh : vision_.gelu_erf)[index_of(x)];
  for_each_row(pool_, x.size(0), x.size(1), [&](int64_t p) { kernel(row_of(x, p), row_of(out, p), x.size(1)); });
}

void CpuBackend::weighted_rows(ExecContext&, const Tensor& table, const Tensor& index, const Tensor& weight,
                               Tensor& out) {
  const auto kernel = vision_.weighted_row[index_of(out)];
  const int64_t J = index.size(1), D = table.size(1);
  for_each_row(pool_, out.size(0), J * D, [&](int64_t p) {
    kernel(table.as<float>(), table.stride(0), index.as<int32_t>() + p * index.stride(0),
           weight.as<float>() + p * weight.stride(0), J, row_of(out, p), D);
  });
}

void CpuBackend::segment_attention(ExecContext& ctx, const Tensor& q, const Tensor& k, const Tensor& v,
                                   const Tensor& segment_start, float scale, Tensor& out) {
  const int64_t P = q.size(0), H = q.size(1), Dh = q.size(2), S = segment_start.size(0) - 1;
  const int64_t padded_Dh = padded(Dh), columns = padded(P) + kVectorFloats * S;
  const int64_t head_floats = columns * Dh + P * padded_Dh;
  const int64_t heads = std::clamp<int64_t>(kPackedBytes / (head_floats * int64_t{sizeof(float)}), 1, H);
  const int64_t tile_floats = kSegmentQueries * (2 * padded_Dh + kSegmentKeys + 2);

  const size_t mark = ctx.workspace.mark();
  const Tensor memory = ctx.workspace.alloc(DType::kF32, {heads * head_floats}),
               tiles = ctx.workspace.alloc(DType::kF32, {threads() * tile_floats});
  if (ctx.dry_run) return ctx.workspace.release(mark);

  const SegmentBlocks keys(segment_start, kSegmentKeys), queries(segment_start, kSegmentQueries);
  float* const packed_k = memory.as<float>();
  const PackedHeads packed{Dh, padded_Dh, columns, P, packed_k, packed_k + heads * columns * Dh};
  const int type = index_of(q), dims = static_cast<int>(Dh), padded_dims = static_cast<int>(padded_Dh);
  for (int64_t first = 0; first < H; first += heads) {
    const int64_t some = std::min(heads, H - first);
    for_each_task(pool_, some * keys.numbers(), [&](int64_t task, int) {
      const int64_t head = task / keys.numbers();
      const auto [segment, begin, end] = keys.block(task % keys.numbers());
      if (begin >= end) return;
      const int rows = static_cast<int>(end - begin);
      vision_.transpose[type](head_of(k, begin, first + head), k.stride(0), rows, dims, static_cast<int>(padded(rows)),
                              packed.keys(head, segment, keys.begin(segment), begin));
      vision_.widen[type](head_of(v, begin, first + head), v.stride(0), rows, dims, 1, padded_dims,
                          packed.values(head, begin));
    });
    for_each_task(pool_, some * queries.numbers(), [&](int64_t task, int thread) {
      const int64_t head = task / queries.numbers();
      const auto [segment, begin, end] = queries.block(task % queries.numbers());
      if (begin >= end) return;
      float* const own = tiles.as<float>() + thread * tile_floats;
      SegmentTile tile{};
      tile.queries = static_cast<int>(end - begin);
      tile.Dh = dims;
      tile.padded_Dh = padded_dims;
      tile.acc = own + kSegmentQueries * padded_Dh;
      tile.scores = tile.acc + kSegmentQueries * padded_Dh;
      tile.max = tile.scores + kSegmentQueries * kSegmentKeys;
      tile.sum = tile.max + kSegmentQueries;
      vision_.widen[type](head_of(q, begin, first + head), q.stride(0), tile.queries, dims, scale, padded_dims, own);
      tile.q = own;
      vision_.clear(tile);
      for (int64_t key = keys.begin(segment); key < keys.end(segment); key += kSegmentKeys) {
        tile.k = packed.keys(head, segment, keys.begin(segment), key);
        tile.v = packed.values(head, key);
        tile.keys = static_cast<int>(std::min<int64_t>(kSegmentKeys, keys.end(segment) - key));
        vision_.attend(tile);
      }
      vision_.finish[type](tile, head_of(out, begin, first + head), out.stride(0));
    });
  }
  ctx.workspace.release(mark);
}

}  // namespace calandra

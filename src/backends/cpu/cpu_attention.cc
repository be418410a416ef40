// Attention of CpuBackend: rotary positions, the store of keys and values, paged attention (attention_kernels.h).
#include <atomic>
#include <cstring>

#include "backends/cpu/attention_kernels.h"
#include "backends/cpu/cpu_backend.h"
#include "backends/cpu/dense_kernels.h"

namespace calandra {
namespace {

constexpr int kSlots = 8;  // partials of each thread, when ranges of keys are dealt to threads
constexpr int kTotals = 2;

struct ThreadScratch {
  QueryTile tile;
  AttentionBlock block;
  SoftmaxPartial partial, total;
  SoftmaxPartial slots[kSlots];
  SoftmaxPartial totals[kTotals];
};

bool is_bf16(const Tensor& x) { return x.dtype() == DType::kBF16; }

// Where the key or value of a row stands.
std::byte* page_row(const Tensor& pages, const Batch& batch, int64_t row, int64_t head) {
  const int64_t index = batch.token_index.as<int32_t>()[row], page_tokens = pages.size(2);
  const int32_t sequence = batch.row_sequence.as<int32_t>()[row];
  const int32_t page = batch.block_table.as<int32_t>()[sequence * batch.block_table.stride(0) + index / page_tokens];
  return pages.bytes_at(page * pages.stride(0) + head * pages.stride(1) + index % page_tokens * pages.stride(2));
}

bool is_active(const Batch& batch, int64_t row) {
  return batch.active.as<int32_t>()[batch.row_sequence.as<int32_t>()[row]] != 0;
}

// Up to `most` rows of one sequence.
struct RowTile {
  int64_t begin = 0, end = 0;
};
RowTile tile_from(const Batch& batch, int64_t begin, int64_t most) {
  const int32_t* sequence = batch.row_sequence.as<int32_t>();
  RowTile tile{begin, begin};
  while (tile.end < batch.rows() && tile.end - begin < most && sequence[tile.end] == sequence[begin]) ++tile.end;
  return tile;
}

// One call of paged_attention. An item is a tile of rows with the query heads of one key head (at most kTileVectors
// vectors; more heads than that make several items). Items are numbered by tile, then heads.
class PagedAttention {
 public:
  PagedAttention(const AttentionKernels& kernels, const Tensor& q, const KvPages& pages, const Batch& batch,
                 float scale, const Tensor& first_key, Tensor& out)
      : kernels_(kernels), q_(q), pages_(pages), batch_(batch), scale_(scale), first_key_(first_key), out_(out) {
    heads_per_key_ = q.size(1) / pages.k.size(1);
    heads_ = std::min<int64_t>(heads_per_key_, kTileVectors);
    groups_ = (heads_per_key_ + heads_ - 1) / heads_;
    per_tile_ = pages.k.size(1) * groups_;
    rows_ = kTileVectors / heads_;
    for (int64_t row = 0; row < q.size(0); row = tile_from(batch, row, rows_).end) items_ += per_tile_;
    for (int64_t row = 0; row < q.size(0); ++row) longest_ = std::max<int64_t>(longest_, end_of(row));
  }

  int64_t items() const { return items_; }
  int64_t ranges() const { return (longest_ + kKeyRange - 1) / kKeyRange; }

  // A thread asks for items in ascending order; the cursor remembers the last tile.
  struct Cursor {
    int64_t number = 0;
    RowTile tile;
  };
  struct Item {
    RowTile rows;
    int64_t key_head, head, heads;
  };
  Item item(int64_t index, Cursor& cursor) const {
    if (cursor.tile.end == 0) cursor.tile = tile_from(batch_, 0, rows_);
    for (; cursor.number < index / per_tile_; ++cursor.number) cursor.tile = tile_from(batch_, cursor.tile.end, rows_);
    const int64_t key_head = index % per_tile_ / groups_, group = index % groups_;
    return {cursor.tile, key_head, key_head * heads_per_key_ + group * heads_,
            std::min(heads_, heads_per_key_ - group * heads_)};
  }

  void load(const Item& item, QueryTile& tile) const {
    tile.Dh = static_cast<int>(q_.size(2));
    tile.vectors = static_cast<int>((item.rows.end - item.rows.begin) * item.heads);
    int i = 0;
    for (int64_t row = item.rows.begin; row < item.rows.end; ++row)
      for (int64_t head = item.head; head < item.head + item.heads; ++head, ++i) {
        tile.begin[i] = static_cast<int32_t>(begin_of(row));
        tile.end[i] = static_cast<int32_t>(end_of(row));
        kernels_.load_query(q_.bytes_at(row * q_.stride(0) + head * q_.stride(1)), is_bf16(q_), scale_, tile.Dh,
                            tile.q + i * tile.Dh);
      }
  }

  // The keys of one range. False, and `partial` is left alone, when the item has none there.
  bool attend(const Item& item, const QueryTile& tile, int64_t range, AttentionBlock& block,
              SoftmaxPartial& partial) const {
    int64_t begin = (range + 1) * kKeyRange, end = 0;
    for (int i = 0; i < tile.vectors; ++i) {
      begin = std::min<int64_t>(begin, std::max<int64_t>(tile.begin[i], range * kKeyRange));
      end = std::max<int64_t>(end, std::min<int64_t>(tile.end[i], (range + 1) * kKeyRange));
    }
    if (begin >= end) return false;
    const int32_t sequence = batch_.row_sequence.as<int32_t>()[item.rows.begin];
    const PagedKeys keys{.k = pages_.k.bytes_at(item.key_head * pages_.k.stride(1)),
                         .v = pages_.v.bytes_at(item.key_head * pages_.v.stride(1)),
                         .bf16 = is_bf16(pages_.k),
                         .page_stride = pages_.k.stride(0),
                         .token_stride = pages_.k.stride(2),
                         .page_tokens = pages_.page_tokens(),
                         .block_table = batch_.block_table.as<int32_t>() + sequence * batch_.block_table.stride(0)};
    kernels_.attend(tile, keys, begin, end, block, partial);
    return true;
  }

  void finish(const Item& item, const SoftmaxPartial& total) const {
    const int Dh = static_cast<int>(q_.size(2));
    int i = 0;
    for (int64_t row = item.rows.begin; row < item.rows.end; ++row)
      for (int64_t head = item.head; head < item.head + item.heads; ++head, ++i)
        kernels_.finish(total, i, Dh, is_bf16(out_), out_.bytes_at(row * out_.stride(0) + head * out_.stride(1)));
  }

  void run(const Item& item, ThreadScratch& scratch) const {
    load(item, scratch.tile);
    kernels_.clear(scratch.tile.vectors, scratch.tile.Dh, scratch.total);
    for (int64_t range = 0; range < ranges(); ++range)
      if (attend(item, scratch.tile, range, scratch.block, scratch.partial))
        kernels_.merge(scratch.tile.vectors, scratch.tile.Dh, scratch.partial, scratch.total);
    finish(item, scratch.total);
  }

 private:
  int64_t begin_of(int64_t row) const {
    return first_key_.rank() == 0 ? 0 : std::max(0, first_key_.as<int32_t>()[batch_.row_sequence.as<int32_t>()[row]]);
  }
  int64_t end_of(int64_t row) const { return is_active(batch_, row) ? batch_.token_index.as<int32_t>()[row] + 1 : 0; }

  const AttentionKernels& kernels_;
  const Tensor& q_;
  const KvPages& pages_;
  const Batch& batch_;
  const float scale_;
  const Tensor& first_key_;
  Tensor& out_;
  int64_t heads_per_key_, heads_, groups_, per_tile_, rows_;
  int64_t items_ = 0, longest_ = 0;
};

}  // namespace

size_t CpuBackend::attention_bytes(int threads) { return static_cast<size_t>(threads) * sizeof(ThreadScratch); }

void CpuBackend::paged_attention(ExecContext& ctx, const Tensor& q, const KvPages& pages, const Batch& batch,
                                 float scale, const Tensor& first_key, Tensor& out) {
  if (ctx.dry_run) return;
  const int64_t Dh = q.size(2);
  if (Dh % 16 != 0 || Dh > kMaxHeadDim) {
    note_slow("paged_attention", "head_dim of a multiple of 16 up to 256");
    return ReferenceBackend::paged_attention(ctx, q, pages, batch, scale, first_key, out);
  }

  auto* scratch = static_cast<ThreadScratch*>(attention_scratch_.data());
  const PagedAttention attention(attention_, q, pages, batch, scale, first_key, out);
  const int64_t items = attention.items(), ranges = attention.ranges();
  if (items >= kTotals * threads() || ranges == 1) {
    std::atomic<int64_t> next{0};
    pool_.run([&](int thread) {
      PagedAttention::Cursor cursor;
      for (int64_t i = next++; i < items; i = next++) attention.run(attention.item(i, cursor), scratch[thread]);
    });
    return;
  }

  // Few items with many keys: ranges are dealt to threads too, as many at a time as there are slots for their partials.
  const int64_t slots = kSlots * threads(), wave = slots / items;
  for (int64_t first = 0; first < std::max<int64_t>(ranges, 1); first += wave) {
    const int64_t last = std::min(first + wave, ranges);
    std::atomic<int64_t> next{0};
    pool_.run([&](int thread) {
      PagedAttention::Cursor cursor;
      ThreadScratch& own = scratch[thread];
      int64_t loaded = -1;
      for (int64_t i = next++; i < items * (last - first); i = next++) {
        const int64_t index = i / (last - first);
        const auto item = attention.item(index, cursor);
        if (index != loaded) attention.load(item, own.tile);
        loaded = index;
        SoftmaxPartial& partial = scratch[i / kSlots].slots[i % kSlots];
        if (!attention.attend(item, own.tile, first + i % (last - first), own.block, partial))
          attention_.clear(own.tile.vectors, own.tile.Dh, partial);
      }
    });
    pool_.run([&](int thread) {
      PagedAttention::Cursor cursor;
      for (int64_t index = thread; index < items; index += threads()) {
        const auto item = attention.item(index, cursor);
        const int vectors = static_cast<int>((item.rows.end - item.rows.begin) * item.heads), D = static_cast<int>(Dh);
        SoftmaxPartial& total = scratch[index / kTotals].totals[index % kTotals];
        if (first == 0) attention_.clear(vectors, D, total);
        for (int64_t range = first; range < last; ++range) {
          const int64_t i = index * (last - first) + range - first;
          attention_.merge(vectors, D, scratch[i / kSlots].slots[i % kSlots], total);
        }
        if (last == ranges) attention.finish(item, total);
      }
    });
  }
}

void CpuBackend::store_kv(ExecContext&, const Tensor& k, const Tensor& v, KvPages& pages, const Batch& batch) {
  const int64_t Hkv = k.size(1), bytes = k.size(2) * static_cast<int64_t>(size_of(k.dtype()));
  pool_.parallel_for(k.size(0), std::max<int64_t>(1, 32768 / (Hkv * bytes)), [&](int64_t begin, int64_t end, int) {
    for (int64_t row = begin; row < end; ++row) {
      if (!is_active(batch, row)) continue;
      for (int64_t head = 0; head < Hkv; ++head) {
        std::memcpy(page_row(pages.k, batch, row, head), k.bytes_at(row * k.stride(0) + head * k.stride(1)), bytes);
        std::memcpy(page_row(pages.v, batch, row, head), v.bytes_at(row * v.stride(0) + head * v.stride(1)), bytes);
      }
    }
  });
}

void CpuBackend::qk_norm_rope_store(ExecContext& ctx, const Tensor& q, const Tensor& k, const Tensor& v,
                                    const ops::QkNorm& norm, const Tensor& table, KvPages& pages, const Batch& batch,
                                    Tensor& out) {
  constexpr int64_t kMostDims = 1024;
  const int64_t H = q.size(1), Hkv = k.size(1), Dh = q.size(2), half = table.size(2);
  if (ctx.taps != nullptr || Dh > kMostDims)
    return Backend::qk_norm_rope_store(ctx, q, k, v, norm, table, pages, batch, out);
  if (ctx.dry_run) return;

  const int bf16 = is_bf16(q);
  const int64_t element = static_cast<int64_t>(size_of(q.dtype()));
  const auto norm_rope = [&](const std::byte* x, const Tensor& weight, int64_t row, std::byte* y) {
    alignas(64) std::byte normed[kMostDims * sizeof(float)];
    if (weight.rank() != 0)
      dense_.rms_norm[bf16](x, weight.as<float>(), norm.eps, norm.weight_offset, normed, Dh);
    else
      std::memcpy(normed, x, Dh * element);
    dense_.rope[bf16](normed, normed + half * element, table.bytes_at(row * table.stride(1)),
                      table.bytes_at(table.stride(0) + row * table.stride(1)), y, y + half * element, half);
    std::memcpy(y + 2 * half * element, normed + 2 * half * element, (Dh - 2 * half) * element);
  };
  const int64_t heads = H + 2 * Hkv;  // per row: queries, keys, values
  pool_.parallel_for(q.size(0) * heads, std::max<int64_t>(1, 4096 / Dh), [&](int64_t begin, int64_t end, int) {
    for (int64_t i = begin; i < end; ++i) {
      const int64_t row = i / heads, head = i % heads;
      if (head < H) {
        norm_rope(q.bytes_at(row * q.stride(0) + head * q.stride(1)), norm.q_norm, row,
                  out.bytes_at(row * out.stride(0) + head * out.stride(1)));
      } else if (is_active(batch, row)) {
        const int64_t h = (head - H) % Hkv;
        if (head < H + Hkv)
          norm_rope(k.bytes_at(row * k.stride(0) + h * k.stride(1)), norm.k_norm, row,
                    page_row(pages.k, batch, row, h));
        else
          std::memcpy(page_row(pages.v, batch, row, h), v.bytes_at(row * v.stride(0) + h * v.stride(1)), Dh * element);
      }
    }
  });
}

}  // namespace calandra

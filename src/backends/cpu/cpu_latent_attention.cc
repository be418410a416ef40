// Latent attention of CpuBackend, absorbed for every length: q_lat = q_nope W_UK per head, softmax over the latents
// (latent_kernels.h), W_UV per head. The products with W_UK and W_UV go through the panels of `linear`. Some rows at a
// time, so that what stands between the three is small.
#include <algorithm>
#include <atomic>
#include <cstring>

#include "backends/cpu/cpu_backend.h"
#include "backends/cpu/dense_kernels.h"
#include "backends/cpu/latent_kernels.h"
#include "backends/cpu/panels.h"

namespace calandra {
namespace {

constexpr int64_t kRows = 64;  // rows at a time
static_assert(kRows <= kRowBlock);
constexpr int64_t kMaxHeadDim = 512;  // Dn
constexpr int kSlots = 8;             // partials of each thread, when ranges of keys are dealt to threads
constexpr int kTotals = 2;
constexpr int64_t kProductsPerThread = 1 << 17;

struct ThreadScratch {
  LatentTile tile;
  LatentBlock block;
  LatentPartial partial, total;
  LatentPartial slots[kSlots];
  LatentPartial totals[kTotals];
  float x[kMaxHeadDim / kBlockK * kRows * kXStride];  // of one head, as PanelProduct takes it
  float wide[kWide];
  float sums[kSums];
};
static_assert(kMaxLatent <= kMaxHeadDim);

bool is_bf16(const Tensor& x) { return x.dtype() == DType::kBF16; }

bool supported(int64_t L, int64_t R, int64_t Dn) {
  return L % 16 == 0 && R % 16 == 0 && L <= kMaxLatent && L + R <= kMaxLatentWidth && Dn <= kMaxHeadDim;
}

bool is_active(const Batch& batch, int64_t row) {
  return batch.active.as<int32_t>()[batch.row_sequence.as<int32_t>()[row]] != 0;
}

// out[t, h] = W_h x[t, h] for the rows of x [rows, H, K] and out [rows, H, N].
void multiply_heads(ThreadPool& pool, const DenseKernels& dense, const Tensor& x, const GroupedWeight& weight,
                    const Tensor& out, ThreadScratch* scratch) {
  const int64_t rows = x.size(0), K = weight.K, panels = panels_of(weight.N);
  pool.parallel_for(
      weight.E * panels, kProductsPerThread / (rows * K * kPanel), [&](int64_t begin, int64_t end, int i) {
        ThreadScratch& own = scratch[i];
        for (int64_t item = begin, loaded = -1; item < end; ++item) {
          const int64_t head = item / panels, panel = item % panels;
          if (head != loaded)
            dense.spread[is_bf16(x)](x.bytes_at(head * x.stride(1)), x.stride(0), rows, K, own.x, rows * kXStride);
          loaded = head;
          PanelProduct task = panel_product(weight.expert(head), panel);
          task.x = own.x;
          task.x_block_stride = rows * kXStride;
          task.rows = static_cast<int>(rows);
          task.wide = own.wide;
          task.sums = own.sums;
          dense.multiply(task);
          PanelResult result{};
          result.rows = task.rows;
          result.columns = static_cast<int>(std::min<int64_t>(kPanel, weight.N - panel * kPanel));
          result.out = out.bytes_at(head * out.stride(1) + panel * kPanel);
          result.out_stride = out.stride(0);
          dense.finish[is_bf16(out)](own.sums, result);
        }
      });
}

// The softmax part of one call for the rows [first, first + rows): queries in `lat` [rows, H, L], which the weighted
// sums of the latents replace. An item is a tile of rows of one sequence with some heads, at most kLatentVectors
// vectors; items are numbered by tile, then heads.
class Softmax {
 public:
  Softmax(const LatentKernels& kernels, const Tensor& lat, const Tensor& q_pe, const LatentPages& pages,
          const Batch& batch, float scale, const Tensor& first_key, int64_t first)
      : kernels_(kernels),
        lat_(lat),
        q_pe_(q_pe),
        pages_(pages),
        batch_(batch),
        scale_(scale),
        first_key_(first_key),
        first_(first),
        end_(first + lat.size(0)),
        L_(static_cast<int>(pages.latent.size(2))),
        R_(static_cast<int>(pages.k_pe.size(2))) {
    const int64_t H = lat.size(1);
    heads_ = std::min<int64_t>(H, kLatentVectors);
    groups_ = (H + heads_ - 1) / heads_;
    rows_ = kLatentVectors / heads_;
    for (int64_t row = first_; row < end_; row = tile_from(row).end) items_ += groups_;
    for (int64_t row = first_; row < end_; ++row) longest_ = std::max(longest_, end_of(row));
  }

  void on(ThreadPool& pool, ThreadScratch* scratch) const {
    const int64_t threads = pool.threads(), ranges = (longest_ + kLatentRange - 1) / kLatentRange;
    if (items_ >= kTotals * threads || ranges <= 1) {
      std::atomic<int64_t> next{0};
      pool.run([&](int thread) {
        Cursor cursor;
        ThreadScratch& own = scratch[thread];
        for (int64_t i = next++; i < items_; i = next++) {
          const Item item = item_at(i, cursor);
          load(item, own.tile);
          kernels_.clear(own.tile.vectors, L_, own.total);
          for (int64_t range = 0; range < ranges; ++range)
            if (attend(item, own.tile, range, own.block, own.partial))
              kernels_.merge(own.tile.vectors, L_, own.partial, own.total);
          finish(item, own.total);
        }
      });
      return;
    }

    // Few items with many keys: ranges are dealt to threads too, as many at a time as there are slots for partials.
    const int64_t wave = kSlots * threads / items_;
    for (int64_t begin = 0; begin < ranges; begin += wave) {
      const int64_t end = std::min(begin + wave, ranges);
      std::atomic<int64_t> next{0};
      pool.run([&](int thread) {
        Cursor cursor;
        ThreadScratch& own = scratch[thread];
        int64_t loaded = -1;
        for (int64_t i = next++; i < items_ * (end - begin); i = next++) {
          const int64_t index = i / (end - begin);
          const Item item = item_at(index, cursor);
          if (index != loaded) load(item, own.tile);
          loaded = index;
          LatentPartial& partial = scratch[i / kSlots].slots[i % kSlots];
          if (!attend(item, own.tile, begin + i % (end - begin), own.block, partial))
            kernels_.clear(own.tile.vectors, L_, partial);
        }
      });
      pool.run([&](int thread) {
        Cursor cursor;
        for (int64_t index = thread; index < items_; index += threads) {
          const Item item = item_at(index, cursor);
          LatentPartial& total = scratch[index / kTotals].totals[index % kTotals];
          if (begin == 0) kernels_.clear(item.vectors(), L_, total);
          for (int64_t range = begin; range < end; ++range) {
            const int64_t i = index * (end - begin) + range - begin;
            kernels_.merge(item.vectors(), L_, scratch[i / kSlots].slots[i % kSlots], total);
          }
          if (end == ranges) finish(item, total);
        }
      });
    }
  }

 private:
  struct RowTile {
    int64_t begin = 0, end = 0;
  };
  struct Item {
    RowTile rows;
    int64_t head, heads;
    int vectors() const { return static_cast<int>((rows.end - rows.begin) * heads); }
  };
  // A thread asks for items in ascending order; the cursor remembers the last tile.
  struct Cursor {
    int64_t number = -1;
    RowTile tile;
  };

  RowTile tile_from(int64_t begin) const {
    const int32_t* sequence = batch_.row_sequence.as<int32_t>();
    RowTile tile{begin, begin};
    while (tile.end < end_ && tile.end - begin < rows_ && sequence[tile.end] == sequence[begin]) ++tile.end;
    return tile;
  }
  Item item_at(int64_t index, Cursor& cursor) const {
    for (; cursor.number < index / groups_; ++cursor.number)
      cursor.tile = tile_from(cursor.number < 0 ? first_ : cursor.tile.end);
    const int64_t head = index % groups_ * heads_;
    return {cursor.tile, head, std::min(heads_, lat_.size(1) - head)};
  }
  int64_t begin_of(int64_t row) const {
    return first_key_.rank() == 0 ? 0 : std::max(0, first_key_.as<int32_t>()[batch_.row_sequence.as<int32_t>()[row]]);
  }
  int64_t end_of(int64_t row) const { return is_active(batch_, row) ? batch_.token_index.as<int32_t>()[row] + 1 : 0; }
  float* lat_of(int64_t row, int64_t head) const {
    return lat_.as<float>() + (row - first_) * lat_.stride(0) + head * lat_.stride(1);
  }

  // fn(vector, row, head)
  template <class F>
  static void for_each_vector(const Item& item, const F& fn) {
    int i = 0;
    for (int64_t row = item.rows.begin; row < item.rows.end; ++row)
      for (int64_t head = item.head; head < item.head + item.heads; ++head, ++i) fn(i, row, head);
  }

  void load(const Item& item, LatentTile& tile) const {
    tile.vectors = item.vectors();
    if (tile.vectors < kLatentVectors)
      std::memset(tile.q, 0, static_cast<size_t>((L_ + R_) * kLatentVectors) * sizeof(float));
    for_each_vector(item, [&](int i, int64_t row, int64_t head) {
      tile.begin[i] = static_cast<int32_t>(begin_of(row));
      tile.end[i] = static_cast<int32_t>(end_of(row));
      kernels_.load_query(lat_of(row, head), q_pe_.bytes_at(row * q_pe_.stride(0) + head * q_pe_.stride(1)),
                          is_bf16(q_pe_), scale_, L_, R_, tile.q + i);
    });
  }

  // The keys of one range. False, and `partial` is left alone, when the item has none there.
  bool attend(const Item& item, const LatentTile& tile, int64_t range, LatentBlock& block,
              LatentPartial& partial) const {
    int64_t begin = (range + 1) * kLatentRange, end = 0;
    for (int i = 0; i < tile.vectors; ++i) {
      begin = std::min<int64_t>(begin, std::max<int64_t>(tile.begin[i], range * kLatentRange));
      end = std::max<int64_t>(end, std::min<int64_t>(tile.end[i], (range + 1) * kLatentRange));
    }
    if (begin >= end) return false;
    const int32_t sequence = batch_.row_sequence.as<int32_t>()[item.rows.begin];
    const LatentKeys keys{.latent = pages_.latent.data(),
                          .k_pe = pages_.k_pe.data(),
                          .bf16 = is_bf16(pages_.latent),
                          .L = L_,
                          .R = R_,
                          .latent_page_stride = pages_.latent.stride(0),
                          .k_pe_page_stride = pages_.k_pe.stride(0),
                          .page_tokens = pages_.page_tokens(),
                          .block_table = batch_.block_table.as<int32_t>() + sequence * batch_.block_table.stride(0)};
    kernels_.attend(tile, keys, begin, end, block, partial);
    return true;
  }

  void finish(const Item& item, const LatentPartial& total) const {
    for_each_vector(item, [&](int i, int64_t row, int64_t head) { kernels_.finish(total, i, L_, lat_of(row, head)); });
  }

  const LatentKernels& kernels_;
  const Tensor& lat_;
  const Tensor& q_pe_;
  const LatentPages& pages_;
  const Batch& batch_;
  const float scale_;
  const Tensor& first_key_;
  const int64_t first_, end_;
  const int L_, R_;
  int64_t heads_, groups_, rows_;
  int64_t items_ = 0, longest_ = 0;
};

}  // namespace

size_t CpuBackend::latent_bytes(int threads) { return static_cast<size_t>(threads) * sizeof(ThreadScratch); }

void CpuBackend::store_latent(ExecContext&, const Tensor& latent, const Tensor& k_pe, LatentPages& pages,
                              const Batch& batch) {
  const int64_t page_tokens = pages.page_tokens();
  const auto put = [&](const Tensor& from, const Tensor& to, int64_t row, int64_t page, int64_t in_page) {
    std::memcpy(to.bytes_at(page * to.stride(0) + in_page * to.stride(1)), from.bytes_at(row * from.stride(0)),
                static_cast<size_t>(from.size(1)) * size_of(from.dtype()));
  };
  pool_.parallel_for(latent.size(0), 64, [&](int64_t begin, int64_t end, int) {
    for (int64_t row = begin; row < end; ++row) {
      if (!is_active(batch, row)) continue;
      const int64_t index = batch.token_index.as<int32_t>()[row], sequence = batch.row_sequence.as<int32_t>()[row];
      const int64_t page =
          batch.block_table.as<int32_t>()[sequence * batch.block_table.stride(0) + index / page_tokens];
      put(latent, pages.latent, row, page, index % page_tokens);
      put(k_pe, pages.k_pe, row, page, index % page_tokens);
    }
  });
}

void CpuBackend::latent_attention(ExecContext& ctx, const Tensor& q_nope, const Tensor& q_pe,
                                  const ops::LatentUpProjection& up, const LatentPages& pages, const Batch& batch,
                                  float scale, const Tensor& first_key, Tensor& out) {
  const int64_t T = q_nope.size(0), H = q_nope.size(1), L = pages.latent.size(2);
  if (!supported(L, q_pe.size(2), q_nope.size(2))) {
    note_slow(
        "latent_attention",
        "kv_lora_rank and qk_rope_head_dim of multiples of 16 up to 512 and 640 together, qk_nope_head_dim up to 512");
    return ReferenceBackend::latent_attention(ctx, q_nope, q_pe, up, pages, batch, scale, first_key, out);
  }
  const size_t mark = ctx.workspace.mark();
  const Tensor all = ctx.workspace.alloc(DType::kF32, {std::min(T, kRows), H, L});
  if (!ctx.dry_run) {
    auto* scratch = static_cast<ThreadScratch*>(latent_scratch_.data());
    for (int64_t first = 0; first < T; first += kRows) {
      const int64_t end = std::min(first + kRows, T);
      const Tensor lat = all.slice(0, 0, end - first);
      multiply_heads(pool_, dense_, q_nope.slice(0, first, end), up.key, lat, scratch);
      Softmax(latent_, lat, q_pe, pages, batch, scale, first_key, first).on(pool_, scratch);
      multiply_heads(pool_, dense_, lat, up.value, out.slice(0, first, end), scratch);
    }
  }
  ctx.workspace.release(mark);
}

}  // namespace calandra

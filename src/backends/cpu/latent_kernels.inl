// The functions of LatentKernels over simd.h; included by the unit of each instruction set.
//
// Both products are outer products in registers. Scores: keys times vectors, the widened keys as rows and the vectors
// in lanes, so that the softmax runs down the keys without sums across lanes. Values: vectors times latent dims.
#include "backends/cpu/latent_kernels.h"
#include "backends/cpu/simd.h"

namespace calandra {
namespace {

constexpr float kMinusInfinity = -__builtin_inff();
constexpr int kTileRows = 6;
constexpr int kBlockDims = 256;  // dims whose part of the queries stays in the first cache

// acc[r][..] <- scale[r] acc[r] (first: 0; scale null: acc) + sum over k of x[r x_row + k x_k] w[k w_k + ..], in the
// order of k, for kRows rows and N vectors of lanes.
struct Product {
  const float* x;
  int64_t x_row, x_k;
  const float* w;
  int64_t w_k;
  int count;  // of k
  bool first;
  const float* scale;
  float* acc;
  int64_t acc_row;
};

template <int kRows, int N>
void product(const Product& p) {
  F32 s[kRows][N];
#pragma GCC unroll 6
  for (int r = 0; r < kRows; ++r)
#pragma GCC unroll 2
    for (int n = 0; n < N; ++n) {
      if (p.first)
        s[r][n] = set(0.0f);
      else if (p.scale == nullptr)
        s[r][n] = load(p.acc + r * p.acc_row + n * kLanes);
      else
        s[r][n] = load(p.acc + r * p.acc_row + n * kLanes) * set(p.scale[r]);
    }
  const float* x = p.x;
  const float* w = p.w;
  for (int k = 0; k < p.count; ++k, x += p.x_k, w += p.w_k) {
    F32 wk[N];
#pragma GCC unroll 2
    for (int n = 0; n < N; ++n) wk[n] = load(w + n * kLanes);
#pragma GCC unroll 6
    for (int r = 0; r < kRows; ++r) {
      const F32 xr = set(x[r * p.x_row]);
#pragma GCC unroll 2
      for (int n = 0; n < N; ++n) s[r][n] = fma(xr, wk[n], s[r][n]);
    }
  }
#pragma GCC unroll 6
  for (int r = 0; r < kRows; ++r)
#pragma GCC unroll 2
    for (int n = 0; n < N; ++n) store(p.acc + r * p.acc_row + n * kLanes, s[r][n]);
}

template <int N>
constexpr void (*kProducts[])(const Product&) = {nullptr,       product<1, N>, product<2, N>, product<3, N>,
                                                 product<4, N>, product<5, N>, product<6, N>};

// The product for `rows` rows, in tiles of equal height, give or take one row.
template <int N>
void product_of_rows(Product p, int rows) {
  const int tiles = (rows + kTileRows - 1) / kTileRows;
  const Product all = p;
  for (int t = 0; t < tiles; ++t) {
    const int begin = rows * t / tiles, end = rows * (t + 1) / tiles;
    p.x = all.x + begin * p.x_row;
    p.acc = all.acc + begin * p.acc_row;
    if (p.scale != nullptr) p.scale = all.scale + begin;
    kProducts<N>[end - begin](p);
  }
}

// The product for `lanes` lanes, a multiple of 16.
void product_of_lanes(Product p, int rows, int lanes) {
  int lane = 0;
  for (; lane + 2 * kLanes <= lanes; lane += 2 * kLanes, p.w += 2 * kLanes, p.acc += 2 * kLanes)
    product_of_rows<2>(p, rows);
  if constexpr (kLanes == 16)
    if (lane < lanes) product_of_rows<1>(p, rows);
}

int lanes_of(int vectors) { return (vectors + 15) / 16 * 16; }

void load_query(const float* q_lat, const void* q_pe, bool bf16, float scale, int L, int R, float* lane) {
  for (int d = 0; d < L; ++d) lane[d * kLatentVectors] = q_lat[d] * scale;
  for (int d = 0; d < R; d += kLanes) {
    float wide[kLanes];
    store(wide, bf16 ? load(static_cast<const uint16_t*>(q_pe) + d) : load(static_cast<const float*>(q_pe) + d));
    for (int i = 0; i < kLanes; ++i) lane[(L + d + i) * kLatentVectors] = wide[i] * scale;
  }
}

template <class T>
void widen(const T* x, int n, float* y) {
  for (int d = 0; d < n; d += kLanes) store(y + d, load(x + d));
}

// The keys [begin, end) of the block at `base` in f32: latent, then k_pe.
template <class T>
void load_keys(const LatentKeys& keys, int64_t base, int begin, int end, float* out) {
  const int stride = keys.L + keys.R + kLatentKeyPadding;
  int64_t page = (base + begin) / keys.page_tokens, in_page = (base + begin) % keys.page_tokens;
  for (int key = begin; key < end; ++key) {
    const int64_t id = keys.block_table[page];
    widen(static_cast<const T*>(keys.latent) + id * keys.latent_page_stride + in_page * keys.L, keys.L,
          out + key * stride);
    widen(static_cast<const T*>(keys.k_pe) + id * keys.k_pe_page_stride + in_page * keys.R, keys.R,
          out + key * stride + keys.L);
    if (++in_page == keys.page_tokens) {
      ++page;
      in_page = 0;
    }
  }
}

// Scores of the keys [begin, end) become weights, those that a vector does not see zero. scale: by what each vector's
// older sums are multiplied.
void softmax(float* scores, int begin, int end, int lanes, const float* from, const float* to, LatentPartial& partial,
             float* scale) {
  for (int lane = 0; lane < lanes; lane += kLanes) {
    const F32 own_from = load(from + lane), own_to = load(to + lane), nothing = set(kMinusInfinity);
    F32 highest = load(partial.max + lane);
    for (int key = begin; key < end; ++key) {
      float* at = scores + key * kLatentVectors + lane;
      const F32 k = set(static_cast<float>(key));
      const F32 s = where_greater(own_from, k, nothing, where_greater(own_to, k, load(at), nothing));
      store(at, s);
      highest = max(s, highest);
    }
    const F32 base = where_greater(highest, nothing, highest, set(0.0f));  // without a key yet: weights of 0
    F32 sum = set(0.0f);
    for (int key = begin; key < end; ++key) {
      float* at = scores + key * kLatentVectors + lane;
      const F32 w = exp(load(at) - base);
      store(at, w);
      sum = sum + w;
    }
    const F32 old = exp(load(partial.max + lane) - base);
    store(partial.max + lane, highest);
    store(partial.sum + lane, load(partial.sum + lane) * old + sum);
    store(scale + lane, old);
  }
}

void attend_block(const LatentTile& tile, const LatentKeys& keys, int64_t base, int begin, int end, LatentBlock& block,
                  LatentPartial& partial) {
  const int width = keys.L + keys.R, stride = width + kLatentKeyPadding, lanes = lanes_of(tile.vectors);
  for (int d = 0; d < width; d += kBlockDims)
    product_of_lanes({.x = block.keys + begin * stride + d,
                      .x_row = stride,
                      .x_k = 1,
                      .w = tile.q + d * kLatentVectors,
                      .w_k = kLatentVectors,
                      .count = width - d < kBlockDims ? width - d : kBlockDims,
                      .first = d == 0,
                      .scale = nullptr,
                      .acc = block.scores + begin * kLatentVectors,
                      .acc_row = kLatentVectors},
                     end - begin, lanes);

  float from[kLatentVectors] = {}, to[kLatentVectors] = {}, scale[kLatentVectors];  // each vector's own keys
  for (int i = 0; i < tile.vectors; ++i) {
    const int64_t own_begin = tile.begin[i] - base, own_end = tile.end[i] - base;
    from[i] = static_cast<float>(own_begin < begin ? begin : own_begin > end ? end : own_begin);
    to[i] = static_cast<float>(own_end < from[i] ? from[i] : own_end > end ? end : own_end);
  }
  softmax(block.scores, begin, end, lanes, from, to, partial, scale);

  // Vectors with the same keys together. A key that a vector does not see is never touched: it may be anything.
  for (int i = 0, next; i < tile.vectors; i = next) {
    for (next = i + 1; next < tile.vectors && from[next] == from[i] && to[next] == to[i]; ++next) continue;
    const int first = static_cast<int>(from[i]), count = static_cast<int>(to[i]) - first;
    if (count == 0) continue;
    product_of_lanes({.x = block.scores + first * kLatentVectors + i,
                      .x_row = 1,
                      .x_k = kLatentVectors,
                      .w = block.keys + first * stride,
                      .w_k = stride,
                      .count = count,
                      .first = false,
                      .scale = scale + i,
                      .acc = partial.acc + i * keys.L,
                      .acc_row = keys.L},
                     next - i, keys.L);
  }
}

void clear_partial(int vectors, int L, LatentPartial& partial) {
  for (int i = 0; i < lanes_of(vectors); ++i) {
    partial.max[i] = kMinusInfinity;
    partial.sum[i] = 0;
  }
  for (int d = 0; d < vectors * L; d += kLanes) store(partial.acc + d, set(0.0f));
}

void attend(const LatentTile& tile, const LatentKeys& keys, int64_t key_begin, int64_t key_end, LatentBlock& block,
            LatentPartial& partial) {
  clear_partial(tile.vectors, keys.L, partial);
  for (int64_t base = key_begin - key_begin % kLatentBlock; base < key_end; base += kLatentBlock) {
    const int begin = static_cast<int>(key_begin > base ? key_begin - base : 0);
    const int end = static_cast<int>(key_end < base + kLatentBlock ? key_end - base : kLatentBlock);
    if (keys.bf16)
      load_keys<uint16_t>(keys, base, begin, end, block.keys);
    else
      load_keys<float>(keys, base, begin, end, block.keys);
    attend_block(tile, keys, base, begin, end, block, partial);
  }
}

inline float exp_of(float x) {
  float lanes[kLanes];
  store(lanes, exp(set(x)));
  return lanes[0];
}

void merge_partial(int vectors, int L, const LatentPartial& partial, LatentPartial& total) {
  for (int i = 0; i < vectors; ++i) {
    if (partial.sum[i] == 0) continue;  // no key
    const float new_max = total.max[i] > partial.max[i] ? total.max[i] : partial.max[i];
    const float old_scale = exp_of(total.max[i] - new_max), scale = exp_of(partial.max[i] - new_max);
    total.max[i] = new_max;
    total.sum[i] = total.sum[i] * old_scale + partial.sum[i] * scale;
    for (int d = i * L; d < (i + 1) * L; d += kLanes)
      store(total.acc + d, fma(load(partial.acc + d), set(scale), load(total.acc + d) * set(old_scale)));
  }
}

void finish(const LatentPartial& total, int vector, int L, float* out) {
  const F32 sum = set(total.sum[vector] == 0 ? 1 : total.sum[vector]);
  for (int d = 0; d < L; d += kLanes) store(out + d, load(total.acc + vector * L + d) / sum);
}

constexpr LatentKernels kLatentKernels = {load_query, attend, clear_partial, merge_partial, finish};

}  // namespace
}  // namespace calandra

// The functions of vision_kernels.h over simd.h; included by the unit of each instruction set.
#include "backends/cpu/simd.h"
#include "backends/cpu/vision_kernels.h"

namespace calandra {
namespace {

// `count` elements; the other lanes are zero.
template <class T>
F32 load_first(const T* x, int64_t count) {
  if (count >= kLanes) return load(x);
  T lanes[kLanes] = {};
  for (int64_t i = 0; i < count; ++i) lanes[i] = x[i];
  return load(lanes);
}
template <class T>
void store_first(T* y, F32 x, int64_t count) {
  if (count >= kLanes) return store(y, x);
  T lanes[kLanes];
  store(lanes, x);
  for (int64_t i = 0; i < count; ++i) y[i] = lanes[i];
}

// out[i] = f(x[i], i)
template <class T, class F>
void each(const void* x, void* out, int64_t n, F f) {
  for (int64_t i = 0; i < n; i += kLanes)
    store_first(static_cast<T*>(out) + i, f(load_first(static_cast<const T*>(x) + i, n - i), i), n - i);
}

// Sum of f(x[i]) in 16 lanes. What is behind the end counts as zero.
template <class T, class F>
float sum_of(const T* x, int64_t n, F f) {
  F32 parts[kParts];
  for (F32& part : parts) part = set(0.0f);
  int64_t i = 0;
  for (; i + 16 <= n; i += 16)
    for (int p = 0; p < kParts; ++p) parts[p] = parts[p] + f(load(x + i + p * kLanes));
  if (i < n) {
    float rest[16] = {};
    T last[16] = {};
    for (int64_t j = i; j < n; ++j) last[j - i] = x[j];
    for (int p = 0; p < kParts; ++p) store(rest + p * kLanes, f(load(last + p * kLanes)));
    for (int64_t j = n - i; j < 16; ++j) rest[j] = 0;
    for (int p = 0; p < kParts; ++p) parts[p] = parts[p] + load(rest + p * kLanes);
  }
  return sum_lanes(parts);
}

template <class T>
void layer_norm(const void* x, const float* weight, const float* bias, float eps, void* out, int64_t n) {
  const T* row = static_cast<const T*>(x);
  const F32 mean = set(sum_of(row, n, [](F32 v) { return v; }) / static_cast<float>(n));
  const float variance = sum_of(row, n, [=](F32 v) { return (v - mean) * (v - mean); }) / static_cast<float>(n);
  const F32 scale = set(1.0f / __builtin_sqrtf(variance + eps));
  each<T>(x, out, n, [=](F32 v, int64_t i) {
    return fma((v - mean) * scale, load_first(weight + i, n - i), load_first(bias + i, n - i));
  });
}

// 1/2 x (1 + tanh u) = x / (1 + e^(-2 u)), u = sqrt(2 / pi) (x + 0.044715 x^3)
template <class T>
void gelu_tanh(const void* x, void* out, int64_t n) {
  each<T>(x, out, n, [](F32 v, int64_t) {
    const F32 cubic = fma(v * v * v, set(0.044715f), v);
    return v / (set(1.0f) + exp(cubic * set(-1.59576912f)));
  });
}

// x Phi(x). Phi(-a) = erfc(a / sqrt 2) / 2 with Abramowitz and Stegun 7.1.26: erfc(z) = (a1 t + .. + a5 t^5) e^(-z^2),
// t = 1 / (1 + p z), within 1.5e-7. No cancellation on the negative side.
template <class T>
void gelu_erf(const void* x, void* out, int64_t n) {
  each<T>(x, out, n, [](F32 v, int64_t) {
    const F32 a = max(v, set(0.0f) - v);
    const F32 t = set(1.0f) / fma(a, set(0.3275911f * 0.70710678f), set(1.0f));
    F32 p = set(1.061405429f);
    p = fma(p, t, set(-1.453152027f));
    p = fma(p, t, set(1.421413741f));
    p = fma(p, t, set(-0.284496736f));
    p = fma(p, t, set(0.254829592f));
    const F32 below = p * t * exp(a * a * set(-0.5f)) * set(0.5f);  // Phi(-a)
    return v * where_greater(v, set(0.0f), set(1.0f) - below, below);
  });
}

template <class T>
void weighted_row(const float* table, int64_t stride, const int32_t* index, const float* weight, int64_t J, void* out,
                  int64_t n) {
  for (int64_t i = 0; i < n; i += kLanes) {
    F32 sum = set(0.0f);
    for (int64_t j = 0; j < J; ++j) sum = fma(set(weight[j]), load_first(table + index[j] * stride + i, n - i), sum);
    store_first(static_cast<T*>(out) + i, sum, n - i);
  }
}

template <class T>
void widen(const void* x, int64_t stride, int rows, int Dh, float scale, int padded_Dh, float* out) {
  for (int r = 0; r < rows; ++r, out += padded_Dh)
    for (int d = 0; d < padded_Dh; d += kLanes)
      store(out + d, load_first(static_cast<const T*>(x) + r * stride + d, Dh - d) * set(scale));
}

// In tiles that are written line by line.
template <class T>
void transpose(const void* x, int64_t stride, int rows, int Dh, int width, float* out) {
  float tile[16][kLanes];
  for (int key = 0; key < width; key += 16)
    for (int d = 0; d < Dh; d += kLanes) {
      for (int j = 0; j < 16; ++j)
        store(tile[j],
              key + j < rows ? load_first(static_cast<const T*>(x) + (key + j) * stride + d, Dh - d) : set(0.0f));
      const int count = Dh - d < kLanes ? Dh - d : kLanes;
      for (int i = 0; i < count; ++i)
        for (int j = 0; j < 16; ++j) out[(d + i) * width + key + j] = tile[j][i];
    }
}

// A tile of a product: y[r] = scale[r] y[r] + sum over k of x[r][k] m[k], for R rows and N vectors of numbers, its sums
// in registers. Without scales y is overwritten.
struct Product {
  const float* x;
  int x_stride;
  const float* m;
  int m_stride;
  int count;  // of k
  float* y;
  int y_stride;
  const float* scale;  // or null
};

template <int R, int N>
void product_tile(const Product& p, int row, int column) {
  const float* x = p.x + row * p.x_stride;
  const float* m = p.m + column;
  float* y = p.y + row * p.y_stride + column;
  F32 s[R][N];
#pragma GCC unroll 6
  for (int r = 0; r < R; ++r)
#pragma GCC unroll 4
    for (int n = 0; n < N; ++n)
      s[r][n] = p.scale == nullptr ? set(0.0f) : load(y + r * p.y_stride + n * kLanes) * set(p.scale[row + r]);
  for (int k = 0; k < p.count; ++k, m += p.m_stride) {
    F32 mk[N];
#pragma GCC unroll 4
    for (int n = 0; n < N; ++n) mk[n] = load(m + n * kLanes);
#pragma GCC unroll 6
    for (int r = 0; r < R; ++r) {
      const F32 xr = set(x[r * p.x_stride + k]);
#pragma GCC unroll 4
      for (int n = 0; n < N; ++n) s[r][n] = fma(xr, mk[n], s[r][n]);
    }
  }
#pragma GCC unroll 6
  for (int r = 0; r < R; ++r)
#pragma GCC unroll 4
    for (int n = 0; n < N; ++n) store(y + r * p.y_stride + n * kLanes, s[r][n]);
}

constexpr int kTileHeight = 6, kTileWidth = kLanes == 16 ? 4 : 2;  // their sums fill the registers

template <int R>
void product_rows(const Product& p, int row, int columns) {
  const int vectors = columns / kLanes, tiles = (vectors + kTileWidth - 1) / kTileWidth;
  for (int t = 0; t < tiles; ++t) {  // of equal width, give or take one vector
    const int begin = vectors * t / tiles, count = vectors * (t + 1) / tiles - begin;
    if (count == 1) product_tile<R, 1>(p, row, begin * kLanes);
    if (count == 2) product_tile<R, 2>(p, row, begin * kLanes);
    if constexpr (kTileWidth == 4) {
      if (count == 3) product_tile<R, 3>(p, row, begin * kLanes);
      if (count == 4) product_tile<R, 4>(p, row, begin * kLanes);
    }
  }
}

// All rows; `columns` is a multiple of kVectorFloats.
void product(const Product& p, int rows, int columns) {
  constexpr void (*kRows[])(const Product&, int, int) = {
      nullptr, product_rows<1>, product_rows<2>, product_rows<3>, product_rows<4>, product_rows<5>, product_rows<6>};
  const int tiles = (rows + kTileHeight - 1) / kTileHeight;
  for (int t = 0; t < tiles; ++t) {
    const int begin = rows * t / tiles, end = rows * (t + 1) / tiles;
    kRows[end - begin](p, begin, columns);
  }
}

constexpr float kMinusInfinity = -__builtin_inff();

inline float exp_of(float x) {
  float lanes[kLanes];
  store(lanes, exp(set(x)));
  return lanes[0];
}

// Scores of the block become weights. Returns by what the older sums are multiplied.
inline float softmax(float* scores, int keys, int width, float& max_so_far, float& sum_so_far) {
  for (int key = keys; key < width; ++key) scores[key] = kMinusInfinity;
  F32 highest[kParts], sum[kParts];
  for (int part = 0; part < kParts; ++part) {
    highest[part] = load(scores + part * kLanes);
    sum[part] = set(0.0f);
    for (int key = 16 + part * kLanes; key < width; key += 16) highest[part] = max(highest[part], load(scores + key));
  }
  const float block_max = max_lanes(highest);
  const float new_max = max_so_far > block_max ? max_so_far : block_max;
  for (int key = 0; key < width; key += 16)
    for (int part = 0; part < kParts; ++part) {
      float* at = scores + key + part * kLanes;
      const F32 w = exp(load(at) - set(new_max));
      store(at, w);
      sum[part] = sum[part] + w;
    }
  const float scale = exp_of(max_so_far - new_max);
  max_so_far = new_max;
  sum_so_far = sum_so_far * scale + sum_lanes(sum);
  return scale;
}

void attend(const SegmentTile& tile) {
  const int width = (tile.keys + kVectorFloats - 1) / kVectorFloats * kVectorFloats;
  product({tile.q, tile.padded_Dh, tile.k, width, tile.Dh, tile.scores, kSegmentKeys, nullptr}, tile.queries, width);
  float scale[kSegmentQueries];
  for (int i = 0; i < tile.queries; ++i)
    scale[i] = softmax(tile.scores + i * kSegmentKeys, tile.keys, width, tile.max[i], tile.sum[i]);
  product({tile.scores, kSegmentKeys, tile.v, tile.padded_Dh, tile.keys, tile.acc, tile.padded_Dh, scale}, tile.queries,
          tile.padded_Dh);
}

void clear(const SegmentTile& tile) {
  for (int i = 0; i < tile.queries; ++i) {
    tile.max[i] = kMinusInfinity;
    tile.sum[i] = 0;
  }
  for (int i = 0; i < tile.queries * tile.padded_Dh; i += kLanes) store(tile.acc + i, set(0.0f));
}

template <class T>
void finish(const SegmentTile& tile, void* out, int64_t stride) {
  for (int i = 0; i < tile.queries; ++i) {
    const F32 sum = set(tile.sum[i]);
    for (int d = 0; d < tile.Dh; d += kLanes)
      store_first(static_cast<T*>(out) + i * stride + d, load(tile.acc + i * tile.padded_Dh + d) / sum, tile.Dh - d);
  }
}

constexpr VisionKernels kVisionKernels = {
    .layer_norm = {layer_norm<float>, layer_norm<uint16_t>},
    .gelu_tanh = {gelu_tanh<float>, gelu_tanh<uint16_t>},
    .gelu_erf = {gelu_erf<float>, gelu_erf<uint16_t>},
    .weighted_row = {weighted_row<float>, weighted_row<uint16_t>},
    .transpose = {transpose<float>, transpose<uint16_t>},
    .widen = {widen<float>, widen<uint16_t>},
    .clear = clear,
    .attend = attend,
    .finish = {finish<float>, finish<uint16_t>},
};

}  // namespace
}  // namespace calandra

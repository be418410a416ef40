// Matrix product of one panel (dense_kernels.h). Included by dense_kernels.inl.
//
// A tile is `rows` rows by a half panel (two vectors of AVX2; all of the panel for AVX-512, whose half is the whole),
// its sums in registers over a block of K, between blocks in `sums`. Few rows read the stored weights and widen them in
// registers; for many rows a block is widened once to f32. Both give every sum the same operations.
#pragma once

#include "backends/cpu/dense_kernels.h"
#include "backends/cpu/simd.h"

namespace calandra {
namespace {

constexpr int kHalves = 16 / kLanes;
constexpr int kTileRows = kLanes == 16 ? 12 : 6;  // rows whose sums, with two weights and one x, fill the registers
constexpr int kThinRows = kLanes == 16 ? 0 : 2;   // up to here a tile takes both halves: longer reads, more chains
constexpr int kFewRows = 2 * kTileRows;           // up to here widening in registers is cheaper
static_assert(kRowBlock % kTileRows == 0);

// Weights of one k as pairs of vectors: outputs [h kLanes, ..) and [16 + h kLanes, ..) of half h. `scales` are those of
// the panel for this k, of f8 only.
struct BF16Panel {
  using Value = uint32_t;
  static constexpr int kStep = kPanel / 2;
  static void pair(const Value* w, const float*, int half, F32& low, F32& high) {
#if defined(__AVX512F__)
    const I32 both = _mm512_loadu_si512(w + half * kLanes);
#else
    const I32 both = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(w + half * kLanes));
#endif
    low = from_bits(shift_left<16>(both));
    high = from_bits(bit_and(both, set(static_cast<int32_t>(0xffff0000))));
  }
};
struct F16Panel {
  using Value = uint16_t;
  static constexpr int kStep = kPanel;
  static F32 widen(const Value* p) {
#if defined(__AVX512F__)
    return _mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)));
#else
    return _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
#endif
  }
  static void pair(const Value* w, const float*, int half, F32& low, F32& high) {
    low = widen(w + half * kLanes);
    high = widen(w + 16 + half * kLanes);
  }
};
// e4m3 goes through f16, of which it is 256 times the value with one exponent bit less: the conversion knows subnormals
// even where denormals count as zeros, and the scales bring the 256 along.
struct F8Panel {
  using Value = uint8_t;
  static constexpr int kStep = kPanel;
  static void pair(const Value* w, const float* scales, int half, F32& low, F32& high) {
#if defined(__AVX512F__)
    w += half * kLanes;  // the half is the whole
    const __m512i x = _mm512_cvtepi8_epi16(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(w)));
    const __m512i f16 = _mm512_and_si512(_mm512_slli_epi16(x, 7), _mm512_set1_epi16(static_cast<int16_t>(0xbfff)));
    low = _mm512_cvtph_ps(_mm512_castsi512_si256(f16)) * load(scales);
    high = _mm512_cvtph_ps(_mm512_extracti64x4_epi64(f16, 1)) * load(scales + kLanes);
#else
    low = widen(w + half * kLanes) * load(scales + half * kLanes);
    high = widen(w + 16 + half * kLanes) * load(scales + 16 + half * kLanes);
#endif
  }
#if !defined(__AVX512F__)
  static F32 widen(const Value* p) {  // the sign is in the upper two bits of x << 7
    const __m128i x = _mm_cvtepi8_epi16(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(p)));
    return _mm256_cvtph_ps(_mm_and_si128(_mm_slli_epi16(x, 7), _mm_set1_epi16(static_cast<int16_t>(0xbfff))));
  }
#endif
};
struct F32Panel {
  using Value = float;
  static constexpr int kStep = kPanel;
  static void pair(const Value* w, const float*, int half, F32& low, F32& high) {
    low = load(w + half * kLanes);
    high = load(w + 16 + half * kLanes);
  }
};
// A widened block: [half][k][two vectors].
struct WidePanel {
  using Value = float;
  static constexpr int kStep = 2 * kLanes;
  static void pair(const Value* w, const float*, int half, F32& low, F32& high) {
    w += half * kBlockK * kStep;
    low = load(w);
    high = load(w + kLanes);
  }
};

// Bytes between a weight that is read and the one fetched meanwhile; beyond a page, where the hardware stops to look
// ahead.
constexpr int64_t kAhead = 4096;

template <class W, int kRows, int kPairs>
void tile(const float* x, const void* weights, const float* scales, int half, int64_t count, bool first, float* sums) {
  const typename W::Value* w = static_cast<const typename W::Value*>(weights);
  F32 s[kRows][2 * kPairs];
#pragma GCC unroll 12
  for (int r = 0; r < kRows; ++r)
#pragma GCC unroll 4
    for (int j = 0; j < 2 * kPairs; ++j)
      s[r][j] = first ? set(0.0f) : load(sums + r * kPanel + (half + j / 2) * kLanes + j % 2 * 16);
  for (int64_t k = 0; k < count; ++k, w += W::kStep) {
    if constexpr (kRows <= 4) _mm_prefetch(reinterpret_cast<const char*>(w) + kAhead, _MM_HINT_T0);
#pragma GCC unroll 2
    for (int j = 0; j < kPairs; ++j) {
      F32 low, high;
      W::pair(w, scales, half + j, low, high);
#pragma GCC unroll 12
      for (int r = 0; r < kRows; ++r) {
        const F32 xr = set(x[r * kXStride + k]);
        s[r][2 * j] = fma(xr, low, s[r][2 * j]);
        s[r][2 * j + 1] = fma(xr, high, s[r][2 * j + 1]);
      }
    }
  }
#pragma GCC unroll 12
  for (int r = 0; r < kRows; ++r)
#pragma GCC unroll 4
    for (int j = 0; j < 2 * kPairs; ++j) store(sums + r * kPanel + (half + j / 2) * kLanes + j % 2 * 16, s[r][j]);
}

template <class W, int kRows>
void tile_of_rows(const float* x, const void* w, const float* scales, int half, int64_t count, bool first,
                  float* sums) {
  if constexpr (kRows <= kThinRows) {
    if (half == 0) tile<W, kRows, kHalves>(x, w, scales, 0, count, first, sums);
  } else {
    tile<W, kRows, 1>(x, w, scales, half, count, first, sums);
  }
}

using Tile = void (*)(const float*, const void*, const float*, int, int64_t, bool, float*);
template <class W>
constexpr Tile kTiles[] = {
    nullptr,
    tile_of_rows<W, 1>,
    tile_of_rows<W, 2>,
    tile_of_rows<W, 3>,
    tile_of_rows<W, 4>,
    tile_of_rows<W, 5>,
    tile_of_rows<W, 6>,
#if defined(__AVX512F__)
    tile_of_rows<W, 7>,
    tile_of_rows<W, 8>,
    tile_of_rows<W, 9>,
    tile_of_rows<W, 10>,
    tile_of_rows<W, 11>,
    tile_of_rows<W, 12>,
#endif
};

template <class W>
void block_product(const PanelProduct& task, const float* x, const void* w, const float* scales, int64_t count,
                   bool first) {
  const int tiles = (task.rows + kTileRows - 1) / kTileRows;
  for (int half = 0; half < kHalves; ++half)
    for (int t = 0; t < tiles; ++t) {  // of equal height, give or take one row
      const int begin = task.rows * t / tiles, end = task.rows * (t + 1) / tiles;
      kTiles<W>[end - begin](x + begin * kXStride, w, scales, half, count, first, task.sums + begin * kPanel);
    }
}

// `wide` begins at the first k of the part.
template <class W>
void widen(const typename W::Value* w, const float* scales, int64_t count, float* wide) {
  for (int64_t k = 0; k < count; ++k, w += W::kStep)
    for (int half = 0; half < kHalves; ++half) {
      F32 low, high;
      W::pair(w, scales, half, low, high);
      float* to = wide + (half * kBlockK + k) * WidePanel::kStep;
      store(to, low);
      store(to + kLanes, high);
    }
}

// Blocks of kBlockK inputs, in parts that have one scale.
template <class W>
void multiply_panel(const PanelProduct& task, int few_rows, int64_t block_k) {
  const typename W::Value* w = static_cast<const typename W::Value*>(task.panel);
  const float* x = task.x;
  for (int64_t k = 0; k < task.K; k += kBlockK, x += task.x_block_stride) {
    const int64_t end = task.K - k < kBlockK ? task.K : k + kBlockK;
    for (int64_t from = k, to; from < end; from = to) {
      to = (from / block_k + 1) * block_k;
      if (to > end) to = end;
      const float* scales = task.scales + from / block_k * kPanel;
      if (task.rows <= few_rows)
        block_product<W>(task, x + (from - k), w, scales, to - from, from == 0);
      else
        widen<W>(w, scales, to - from, task.wide + (from - k) * WidePanel::kStep);
      w += (to - from) * W::kStep;
    }
    if (task.rows > few_rows) block_product<WidePanel>(task, x, task.wide, nullptr, end - k, k == 0);
  }
}

void multiply(const PanelProduct& task) {
  switch (task.format) {
    case WeightFormat::kF32:
      return multiply_panel<F32Panel>(task, kFewRows, task.K);
    case WeightFormat::kBF16:
      return multiply_panel<BF16Panel>(task, kFewRows, task.K);
    case WeightFormat::kF16:
      return multiply_panel<F16Panel>(task, kFewRows, task.K);
    case WeightFormat::kF8:  // a tile's height: decoding twice is as much as widening
      return multiply_panel<F8Panel>(task, kTileRows, task.block_k);
  }
}

}  // namespace
}  // namespace calandra

// The functions of LightningKernels over simd.h; included by the unit of each instruction set.
//
// A tile is kLightningRows rows of S by N vectors, in registers over all tokens of the chunk; the tiles of four rows
// follow one another, so that S is read and written as it lies.
#include "backends/cpu/lightning_kernels.h"
#include "backends/cpu/simd.h"

namespace calandra {
namespace {

constexpr int kRows = kLightningRows;
constexpr int64_t kAhead = 4096;  // bytes of S that are fetched ahead

void pack(const float* k, const float* q, float scale, int Dk, int tokens, float* kq) {
  const __m128 s = _mm_set1_ps(scale);
  for (int i = 0; i < Dk; i += kRows, kq += 2 * kRows * tokens) {
    _mm_storeu_ps(kq, _mm_loadu_ps(k + i));
    _mm_storeu_ps(kq + kRows, _mm_mul_ps(_mm_loadu_ps(q + i), s));
  }
}

template <int N>
void tile(const LightningChunk& chunk, const float* kq, bool first_rows, int column, const float* from, float* to) {
  F32 s[kRows][N];
#pragma GCC unroll 4
  for (int r = 0; r < kRows; ++r)
#pragma GCC unroll 4
    for (int n = 0; n < N; ++n) {
      s[r][n] = from == nullptr ? set(0.0f) : load(from + r * chunk.Dv + n * kLanes);
      if (n * kLanes % 16 == 0 && from != nullptr)
        _mm_prefetch(reinterpret_cast<const char*>(from + r * chunk.Dv + n * kLanes) + kAhead, _MM_HINT_T0);
    }
  const auto write = [&] {
#pragma GCC unroll 4
    for (int r = 0; r < kRows; ++r)
#pragma GCC unroll 4
      for (int n = 0; n < N; ++n) store(to + r * chunk.Dv + n * kLanes, s[r][n]);
  };
  const F32 decay = set(chunk.decay);
  for (int t = 0; t < chunk.tokens; ++t, kq += 2 * kRows) {
    if (t == chunk.certain) write();
    const float* v = chunk.v + t * chunk.Dv + column;
    float* o = chunk.o + t * chunk.Dv + column;
    F32 vt[N], sum[N];
#pragma GCC unroll 4
    for (int n = 0; n < N; ++n) {
      vt[n] = load(v + n * kLanes);
      sum[n] = first_rows ? set(0.0f) : load(o + n * kLanes);
    }
#pragma GCC unroll 4
    for (int r = 0; r < kRows; ++r) {
      const F32 k = set(kq[r]), q = set(kq[kRows + r]);
#pragma GCC unroll 4
      for (int n = 0; n < N; ++n) {
        s[r][n] = fma(k, vt[n], s[r][n] * decay);
        sum[n] = fma(q, s[r][n], sum[n]);
      }
    }
#pragma GCC unroll 4
    for (int n = 0; n < N; ++n) store(o + n * kLanes, sum[n]);
  }
  if (chunk.certain == chunk.tokens) write();
}

void run(const LightningChunk& chunk, int column, int columns, const float* from, float* to) {
  const int end = column + columns;
  for (int i = 0; i < chunk.Dk; i += kRows) {
    const float* kq = chunk.kq + i * 2 * chunk.tokens;
    const int64_t row = static_cast<int64_t>(i) * chunk.Dv;
    int c = column;
    for (; c + 2 * kLanes <= end; c += 2 * kLanes)
      tile<2>(chunk, kq, i == 0, c, from == nullptr ? nullptr : from + row + c, to + row + c);
    if constexpr (kLanes == 16)
      if (c < end) tile<1>(chunk, kq, i == 0, c, from == nullptr ? nullptr : from + row + c, to + row + c);
  }
}

constexpr LightningKernels kLightningKernels = {pack, run};

}  // namespace
}  // namespace calandra

// The vector type of the unit's instruction set and the functions on it that the kernels share. Included only by the
// units that are compiled for one instruction set (CMakeLists.txt); everything is in an anonymous namespace, so that
// the linker never keeps one instruction set's copy for all.
//
// Same bits everywhere: elementwise functions give each lane the same operations; sums over an axis always run in 16
// lanes, kParts vectors, added by one tree. Multiplications and additions are fused only where `fma` is written.
#pragma once

#include <immintrin.h>

#include <cstddef>
#include <cstdint>

namespace calandra {
namespace {

#if defined(__AVX512F__)
using F32 = __m512;
using I32 = __m512i;
constexpr int kLanes = 16;

inline F32 load(const float* p) { return _mm512_loadu_ps(p); }
inline void store(float* p, F32 x) { _mm512_storeu_ps(p, x); }
inline F32 set(float x) { return _mm512_set1_ps(x); }
inline F32 fma(F32 a, F32 b, F32 c) { return _mm512_fmadd_ps(a, b, c); }
inline F32 nfma(F32 a, F32 b, F32 c) { return _mm512_fnmadd_ps(a, b, c); }  // c - a b
inline F32 max(F32 a, F32 b) { return _mm512_max_ps(a, b); }
inline F32 sqrt(F32 x) { return _mm512_sqrt_ps(x); }
inline F32 zero_where_less(F32 x, F32 bound, F32 y) {  // y, and 0 where x < bound
  return _mm512_maskz_mov_ps(_mm512_cmp_ps_mask(x, bound, _CMP_NLT_UQ), y);
}
inline F32 where_greater(F32 x, F32 bound, F32 then, F32 otherwise) {
  return _mm512_mask_blend_ps(_mm512_cmp_ps_mask(x, bound, _CMP_GT_OQ), otherwise, then);
}
inline I32 bits(F32 x) { return _mm512_castps_si512(x); }
inline F32 from_bits(I32 x) { return _mm512_castsi512_ps(x); }
inline I32 set(int32_t x) { return _mm512_set1_epi32(x); }
inline I32 nearest(F32 x) { return _mm512_cvtps_epi32(x); }
inline F32 to_f32(I32 x) { return _mm512_cvtepi32_ps(x); }
inline I32 plus(I32 a, I32 b) { return _mm512_add_epi32(a, b); }
inline I32 minus(I32 a, I32 b) { return _mm512_sub_epi32(a, b); }
inline I32 bit_and(I32 a, I32 b) { return _mm512_and_si512(a, b); }
template <int n>
I32 shift_left(I32 x) {
  return _mm512_slli_epi32(x, n);
}
template <int n>
I32 shift_right(I32 x) {  // with the sign
  return _mm512_srai_epi32(x, n);
}
inline F32 load(const uint16_t* bf16) {
  return from_bits(shift_left<16>(_mm512_cvtepu16_epi32(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(bf16)))));
}
inline void store_high_halves(uint16_t* p, I32 x) {
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), _mm512_cvtepi32_epi16(_mm512_srli_epi32(x, 16)));
}
inline I32 quiet_nan_where_nan(F32 x, I32 y) {
  return _mm512_mask_mov_epi32(y, _mm512_cmp_ps_mask(x, x, _CMP_UNORD_Q),
                               _mm512_or_si512(bits(x), _mm512_set1_epi32(0x400000)));
}
inline __m256 fold_to_8(const F32* parts) {
  return _mm256_add_ps(_mm512_castps512_ps256(parts[0]), _mm512_extractf32x8_ps(parts[0], 1));
}
inline __m256 max_to_8(const F32* parts) {
  return _mm256_max_ps(_mm512_castps512_ps256(parts[0]), _mm512_extractf32x8_ps(parts[0], 1));
}
#else
using F32 = __m256;
using I32 = __m256i;
constexpr int kLanes = 8;

inline F32 load(const float* p) { return _mm256_loadu_ps(p); }
inline void store(float* p, F32 x) { _mm256_storeu_ps(p, x); }
inline F32 set(float x) { return _mm256_set1_ps(x); }
inline F32 fma(F32 a, F32 b, F32 c) { return _mm256_fmadd_ps(a, b, c); }
inline F32 nfma(F32 a, F32 b, F32 c) { return _mm256_fnmadd_ps(a, b, c); }  // c - a b
inline F32 max(F32 a, F32 b) { return _mm256_max_ps(a, b); }
inline F32 sqrt(F32 x) { return _mm256_sqrt_ps(x); }
inline F32 zero_where_less(F32 x, F32 bound, F32 y) {  // y, and 0 where x < bound
  return _mm256_and_ps(_mm256_cmp_ps(x, bound, _CMP_NLT_UQ), y);
}
inline F32 where_greater(F32 x, F32 bound, F32 then, F32 otherwise) {
  return _mm256_blendv_ps(otherwise, then, _mm256_cmp_ps(x, bound, _CMP_GT_OQ));
}
inline I32 bits(F32 x) { return _mm256_castps_si256(x); }
inline F32 from_bits(I32 x) { return _mm256_castsi256_ps(x); }
inline I32 set(int32_t x) { return _mm256_set1_epi32(x); }
inline I32 nearest(F32 x) { return _mm256_cvtps_epi32(x); }
inline F32 to_f32(I32 x) { return _mm256_cvtepi32_ps(x); }
inline I32 plus(I32 a, I32 b) { return _mm256_add_epi32(a, b); }
inline I32 minus(I32 a, I32 b) { return _mm256_sub_epi32(a, b); }
inline I32 bit_and(I32 a, I32 b) { return _mm256_and_si256(a, b); }
template <int n>
I32 shift_left(I32 x) {
  return _mm256_slli_epi32(x, n);
}
template <int n>
I32 shift_right(I32 x) {  // with the sign
  return _mm256_srai_epi32(x, n);
}
inline F32 load(const uint16_t* bf16) {
  return from_bits(shift_left<16>(_mm256_cvtepu16_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(bf16)))));
}
inline void store_high_halves(uint16_t* p, I32 x) {
  const __m256i packed = _mm256_packus_epi32(_mm256_srli_epi32(x, 16), _mm256_setzero_si256());
  _mm_storeu_si128(reinterpret_cast<__m128i*>(p), _mm256_castsi256_si128(_mm256_permute4x64_epi64(packed, 0x08)));
}
inline I32 quiet_nan_where_nan(F32 x, I32 y) {
  const __m256i quiet = _mm256_or_si256(bits(x), _mm256_set1_epi32(0x400000));
  return _mm256_blendv_epi8(y, quiet, _mm256_castps_si256(_mm256_cmp_ps(x, x, _CMP_UNORD_Q)));
}
inline __m256 fold_to_8(const F32* parts) { return _mm256_add_ps(parts[0], parts[1]); }
inline __m256 max_to_8(const F32* parts) { return _mm256_max_ps(parts[0], parts[1]); }
#endif

constexpr int kParts = 16 / kLanes;  // vectors of a 16-lane sum

// bf16, round to nearest even; NaN stays NaN (base/scalar.h).
inline void store(uint16_t* bf16, F32 x) {
  const I32 u = bits(x);
  const I32 odd = bit_and(shift_right<16>(u), set(1));
  store_high_halves(bf16, quiet_nan_where_nan(x, plus(u, plus(set(0x7fff), odd))));
}

// Sum of 16 lanes: lane i with i + 8, i + 4, i + 2, i + 1.
inline __m128 fold_to_4(const F32* parts) {
  const __m256 x = fold_to_8(parts);
  return _mm_add_ps(_mm256_castps256_ps128(x), _mm256_extractf128_ps(x, 1));
}
inline float sum_lanes(const F32* parts) {
  const __m128 x = fold_to_4(parts);
  const __m128 y = _mm_add_ps(x, _mm_movehl_ps(x, x));
  return _mm_cvtss_f32(_mm_add_ss(y, _mm_movehdup_ps(y)));
}
inline float max_lanes(const F32* parts) {
  const __m256 x = max_to_8(parts);
  const __m128 y = _mm_max_ps(_mm256_castps256_ps128(x), _mm256_extractf128_ps(x, 1));
  const __m128 z = _mm_max_ps(y, _mm_movehl_ps(y, y));
  return _mm_cvtss_f32(_mm_max_ss(z, _mm_movehdup_ps(z)));
}

// e^x within 2 ulp: 2^n e^r with |r| <= ln 2 / 2, Taylor to r^7 (remainder below 2^-27). Results below 2^-126 are 0.
inline F32 exp(F32 x) {
  const I32 n = nearest(x * set(1.44269504f));
  const F32 nf = to_f32(n);
  const F32 r = nfma(nf, set(-2.12194440e-4f), nfma(nf, set(0.693359375f), x));
  const F32 r2 = r * r;  // in pairs, for a short chain
  const F32 p01 = set(1.0f) + r, p23 = fma(r, set(1.0f / 6), set(0.5f));
  const F32 p45 = fma(r, set(1.0f / 120), set(1.0f / 24)), p67 = fma(r, set(1.0f / 5040), set(1.0f / 720));
  F32 p = fma(r2 * r2, fma(r2, p67, p45), fma(r2, p23, p01));
  const I32 half = shift_right<1>(n);  // 2^n in two factors: n reaches 128
  p = p * from_bits(shift_left<23>(plus(half, set(127)))) * from_bits(shift_left<23>(plus(minus(n, half), set(127))));
  p = where_greater(x, set(88.722839f), set(__builtin_inff()), p);
  return zero_where_less(x, set(-87.336544f), p);
}

inline F32 sigmoid(F32 x) { return set(1.0f) / (set(1.0f) + exp(set(0.0f) - x)); }
inline F32 silu(F32 x) { return x / (set(1.0f) + exp(set(0.0f) - x)); }

// log(1 + e^x), x itself above 20, within 4 ulp. With y = e^x and u = 1 + y rounded: log u + (y - (u - 1)) / u;
// log u = e ln 2 + 2 atanh(f / (2 + f)), 1 + f in [sqrt 1/2, sqrt 2), the series to s^9 (remainder below 2^-28).
inline F32 softplus(F32 x) {
  const F32 y = exp(x);
  const F32 u = set(1.0f) + y;
  const I32 offset = minus(bits(u), set(0x3f3504f3));  // sqrt 1/2
  const I32 e = shift_right<23>(offset);
  const F32 f = from_bits(minus(bits(u), shift_left<23>(e))) - set(1.0f);
  const F32 s = f / (set(2.0f) + f);
  const F32 s2 = s * s;
  F32 p = set(2.0f / 9);
  p = fma(p, s2, set(2.0f / 7));
  p = fma(p, s2, set(2.0f / 5));
  p = fma(p, s2, set(2.0f / 3));
  const F32 lost = (y - (u - set(1.0f))) / u;
  const F32 ef = to_f32(e);
  const F32 log_u = fma(ef, set(0.693359375f), fma(s * s2, p, fma(ef, set(-2.12194440e-4f), lost)) + s + s);
  return where_greater(x, set(20.0f), x, log_u);
}

}  // namespace
}  // namespace calandra

// The functions of dense_kernels.h over the vector type of simd.h. T is the stored type of activations: float, or
// uint16_t for the bits of bf16. A rest of a row goes through a padded copy, so that every number sees the same
// operations.
#pragma once

#include "backends/cpu/dense_kernels.h"
#include "backends/cpu/linear_kernels.inl"
#include "backends/cpu/simd.h"

namespace calandra {
namespace {

// x as it would be read back after storing it as T.
inline F32 rounded(F32 x, const float*) { return x; }
inline F32 rounded(F32 x, const uint16_t*) {
  const I32 u = bits(x);
  const I32 odd = bit_and(shift_right<16>(u), set(1));
  const I32 y = quiet_nan_where_nan(x, plus(u, plus(set(0x7fff), odd)));
  return from_bits(bit_and(y, set(static_cast<int32_t>(0xffff0000))));
}

// out[i] = f(a[i], b[i]); a single input is given twice.
template <class Out, class T, class F>
void each(const T* a, const T* b, Out* out, int64_t n, F f) {
  int64_t i = 0;
  for (; i + kLanes <= n; i += kLanes) store(out + i, f(load(a + i), load(b + i)));
  if (i == n) return;
  T rest_a[kLanes] = {}, rest_b[kLanes] = {};
  Out rest[kLanes];
  for (int64_t j = i; j < n; ++j) rest_a[j - i] = a[j], rest_b[j - i] = b[j];
  store(rest, f(load(rest_a), load(rest_b)));
  for (int64_t j = i; j < n; ++j) out[j] = rest[j - i];
}

template <class T>
const T* in(const void* p) {
  return static_cast<const T*>(p);
}
template <class T>
T* to(void* p) {
  return static_cast<T*>(p);
}

template <class T>
void spread(const void* x, int64_t stride, int64_t rows, int64_t K, float* blocks, int64_t block_stride) {
  for (int64_t k = 0; k < K; k += kBlockK, blocks += block_stride) {
    const int64_t count = K - k < kBlockK ? K - k : kBlockK;
    for (int64_t r = 0; r < rows; ++r) {
      const T* row = in<T>(x) + r * stride + k;
      each(row, row, blocks + r * kXStride, count, [](F32 v, F32) { return v; });
    }
  }
}

template <class T>
void finish(const float* sums, const PanelResult& result) {
  for (int r = 0; r < result.rows; ++r, sums += kPanel) {
    T* out = to<T>(result.out) + r * result.out_stride;
    if (result.residual == nullptr) {
      each(sums, sums, out, result.columns, [](F32 v, F32) { return v; });
      continue;
    }
    T product[kPanel];
    for (int i = 0; i < kPanel; i += kLanes) store(product + i, load(sums + i));
    each(in<T>(result.residual) + r * result.residual_stride, product, out, result.columns,
         [](F32 a, F32 b) { return a + b; });
  }
}

template <class T>
void finish_swiglu(const float* gate, const float* up, const PanelResult& result) {
  for (int r = 0; r < result.rows; ++r, gate += kPanel, up += kPanel)
    each(gate, up, to<T>(result.out) + r * result.out_stride, result.columns, [](F32 g, F32 u) {
      constexpr const T* kType = nullptr;
      return rounded(silu(rounded(g, kType)), kType) * rounded(u, kType);
    });
}

template <class T>
void silu_mul(const void* gate, const void* up, void* out, int64_t n) {
  each(in<T>(gate), in<T>(up), to<T>(out), n,
       [](F32 g, F32 u) { return rounded(silu(g), static_cast<const T*>(nullptr)) * u; });
}

template <class T>
void sigmoid_mul(const void* x, const void* gate, void* out, int64_t n) {
  each(in<T>(x), in<T>(gate), to<T>(out), n,
       [](F32 v, F32 g) { return v * rounded(sigmoid(g), static_cast<const T*>(nullptr)); });
}

template <class T>
void sigmoid_row(const void* x, float* out, int64_t n) {
  each(in<T>(x), in<T>(x), out, n, [](F32 v, F32) { return sigmoid(v); });
}

template <class T>
void add(const void* a, const void* b, void* out, int64_t n) {
  each(in<T>(a), in<T>(b), to<T>(out), n, [](F32 v, F32 w) { return v + w; });
}

// 1 / sqrt(mean(x^2) + eps)
template <class T>
float inverse_rms(const T* x, float eps, int64_t n) {
  F32 parts[kParts];
  for (F32& part : parts) part = set(0.0f);
  int64_t i = 0;
  for (; i + 16 <= n; i += 16)
    for (int p = 0; p < kParts; ++p) {
      const F32 v = load(x + i + p * kLanes);
      parts[p] = fma(v, v, parts[p]);
    }
  if (i < n) {
    T rest[16] = {};
    for (int64_t j = i; j < n; ++j) rest[j - i] = x[j];
    for (int p = 0; p < kParts; ++p) {
      const F32 v = load(rest + p * kLanes);
      parts[p] = fma(v, v, parts[p]);
    }
  }
  return 1.0f / __builtin_sqrtf(sum_lanes(parts) / static_cast<float>(n) + eps);
}

// out[i] = f(x[i], weight[i]) of different types.
template <class T, class Out, class F>
void each_weighted(const T* x, const T* z, const float* weight, Out* out, int64_t n, F f) {
  int64_t i = 0;
  for (; i + kLanes <= n; i += kLanes) store(out + i, f(load(x + i), load(z + i), load(weight + i)));
  if (i == n) return;
  T rest_x[kLanes] = {}, rest_z[kLanes] = {};
  Out rest[kLanes];
  float rest_weight[kLanes] = {};
  for (int64_t j = i; j < n; ++j) rest_x[j - i] = x[j], rest_z[j - i] = z[j], rest_weight[j - i] = weight[j];
  store(rest, f(load(rest_x), load(rest_z), load(rest_weight)));
  for (int64_t j = i; j < n; ++j) out[j] = rest[j - i];
}

template <class T>
void rms_norm(const void* x, const float* weight, float eps, float weight_offset, void* out, int64_t n) {
  const F32 scale = set(inverse_rms(in<T>(x), eps, n)), offset = set(weight_offset);
  each_weighted(in<T>(x), in<T>(x), weight, to<T>(out), n, [=](F32 v, F32, F32 w) { return v * scale * (offset + w); });
}

template <class T, class Out>
void gated_rms_norm(const void* x, const void* z, const float* weight, float eps, bool with_silu, void* out,
                    int64_t n) {
  const F32 scale = set(inverse_rms(in<T>(x), eps, n));
  if (with_silu)
    each_weighted(in<T>(x), in<T>(z), weight, to<Out>(out), n,
                  [=](F32 v, F32 g, F32 w) { return v * scale * w * silu(g); });
  else
    each_weighted(in<T>(x), in<T>(z), weight, to<Out>(out), n,
                  [=](F32 v, F32 g, F32 w) { return v * scale * w * sigmoid(g); });
}

// x cos + rotate_half(x) sin, rounded once.
template <class T, class Table = T>
void rope(const void* low, const void* high, const void* cos, const void* sin, void* out_low, void* out_high,
          int64_t n) {
  const auto turn = [](const T* a, const Table* c, const T* b, const Table* s, F32 sign, T* out) {
    store(out, load(a) * load(c) + sign * (load(b) * load(s)));
  };
  const F32 plus_one = set(1.0f), minus_one = set(-1.0f);
  int64_t i = 0;
  for (; i + kLanes <= n; i += kLanes) {
    turn(in<T>(low) + i, in<Table>(cos) + i, in<T>(high) + i, in<Table>(sin) + i, minus_one, to<T>(out_low) + i);
    turn(in<T>(high) + i, in<Table>(cos) + i, in<T>(low) + i, in<Table>(sin) + i, plus_one, to<T>(out_high) + i);
  }
  if (i == n) return;
  T l[kLanes] = {}, h[kLanes] = {}, new_l[kLanes], new_h[kLanes];
  Table c[kLanes] = {}, s[kLanes] = {};
  for (int64_t j = i; j < n; ++j) {
    l[j - i] = in<T>(low)[j], h[j - i] = in<T>(high)[j];
    c[j - i] = in<Table>(cos)[j], s[j - i] = in<Table>(sin)[j];
  }
  turn(l, c, h, s, minus_one, new_l);
  turn(h, c, l, s, plus_one, new_h);
  for (int64_t j = i; j < n; ++j) to<T>(out_low)[j] = new_l[j - i], to<T>(out_high)[j] = new_h[j - i];
}

// The same turn of neighbours.
template <class T, class Table = T>
void rope_pairs(const void* x, const void* cos, const void* sin, void* out, int64_t n) {
  constexpr int64_t kPairs = 32;
  T low[kPairs], high[kPairs];
  for (int64_t i = 0; i < n; i += kPairs) {
    const int64_t count = n - i < kPairs ? n - i : kPairs;
    const T* from = in<T>(x) + 2 * i;
    for (int64_t j = 0; j < count; ++j) low[j] = from[2 * j], high[j] = from[2 * j + 1];
    T new_low[kPairs], new_high[kPairs];
    rope<T, Table>(low, high, in<Table>(cos) + i, in<Table>(sin) + i, new_low, new_high, count);
    for (int64_t j = 0; j < count; ++j) {
      to<T>(out)[2 * (i + j)] = new_low[j];
      to<T>(out)[2 * (i + j) + 1] = new_high[j];
    }
  }
}

constexpr DenseKernels kDenseKernels = {
    .spread = {spread<float>, spread<uint16_t>},
    .multiply = multiply,
    .finish = {finish<float>, finish<uint16_t>},
    .finish_swiglu = {finish_swiglu<float>, finish_swiglu<uint16_t>},
    .silu_mul = {silu_mul<float>, silu_mul<uint16_t>},
    .sigmoid_mul = {sigmoid_mul<float>, sigmoid_mul<uint16_t>},
    .sigmoid = {sigmoid_row<float>, sigmoid_row<uint16_t>},
    .add = {add<float>, add<uint16_t>},
    .rms_norm = {rms_norm<float>, rms_norm<uint16_t>},
    .gated_rms_norm = {{gated_rms_norm<float, float>, gated_rms_norm<float, uint16_t>},
                       {gated_rms_norm<uint16_t, float>, gated_rms_norm<uint16_t, uint16_t>}},
    .rope = {rope<float>, rope<uint16_t>},
    .rope_pairs = {rope_pairs<float>, rope_pairs<uint16_t>},
    .rope_f32_table = {rope<float>, rope<uint16_t, float>},
    .rope_pairs_f32_table = {rope_pairs<float>, rope_pairs<uint16_t, float>},
};

}  // namespace
}  // namespace calandra

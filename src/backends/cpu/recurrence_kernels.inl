// The functions of RecurrenceKernels over simd.h; included by the unit of each instruction set.
#include "backends/cpu/recurrence_kernels.h"
#include "backends/cpu/simd.h"

namespace calandra {
namespace {

// fn(offset, count) for whole vectors, then once for what is left.
template <class F>
inline void over_lanes(int n, const F& fn) {
  int i = 0;
  for (; i + kLanes <= n; i += kLanes) fn(i, kLanes);
  if (i < n) fn(i, n - i);
}

// `count` elements; the other lanes are zero.
template <class T>
inline F32 load_some(const T* x, int count) {
  if (count == kLanes) return load(x);
  T lanes[kLanes] = {};
  for (int i = 0; i < count; ++i) lanes[i] = x[i];
  return load(lanes);
}
template <class T>
inline void store_some(T* y, F32 x, int count) {
  if (count == kLanes) return store(y, x);
  T lanes[kLanes];
  store(lanes, x);
  for (int i = 0; i < count; ++i) y[i] = lanes[i];
}
inline F32 load_any(const void* x, bool bf16, int offset, int count) {
  return bf16 ? load_some(static_cast<const uint16_t*>(x) + offset, count)
              : load_some(static_cast<const float*>(x) + offset, count);
}

// kWidth: W, when it is known.
template <class T, int kWidth>
void conv_silu_of(const void* const* x, int W, const float* weight, int64_t weight_stride, int n, void* y) {
  const T* taps[kMaxConvKernel];
  for (int j = 0; j < W; ++j) taps[j] = static_cast<const T*>(x[j]);
  T* out = static_cast<T*>(y);
  over_lanes(n, [&](int at, int count) {
    F32 sum = load_some(taps[0] + at, count) * load_some(weight + at, count);
    for (int j = 1; j < (kWidth == 0 ? W : kWidth); ++j)
      sum = fma(load_some(taps[j] + at, count), load_some(weight + j * weight_stride + at, count), sum);
    store_some(out + at, silu(sum), count);
  });
}

void conv_silu(const void* const* x, bool bf16, int W, const float* weight, int64_t weight_stride, int n, void* y) {
  const auto conv = W == 4 ? (bf16 ? conv_silu_of<uint16_t, 4> : conv_silu_of<float, 4>)
                           : (bf16 ? conv_silu_of<uint16_t, 0> : conv_silu_of<float, 0>);
  conv(x, W, weight, weight_stride, n, y);
}

void log_decay(const void* a, bool bf16, const float* A_log, const float* dt_bias, int n, float* g) {
  over_lanes(n, [&](int at, int count) {
    const F32 rate = set(0.0f) - exp(load_some(A_log + at, count));
    store_some(g + at, rate * softplus(load_any(a, bf16, at, count) + load_some(dt_bias + at, count)), count);
  });
}

void sigmoid_of(const void* x, bool bf16, int n, float* y) {
  over_lanes(n, [&](int at, int count) { store_some(y + at, sigmoid(load_any(x, bf16, at, count)), count); });
}

void exp_of(const float* x, int n, float* y) {
  over_lanes(n, [&](int at, int count) { store_some(y + at, exp(load_some(x + at, count)), count); });
}

void widen(const void* x, bool bf16, int n, float* y) {
  over_lanes(n, [&](int at, int count) { store_some(y + at, load_any(x, bf16, at, count), count); });
}

void l2_norm(const void* x, bool bf16, int D, float scale, float* y) {
  F32 sum[kParts];
  for (int part = 0; part < kParts; ++part) sum[part] = set(0.0f);
  for (int d = 0; d < D; d += 16)
    for (int part = 0; part < kParts; ++part) {
      const F32 xd = load_any(x, bf16, d + part * kLanes, kLanes);
      sum[part] = fma(xd, xd, sum[part]);
    }
  const F32 norm = set(1.0f) / sqrt(set(sum_lanes(sum) + 1e-6f));
  for (int d = 0; d < D; d += kLanes) store(y + d, load_any(x, bf16, d, kLanes) * norm * set(scale));
}

// N vectors of columns of S, working copy [Dk, N * kLanes].
template <int N>
struct Columns {
  F32 x[N];
};

// S' = decay S; returns S'^T k.
template <int N>
Columns<N> decay_and_recall(const float* from, int64_t stride, int Dk, const float* k, float decay, float* S) {
  Columns<N> m;
  for (int n = 0; n < N; ++n) m.x[n] = set(0.0f);
  const F32 a = set(decay);
  for (int i = 0; i < Dk; ++i) {
    const F32 ki = set(k[i]);
    for (int n = 0; n < N; n += 64 / kLanes / static_cast<int>(sizeof(float)))
      _mm_prefetch(reinterpret_cast<const char*>(from + i * stride + (N + n) * kLanes), _MM_HINT_T0);
    for (int n = 0; n < N; ++n) {
      const F32 s = load(from + i * stride + n * kLanes) * a;
      m.x[n] = fma(ki, s, m.x[n]);
      store(S + (i * N + n) * kLanes, s);
    }
  }
  return m;
}

// S <- S + k delta^T, o = S^T q; and the next token's decay_and_recall in the same sweep.
template <int N>
Columns<N> write_and_recall(const Columns<N>& delta, int Dk, const float* k, const float* q, const float* next_k,
                            float next_decay, float* S, Columns<N>& o) {
  Columns<N> m, sum;
  for (int n = 0; n < N; ++n) m.x[n] = sum.x[n] = set(0.0f);
  const F32 a = set(next_decay);
  for (int i = 0; i < Dk; ++i) {
    const F32 ki = set(k[i]), qi = set(q[i]), next_ki = set(next_k[i]);
    for (int n = 0; n < N; ++n) {
      float* at = S + (i * N + n) * kLanes;
      F32 s = fma(ki, delta.x[n], load(at));
      sum.x[n] = fma(qi, s, sum.x[n]);
      s = s * a;
      m.x[n] = fma(next_ki, s, m.x[n]);
      store(at, s);
    }
  }
  o = sum;
  return m;
}

// S <- S + k delta^T, to `to`; returns S^T q.
template <int N>
Columns<N> write_last(const Columns<N>& delta, int Dk, const float* k, const float* q, const float* S, float* to,
                      int64_t stride) {
  Columns<N> o;
  for (int n = 0; n < N; ++n) o.x[n] = set(0.0f);
  for (int i = 0; i < Dk; ++i) {
    const F32 ki = set(k[i]), qi = set(q[i]);
    for (int n = 0; n < N; ++n) {
      const F32 s = fma(ki, delta.x[n], load(S + (i * N + n) * kLanes));
      o.x[n] = fma(qi, s, o.x[n]);
      if (to != nullptr) store(to + i * stride + n * kLanes, s);
    }
  }
  return o;
}

template <int N>
void delta_columns(const DeltaChunk& chunk, int Dv, int column, const float* from, float* to, float* S) {
  static const float zeros[N * kLanes] = {};
  const int Dk = chunk.Dk;
  Columns<N> m = decay_and_recall<N>(from == nullptr ? zeros : from + column, from == nullptr ? 0 : Dv, Dk, chunk.k,
                                     chunk.decay[0], S);
  for (int t = 0; t < chunk.tokens; ++t) {
    const float* k = chunk.k + t * Dk;
    const float* q = chunk.q + t * Dk;
    Columns<N> delta, o;
    for (int n = 0; n < N; ++n)
      delta.x[n] = set(chunk.beta[t]) * (load(chunk.v + t * chunk.v_stride + column + n * kLanes) - m.x[n]);
    if (t + 1 < chunk.tokens)
      m = write_and_recall<N>(delta, Dk, k, q, k + Dk, chunk.decay[t + 1], S, o);
    else
      o = write_last<N>(delta, Dk, k, q, S, to == nullptr ? nullptr : to + column, Dv);
    if (t < chunk.silent) continue;
    const int64_t at = (t - chunk.silent) * chunk.out_stride + column;
    for (int n = 0; n < N; ++n) {
      if (chunk.bf16)
        store(static_cast<uint16_t*>(chunk.out) + at + n * kLanes, o.x[n]);
      else
        store(static_cast<float*>(chunk.out) + at + n * kLanes, o.x[n]);
    }
  }
}

void delta(const DeltaChunk& chunk, int Dv, int column, int columns, const float* from, float* to, float* S) {
  const int end = column + columns;
  for (; column + 4 * kLanes <= end; column += 4 * kLanes) delta_columns<4>(chunk, Dv, column, from, to, S);
  for (; column + 2 * kLanes <= end; column += 2 * kLanes) delta_columns<2>(chunk, Dv, column, from, to, S);
  for (; column < end; column += kLanes) delta_columns<1>(chunk, Dv, column, from, to, S);
}

constexpr RecurrenceKernels kRecurrenceKernels = {conv_silu, log_decay, sigmoid_of, exp_of, widen, l2_norm, delta};

}  // namespace
}  // namespace calandra

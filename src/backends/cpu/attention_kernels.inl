// The functions of AttentionKernels over simd.h; included by the unit of each instruction set.
#include "backends/cpu/attention_kernels.h"
#include "backends/cpu/simd.h"

namespace calandra {
namespace {

constexpr float kMinusInfinity = -__builtin_inff();

// Sums of the 16 lanes of four dots, by the tree of sum_lanes.
inline __m128 sum_lanes_of_4(__m128 a, __m128 b, __m128 c, __m128 d) {
  const __m128 ab = _mm_add_ps(_mm_unpacklo_ps(a, b), _mm_unpackhi_ps(a, b));  // a0+a2 b0+b2 a1+a3 b1+b3
  const __m128 cd = _mm_add_ps(_mm_unpacklo_ps(c, d), _mm_unpackhi_ps(c, d));
  return _mm_add_ps(_mm_movelh_ps(ab, cd), _mm_movehl_ps(cd, ab));
}

// scores[i * kKeyBlock + j] = q[i] k[j] for Q vectors and K keys.
template <class T, int Q, int K>
void dots(const float* q, int Dh, const T* const* k, float* scores) {
  F32 sums[Q * K][kParts];
  for (int part = 0; part < kParts; ++part) {
    F32 acc[Q * K];
    for (int i = 0; i < Q * K; ++i) acc[i] = set(0.0f);
    for (int d = part * kLanes; d < Dh; d += 16) {
      F32 qd[Q];
      for (int i = 0; i < Q; ++i) qd[i] = load(q + i * Dh + d);
      for (int i = 0; i < Q; ++i) asm("" : "+v"(qd[i]));  // in a register: GCC 12 loads it again for every key
      for (int j = 0; j < K; ++j) {
        const F32 kd = load(k[j] + d);
        for (int i = 0; i < Q; ++i) acc[i * K + j] = fma(qd[i], kd, acc[i * K + j]);
      }
    }
    for (int i = 0; i < Q * K; ++i) sums[i][part] = acc[i];
  }
  if constexpr (K == 4) {
    for (int i = 0; i < Q; ++i)
      _mm_storeu_ps(scores + i * kKeyBlock, sum_lanes_of_4(fold_to_4(sums[4 * i]), fold_to_4(sums[4 * i + 1]),
                                                           fold_to_4(sums[4 * i + 2]), fold_to_4(sums[4 * i + 3])));
  } else {
    for (int i = 0; i < Q; ++i)
      for (int j = 0; j < K; ++j) scores[i * kKeyBlock + j] = sum_lanes(sums[i * K + j]);
  }
}

// All scores of Q vectors against the keys [begin, end) of a block. The values of the block are on their way meanwhile.
template <class T, int Q>
void score(const float* q, int Dh, const T* const* k, const T* const* v, int begin, int end, float* scores) {
  constexpr int K = kLanes == 8 && Q > 2 ? 2 : 4;  // registers: Q K sums
  const auto prefetch = [&](int key) {
    for (int d = 0; d < Dh; d += 64 / static_cast<int>(sizeof(T)))
      _mm_prefetch(reinterpret_cast<const char*>(v[key] + d), _MM_HINT_T0);
  };
  int key = begin;
  for (; key + K <= end; key += K) {
    for (int j = 0; j < K; ++j) prefetch(key + j);
    dots<T, Q, K>(q, Dh, k + key, scores + key);
  }
  for (; key < end; ++key) {
    prefetch(key);
    dots<T, Q, 1>(q, Dh, k + key, scores + key);
  }
}

// acc[i] <- scale[i] acc[i] + sum over the keys [begin, end) of weights[i][key] v[key], key by key, for N vectors of
// lanes.
template <class T, int Q, int N>
void add_values(const float* weights, const T* const* v, int begin, int end, int d, const float* scale, int Dh,
                float* acc) {
  F32 a[Q][N];
  for (int i = 0; i < Q; ++i)
    for (int n = 0; n < N; ++n) a[i][n] = load(acc + i * Dh + d + n * kLanes) * set(scale[i]);
  for (int key = begin; key < end; ++key) {
    F32 vd[N];
    for (int n = 0; n < N; ++n) vd[n] = load(v[key] + d + n * kLanes);
    for (int i = 0; i < Q; ++i) {
      const F32 w = set(weights[i * kKeyBlock + key]);
      for (int n = 0; n < N; ++n) a[i][n] = fma(w, vd[n], a[i][n]);
    }
  }
  for (int i = 0; i < Q; ++i)
    for (int n = 0; n < N; ++n) store(acc + i * Dh + d + n * kLanes, a[i][n]);
}

template <class T, int Q>
void add_all_values(const float* weights, const T* const* v, int begin, int end, const float* scale, int Dh,
                    float* acc) {
  int d = 0;
  for (; d + 2 * kLanes <= Dh; d += 2 * kLanes) add_values<T, Q, 2>(weights, v, begin, end, d, scale, Dh, acc);
  for (; d < Dh; d += kLanes) add_values<T, Q, 1>(weights, v, begin, end, d, scale, Dh, acc);
}

inline float exp_of(float x) {
  float lanes[kLanes];
  store(lanes, exp(set(x)));
  return lanes[0];
}

// Scores of the keys [begin, end) of a block become weights, zero elsewhere. Returns by what the older sums are
// multiplied.
inline float softmax(float* scores, int begin, int end, float& max_so_far, float& sum_so_far) {
  for (int key = 0; key < begin; ++key) scores[key] = kMinusInfinity;
  for (int key = end; key < kKeyBlock; ++key) scores[key] = kMinusInfinity;
  F32 highest[kParts], sum[kParts];
  for (int part = 0; part < kParts; ++part) {
    highest[part] = load(scores + part * kLanes);
    sum[part] = set(0.0f);
    for (int key = 16 + part * kLanes; key < kKeyBlock; key += 16)
      highest[part] = max(highest[part], load(scores + key));
  }
  const float block_max = max_lanes(highest);
  const float new_max = max_so_far > block_max ? max_so_far : block_max;
  for (int key = 0; key < kKeyBlock; key += 16)
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

// Q vectors, from number `first` of the tile on, against a block whose keys begin at `base`; k and v of [begin, end)
// are there.
template <class T, int Q>
void attend_vectors(const QueryTile& tile, int first, const T* const* k, const T* const* v, int64_t base, int begin,
                    int end, float* scores, SoftmaxPartial& partial) {
  const int Dh = tile.Dh;
  int from[Q], to[Q];  // the vector's own keys
  int any_from = end, any_to = begin, all_from = begin, all_to = end;
  for (int i = 0; i < Q; ++i) {
    const int64_t own_begin = tile.begin[first + i] - base, own_end = tile.end[first + i] - base;
    from[i] = own_begin > begin ? static_cast<int>(own_begin < end ? own_begin : end) : begin;
    to[i] = own_end < end ? static_cast<int>(own_end > from[i] ? own_end : from[i]) : end;
    if (from[i] == to[i]) from[i] = to[i] = begin;
    if (from[i] == to[i]) continue;
    any_from = from[i] < any_from ? from[i] : any_from;
    any_to = to[i] > any_to ? to[i] : any_to;
  }
  for (int i = 0; i < Q; ++i) {
    all_from = from[i] > all_from ? from[i] : all_from;
    all_to = to[i] < all_to ? to[i] : all_to;
  }
  if (any_from >= any_to) return;
  score<T, Q>(tile.q + first * Dh, Dh, k, v, any_from, any_to, scores);

  float scale[Q];
  bool together = all_from < all_to;
  for (int i = 0; i < Q; ++i) {
    scale[i] = 1;
    if (from[i] < to[i])
      scale[i] = softmax(scores + i * kKeyBlock, from[i], to[i], partial.max[first + i], partial.sum[first + i]);
    together = together && from[i] == all_from;
  }
  // The keys that all have, in one pass; then what each has beyond. A masked key is never touched: its value may be
  // anything.
  float* acc = partial.acc + first * Dh;
  if (together) add_all_values<T, Q>(scores, v, all_from, all_to, scale, Dh, acc);
  for (int i = 0; i < Q; ++i) {
    const int done = together ? all_to : from[i];
    const float own_scale = together ? 1 : scale[i];
    if (done < to[i]) add_all_values<T, 1>(scores + i * kKeyBlock, v, done, to[i], &own_scale, Dh, acc + i * Dh);
  }
}

template <class T>
void attend_block(const QueryTile& tile, const T* const* k, const T* const* v, int64_t base, int begin, int end,
                  float* scores, SoftmaxPartial& partial) {
  int first = 0;
  for (; first + 4 <= tile.vectors; first += 4)
    attend_vectors<T, 4>(tile, first, k, v, base, begin, end, scores, partial);
  switch (tile.vectors - first) {
    case 3:
      attend_vectors<T, 3>(tile, first, k, v, base, begin, end, scores, partial);
      break;
    case 2:
      attend_vectors<T, 2>(tile, first, k, v, base, begin, end, scores, partial);
      break;
    case 1:
      attend_vectors<T, 1>(tile, first, k, v, base, begin, end, scores, partial);
      break;
  }
}

template <class T>
void attend_keys(const QueryTile& tile, const PagedKeys& keys, int64_t key_begin, int64_t key_end,
                 AttentionBlock& block, SoftmaxPartial& partial) {
  const T* k[kKeyBlock];
  const T* v[kKeyBlock];
  int64_t page = key_begin / keys.page_tokens, in_page = key_begin % keys.page_tokens;
  for (int64_t base = key_begin - key_begin % kKeyBlock; base < key_end; base += kKeyBlock) {
    const int begin = static_cast<int>(key_begin > base ? key_begin - base : 0);
    const int end = static_cast<int>(key_end < base + kKeyBlock ? key_end - base : kKeyBlock);
    for (int key = begin; key < end; ++key) {
      const int64_t at = keys.block_table[page] * keys.page_stride + in_page * keys.token_stride;
      k[key] = static_cast<const T*>(keys.k) + at;
      v[key] = static_cast<const T*>(keys.v) + at;
      if (++in_page == keys.page_tokens) {
        ++page;
        in_page = 0;
      }
    }
    if constexpr (sizeof(T) == 2) {
      if (tile.vectors > 4) {  // several groups of vectors read the block: widen it once
        const float* wide_k[kKeyBlock];
        const float* wide_v[kKeyBlock];
        for (int key = begin; key < end; ++key) {
          float* to_k = block.k + key * tile.Dh;
          float* to_v = block.v + key * tile.Dh;
          for (int d = 0; d < tile.Dh; d += kLanes) {
            store(to_k + d, load(k[key] + d));
            store(to_v + d, load(v[key] + d));
          }
          wide_k[key] = to_k;
          wide_v[key] = to_v;
        }
        attend_block<float>(tile, wide_k, wide_v, base, begin, end, block.scores, partial);
        continue;
      }
    }
    attend_block<T>(tile, k, v, base, begin, end, block.scores, partial);
  }
}

void clear_partial(int vectors, int Dh, SoftmaxPartial& partial) {
  for (int i = 0; i < vectors; ++i) {
    partial.max[i] = kMinusInfinity;
    partial.sum[i] = 0;
  }
  for (int d = 0; d < vectors * Dh; d += kLanes) store(partial.acc + d, set(0.0f));
}

void attend(const QueryTile& tile, const PagedKeys& keys, int64_t key_begin, int64_t key_end, AttentionBlock& block,
            SoftmaxPartial& partial) {
  clear_partial(tile.vectors, tile.Dh, partial);
  if (keys.bf16)
    attend_keys<uint16_t>(tile, keys, key_begin, key_end, block, partial);
  else
    attend_keys<float>(tile, keys, key_begin, key_end, block, partial);
}

void merge_partial(int vectors, int Dh, const SoftmaxPartial& partial, SoftmaxPartial& total) {
  for (int i = 0; i < vectors; ++i) {
    if (partial.sum[i] == 0) continue;  // no key
    const float new_max = total.max[i] > partial.max[i] ? total.max[i] : partial.max[i];
    const float old_scale = exp_of(total.max[i] - new_max), scale = exp_of(partial.max[i] - new_max);
    total.max[i] = new_max;
    total.sum[i] = total.sum[i] * old_scale + partial.sum[i] * scale;
    for (int d = i * Dh; d < (i + 1) * Dh; d += kLanes)
      store(total.acc + d, fma(load(partial.acc + d), set(scale), load(total.acc + d) * set(old_scale)));
  }
}

void load_query(const void* q, bool bf16, float scale, int Dh, float* out) {
  for (int d = 0; d < Dh; d += kLanes) {
    const F32 x = bf16 ? load(static_cast<const uint16_t*>(q) + d) : load(static_cast<const float*>(q) + d);
    store(out + d, x * set(scale));
  }
}

void finish(const SoftmaxPartial& total, int vector, int Dh, bool bf16, void* out) {
  const F32 sum = set(total.sum[vector] == 0 ? 1 : total.sum[vector]);
  for (int d = 0; d < Dh; d += kLanes) {
    const F32 y = load(total.acc + vector * Dh + d) / sum;
    if (bf16)
      store(static_cast<uint16_t*>(out) + d, y);
    else
      store(static_cast<float*>(out) + d, y);
  }
}

constexpr AttentionKernels kAttentionKernels = {load_query, attend, clear_partial, merge_partial, finish};

}  // namespace
}  // namespace calandra

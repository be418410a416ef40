// The functions of moe_kernels.h over simd.h; included by the unit of each instruction set.
#include "backends/cpu/moe_kernels.h"
#include "backends/cpu/simd.h"

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

template <class T>
void weighted_sum(const void* y, int64_t stride, const int32_t* places, const float* weights, int64_t k, void* out,
                  int64_t n) {
  const T* rows = static_cast<const T*>(y);
  const auto row = [&](int64_t j) { return rows + (places == nullptr ? j : places[j]) * stride; };
  for (int64_t i = 0; i < n; i += kLanes) {
    F32 sum = set(weights[0]) * load_first(row(0) + i, n - i);
    for (int64_t j = 1; j < k; ++j) sum = fma(set(weights[j]), load_first(row(j) + i, n - i), sum);
    store_first(static_cast<T*>(out) + i, sum, n - i);
  }
}

template <class T>
void sigmoid_scale(const void* x, const void* gate, void* out, int64_t n) {
  T rounded[kLanes];
  store(rounded, sigmoid(load_first(static_cast<const T*>(gate), 1)));
  T factors[kLanes];
  for (T& factor : factors) factor = rounded[0];
  const F32 factor = load(factors);
  for (int64_t i = 0; i < n; i += kLanes)
    store_first(static_cast<T*>(out) + i, load_first(static_cast<const T*>(x) + i, n - i) * factor, n - i);
}

constexpr MoeKernels kMoeKernels = {.weighted_sum = {weighted_sum<float>, weighted_sum<uint16_t>},
                                    .sigmoid_scale = {sigmoid_scale<float>, sigmoid_scale<uint16_t>}};

}  // namespace
}  // namespace calandra

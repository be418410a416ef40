#include "weights/stored_values.h"

namespace calandra {
namespace {

// Whether all bits of `exponent` are set somewhere: adding their lowest then carries into the sign. In blocks of fixed
// size, which the compiler vectorises.
template <class T>
bool has_full_exponent(const T* x, int64_t n, T exponent) {
  constexpr int64_t kBlock = 64;
  const T lowest = exponent & (~exponent + 1);
  T sum = 0;
  int64_t i = 0;
  for (; i + kBlock <= n; i += kBlock)
    for (int64_t j = i; j < i + kBlock; ++j) sum |= static_cast<T>((x[j] & exponent) + lowest);
  for (; i < n; ++i) sum |= static_cast<T>((x[i] & exponent) + lowest);
  return (sum & ~(static_cast<T>(~T{0}) >> 1)) != 0;
}

template <class T>
std::vector<float> widened(const Tensor& values) {
  std::vector<float> wide(values.numel());
  for (int64_t i = 0; i < values.numel(); ++i) wide[i] = static_cast<float>(values.as<T>()[i]);
  return wide;
}

template <class T>
void store(std::span<const float> values, const Tensor& to) {
  for (size_t i = 0; i < values.size(); ++i) to.as<T>()[i] = T(values[i]);
}

}  // namespace

bool has_nan_or_infinity(const Tensor& values) {
  if (values.dtype() == DType::kF8E4M3)
    return has_full_exponent<uint8_t>(static_cast<const uint8_t*>(values.data()), values.numel(), 0x7f);  // NaN alone
  const auto* half = static_cast<const uint16_t*>(values.data());
  switch (values.dtype()) {
    case DType::kBF16:
      return has_full_exponent<uint16_t>(half, values.numel(), 0x7f80);
    case DType::kF16:
      return has_full_exponent<uint16_t>(half, values.numel(), 0x7c00);
    default:
      return has_full_exponent(static_cast<const uint32_t*>(values.data()), values.numel(), 0x7f800000u);
  }
}

std::vector<float> to_f32(const Tensor& values) {
  switch (values.dtype()) {
    case DType::kBF16:
      return widened<bf16>(values);
    case DType::kF16:
      return widened<f16>(values);
    case DType::kF8E4M3:
      return widened<f8_e4m3>(values);
    default:
      return widened<float>(values);
  }
}

std::vector<float> to_f32(const StoredMatrix& matrix) {
  std::vector<float> wide = to_f32(matrix.values);
  if (matrix.dtype() != DType::kF8E4M3) return wide;
  const int64_t K = matrix.K();
  for (int64_t n = 0; n < matrix.N(); ++n) {
    const float* scales = matrix.scales.as<float>() + n / matrix.block_n * matrix.scales.size(1);
    for (int64_t k = 0; k < K; ++k) wide[n * K + k] *= scales[k / matrix.block_k];
  }
  return wide;
}

void from_f32(std::span<const float> values, const Tensor& to) {
  switch (to.dtype()) {
    case DType::kBF16:
      return store<bf16>(values, to);
    case DType::kF16:
      return store<f16>(values, to);
    default:
      return store<float>(values, to);
  }
}

}  // namespace calandra

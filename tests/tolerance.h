// How far a result may be from the reference: what rounding can explain and no more.
#pragma once

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <string>
#include <vector>

#include "tensor/tensor.h"

namespace calandra {

// Backends may take a denormal factor for zero; the other factors of these tests are below 2^8.
constexpr double kFlushed = 0x1p-118;

// Row r (first axis) may differ by  scale(r) (c eps(f32) sqrt(reduction) + roundings eps(dtype)),  scale(r) the largest
// magnitude of the reference in the row; a value beside a tie falls either way, one eps apart. Sums run in f32 whatever
// the type of the result, hence two terms.
struct Tolerance {
  double c = 4;           // functions and products beside the sum
  int64_t reduction = 1;  // length of the longest sum
  double roundings = 1;   // to the type of the result, on the way to it

  double relative(DType dtype) const {
    const double sums = c * 0x1p-23 * std::sqrt(static_cast<double>(reduction));
    return sums + roundings * (dtype == DType::kBF16 ? 0x1p-7 : 0x1p-23);
  }
};

// Element i of row r, of a tensor whose rows may have a stride.
inline float element(const Tensor& x, int64_t r, int64_t i) {
  const std::byte* at = x.bytes_at(r * x.stride(0) + i);
  switch (x.dtype()) {
    case DType::kF32:
      return *reinterpret_cast<const float*>(at);
    case DType::kBF16:
      return static_cast<float>(*reinterpret_cast<const bf16*>(at));
    case DType::kF16:
      return static_cast<float>(*reinterpret_cast<const f16*>(at));
    case DType::kI32:
      return static_cast<float>(*reinterpret_cast<const int32_t*>(at));
    default:
      return NAN;
  }
}

// "[3, 0, 7]" of element i of row r.
inline std::string coordinate(const Shape& shape, int64_t r, int64_t i) {
  std::vector<int64_t> at(shape.rank());
  for (int axis = shape.rank() - 1; axis > 0; --axis) at[axis] = i % shape[axis], i /= shape[axis];
  at[0] = r;
  std::string text = "[";
  for (size_t axis = 0; axis < at.size(); ++axis) text += (axis == 0 ? "" : ", ") + std::to_string(at[axis]);
  return text + "]";
}

// Names the op, the backend, the shape, the first bad coordinate and both values. NaN agrees with NaN only: memory that
// nobody may write holds it.
inline testing::AssertionResult close_to(const Tensor& got, const Tensor& want, const Tolerance& tolerance,
                                         const std::string& op, const std::string& backend) {
  const std::string where =
      op + " on " + backend + ", " + std::string(name_of(want.dtype())) + " " + want.shape().to_string() + ": ";
  if (!(got.shape() == want.shape()) || got.dtype() != want.dtype())
    return testing::AssertionFailure() << where << "the result is " << name_of(got.dtype()) << " "
                                       << got.shape().to_string();
  const int64_t rows = want.empty() ? 0 : want.size(0), inner = rows == 0 ? 0 : want.numel() / rows;
  for (int64_t r = 0; r < rows; ++r) {
    double scale = 0;
    for (int64_t i = 0; i < inner; ++i)
      if (std::isfinite(element(want, r, i))) scale = std::max(scale, std::fabs(double{element(want, r, i)}));
    const double bound = scale * tolerance.relative(want.dtype()) + kFlushed;
    for (int64_t i = 0; i < inner; ++i) {
      const double a = element(got, r, i), b = element(want, r, i);
      if (std::isnan(a) && std::isnan(b)) continue;
      if (!(std::fabs(a - b) <= bound))
        return testing::AssertionFailure()
               << where << "at " << coordinate(want.shape(), r, i) << " is " << a << ", reference " << b << ", off by "
               << std::fabs(a - b) << " of " << bound << " allowed";
    }
  }
  return testing::AssertionSuccess();
}

}  // namespace calandra

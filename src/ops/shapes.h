// Checks shapes and types by axis names, once for all backends.
#pragma once

#include <array>
#include <initializer_list>
#include <optional>
#include <string_view>

#include "tensor/tensor.h"

namespace calandra {

// Axis sizes bound by match_shapes.
class Dims {
 public:
  int64_t operator[](std::string_view axis) const;  // aborts when the axis was not named

 private:
  friend Dims match_shapes(const char* op, std::initializer_list<struct NamedShape> tensors);
  struct Axis {
    std::string_view name;
    int64_t size;
  };
  std::array<Axis, 24> axes_{};
  int count_ = 0;
};

struct NamedShape {
  const Tensor& tensor;
  std::string_view axes;       // "T Hk Dk"; a number is a fixed size ("3 T")
  std::optional<DType> dtype;  // absent: f32 or bf16
};

// Binds the axes of all tensors; a mismatch aborts with the op, the tensor's number, the axis and both sizes. The axes
// after the first must be dense, only the row stride is free (a tensor of one axis must be dense). Axis names must
// outlive the result (string literals).
Dims match_shapes(const char* op, std::initializer_list<NamedShape> tensors);

}  // namespace calandra

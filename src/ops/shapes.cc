#include "ops/shapes.h"

#include <string>

namespace calandra {
namespace {

// The next space-separated word of `text`, taken off its front.
std::string_view next_word(std::string_view& text) {
  while (!text.empty() && text.front() == ' ') text.remove_prefix(1);
  const std::string_view word = text.substr(0, text.find(' '));
  text.remove_prefix(word.size());
  return word;
}

bool is_number(std::string_view word) { return word.front() >= '0' && word.front() <= '9'; }

int64_t number_in(std::string_view word) {
  int64_t value = 0;
  for (char digit : word) value = value * 10 + (digit - '0');
  return value;
}

struct Place {
  const char* op;
  int tensor;  // place in the list, from 0
  const NamedShape& named;
};

[[noreturn]] void fail(const Place& place, const std::string& what) {
  check_failed(__FILE__, __LINE__, "shapes of " + std::string(place.op),
               "tensor " + std::to_string(place.tensor) + " " + place.named.tensor.shape().to_string() + " as [" +
                   std::string(place.named.axes) + "]: " + what);
}

void check_type(const Place& place) {
  const DType found = place.named.tensor.dtype();
  if (place.named.dtype) {
    if (found != *place.named.dtype)
      fail(place, "expected " + std::string(name_of(*place.named.dtype)) + ", found " + std::string(name_of(found)));
  } else if (found != DType::kF32 && found != DType::kBF16) {
    fail(place, "expected float32 or bfloat16, found " + std::string(name_of(found)));
  }
}

void check_strides(const Place& place) {
  const Tensor& tensor = place.named.tensor;
  if (tensor.empty()) return;
  int64_t dense = 1;
  for (int axis = tensor.rank() - 1; axis >= 0; --axis) {
    if (axis == 0 && tensor.rank() > 1) break;  // the row stride is free
    if (tensor.size(axis) != 1 && tensor.stride(axis) != dense)
      fail(place, "axis " + std::to_string(axis) + " has stride " + std::to_string(tensor.stride(axis)) + ", not " +
                      std::to_string(dense));
    dense *= tensor.size(axis);
  }
}

}  // namespace

int64_t Dims::operator[](std::string_view axis) const {
  for (int i = 0; i < count_; ++i)
    if (axes_[i].name == axis) return axes_[i].size;
  check_failed(__FILE__, __LINE__, "axis", "no axis is named " + std::string(axis));
}

Dims match_shapes(const char* op, std::initializer_list<NamedShape> tensors) {
  Dims dims;
  int index = 0;
  for (const NamedShape& named : tensors) {
    const Place place{op, index++, named};
    check_type(place);
    check_strides(place);
    std::string_view rest = named.axes;
    int axis = 0;
    for (std::string_view word = next_word(rest); !word.empty(); word = next_word(rest), ++axis) {
      if (axis == named.tensor.rank()) fail(place, "axis " + std::string(word) + " is missing");
      const int64_t size = named.tensor.size(axis);
      int known = 0;
      while (known < dims.count_ && dims.axes_[known].name != word) ++known;
      if (known == dims.count_) {
        if (known == static_cast<int>(dims.axes_.size())) fail(place, "too many axis names");
        dims.axes_[dims.count_++] = {word, is_number(word) ? number_in(word) : size};
      }
      if (size != dims.axes_[known].size)
        fail(place, "axis " + std::string(word) + " is " + std::to_string(size) + ", expected " +
                        std::to_string(dims.axes_[known].size));
    }
    if (axis != named.tensor.rank()) fail(place, "rank is " + std::to_string(named.tensor.rank()));
  }
  return dims;
}

}  // namespace calandra

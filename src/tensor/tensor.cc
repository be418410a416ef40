#include "tensor/tensor.h"

namespace calandra {

Shape::Shape(std::initializer_list<int64_t> sizes) {
  for (int64_t size : sizes) append(size);
}

void Shape::append(int64_t size) {
  CHECK_LT(rank_, kMaxRank);
  sizes_[rank_++] = size;
}

int64_t Shape::numel() const {
  int64_t n = 1;
  for (int i = 0; i < rank_; ++i) n *= sizes_[i];
  return n;
}

bool Shape::operator==(const Shape& other) const {
  if (rank_ != other.rank_) return false;
  for (int i = 0; i < rank_; ++i)
    if (sizes_[i] != other.sizes_[i]) return false;
  return true;
}

std::string Shape::to_string() const {
  std::string text = "[";
  for (int i = 0; i < rank_; ++i) text += (i > 0 ? ", " : "") + std::to_string(sizes_[i]);
  return text + "]";
}

Tensor::Tensor(void* data, DType dtype, Shape shape, Device device)
    : data_(data), shape_(shape), dtype_(dtype), device_(device) {
  int64_t stride = 1;
  for (int i = shape.rank() - 1; i >= 0; --i) {
    CHECK_GE(shape[i], 0);
    strides_[i] = stride;
    stride *= shape[i];
  }
}

bool Tensor::is_dense() const {
  int64_t stride = 1;
  for (int i = rank() - 1; i >= 0; --i) {
    if (shape_[i] != 1 && strides_[i] != stride) return false;
    stride *= shape_[i];
  }
  return true;
}

Tensor Tensor::view(Shape shape) const {
  int64_t known = 1;
  int unknown = -1;
  for (int i = 0; i < shape.rank(); ++i) {
    if (shape[i] == -1) {
      CHECK_MSG(unknown < 0, "two unknown sizes in " + shape.to_string());
      unknown = i;
    } else {
      known *= shape[i];
    }
  }
  if (unknown >= 0) shape[unknown] = known == 0 ? 0 : numel() / known;
  CHECK_MSG(shape.numel() == shape_.numel(), shape_.to_string() + " viewed as " + shape.to_string());

  Tensor result(data_, dtype_, shape, device_);
#if CALANDRA_STAMPS
  result.stamp_ = stamp_;
#endif
  if (is_dense()) return result;
  // The axes that both shapes begin with keep their strides; what follows must be dense in itself.
  int same = 0;
  while (same < rank() && same < shape.rank() && shape_[same] == shape[same]) ++same;
  int64_t stride = 1;
  for (int i = rank() - 1; i >= same; --i) {
    CHECK_MSG(shape_[i] == 1 || strides_[i] == stride, "view of a strided tensor " + shape_.to_string());
    stride *= shape_[i];
  }
  for (int i = 0; i < same; ++i) result.strides_[i] = strides_[i];
  return result;
}

Tensor Tensor::slice(int axis, int64_t begin, int64_t end) const {
  if (axis < 0) axis += rank();
  CHECK_LE(0, begin);
  CHECK_LE(begin, end);
  CHECK_LE(end, shape_[axis]);
  Tensor result = *this;
  result.data_ = bytes_at(begin * strides_[axis]);
  result.shape_[axis] = end - begin;
  return result;
}

Tensor Tensor::operator[](int64_t index) const {
  CHECK_GE(rank(), 1);
  CHECK_LE(0, index);
  CHECK_LT(index, shape_[0]);
  Tensor result = *this;
  result.data_ = bytes_at(index * strides_[0]);
  result.shape_ = Shape();
  for (int i = 1; i < rank(); ++i) {
    result.shape_.append(shape_[i]);
    result.strides_[i - 1] = strides_[i];
  }
  return result;
}

#if CALANDRA_STAMPS
void Tensor::used_too_late() const {
  check_failed(__FILE__, __LINE__, "tensor lives",
               shape_.to_string() + ", allocation " + std::to_string(stamp_.number) + " of " + stamp_.ledger->name() +
                   ", is used after its memory was given back");
}
#endif

}  // namespace calandra

// Tensor: a view of memory that somebody else owns. Copying one copies the view.
#pragma once

#include <array>
#include <cstdint>
#include <initializer_list>
#include <string>

#include "base/check.h"
#include "tensor/dtype.h"
#include "tensor/stamp.h"

namespace calandra {

enum class DeviceKind : uint8_t { kCpu, kCuda };

struct Device {
  DeviceKind kind = DeviceKind::kCpu;
  int index = 0;
  bool operator==(const Device&) const = default;
};

// Sizes of up to five axes, outermost first.
class Shape {
 public:
  static constexpr int kMaxRank = 5;

  Shape() = default;
  Shape(std::initializer_list<int64_t> sizes);

  int rank() const { return rank_; }
  int64_t operator[](int axis) const { return sizes_[axis]; }
  int64_t& operator[](int axis) { return sizes_[axis]; }
  void append(int64_t size);
  int64_t numel() const;
  bool operator==(const Shape& other) const;
  std::string to_string() const;  // "[3, 4]"

 private:
  std::array<int64_t, kMaxRank> sizes_{};
  int rank_ = 0;
};

class Tensor {
 public:
  Tensor() = default;  // no tensor: data() is null and numel() 0
  // Dense, row-major.
  Tensor(void* data, DType dtype, Shape shape, Device device = {});

  void* data() const {
    check_stamp();
    return data_;
  }
  DType dtype() const { return dtype_; }
  Device device() const { return device_; }
  const Shape& shape() const { return shape_; }
  int rank() const { return shape_.rank(); }
  int64_t size(int axis) const { return shape_[axis < 0 ? axis + rank() : axis]; }
  int64_t stride(int axis) const { return strides_[axis < 0 ? axis + rank() : axis]; }  // elements
  int64_t numel() const { return rank() == 0 && data_ == nullptr ? 0 : shape_.numel(); }
  int64_t bytes() const { return numel() * static_cast<int64_t>(size_of(dtype_)); }
  bool empty() const { return numel() == 0; }
  explicit operator bool() const { return data_ != nullptr; }
  bool is_dense() const;

  // The elements; T must be the tensor's type.
  template <class T>
  T* as() const {
    CHECK_MSG(dtype_of<T>() == dtype_, "tensor is " + std::string(name_of(dtype_)));
    return static_cast<T*>(data());
  }
  // Null for a tensor of a dry run, which has no memory.
  std::byte* bytes_at(int64_t element) const {
    return data_ == nullptr ? nullptr : static_cast<std::byte*>(data()) + element * size_of(dtype_);
  }

  // Another shape of the same elements. The tensor must be dense, or the change must concern only the last axes that
  // are dense among themselves (a row-strided [T, H*D] becomes [T, H, D]). One size may be -1.
  Tensor view(Shape shape) const;
  // Elements [begin, end) of one axis.
  Tensor slice(int axis, int64_t begin, int64_t end) const;
  // Element `index` of the first axis, without that axis.
  Tensor operator[](int64_t index) const;

  // The allocation that this tensor and its views stand and fall with (stamp.h). Nothing in builds without stamps.
  void set_stamp([[maybe_unused]] const Stamp& stamp) {
#if CALANDRA_STAMPS
    stamp_ = stamp;
#endif
  }

 private:
  void check_stamp() const {
#if CALANDRA_STAMPS
    if (stamp_.ledger != nullptr && !stamp_.ledger->lives(stamp_.offset, stamp_.number)) used_too_late();
#endif
  }
#if CALANDRA_STAMPS
  [[noreturn]] void used_too_late() const;
  Stamp stamp_;
#endif
  void* data_ = nullptr;
  Shape shape_;
  std::array<int64_t, Shape::kMaxRank> strides_{};
  DType dtype_ = DType::kF32;
  Device device_;
};

}  // namespace calandra

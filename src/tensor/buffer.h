// Buffer: the owner of bytes on a device. Move-only; freed on destruction.
#pragma once

#include <cstddef>

#include "tensor/tensor.h"

namespace calandra {

class Buffer {
 public:
  using Free = void (*)(void* data, size_t bytes);

  Buffer() = default;
  // Takes ownership; `free` is called once, with these values.
  Buffer(void* data, size_t bytes, Device device, Free free)
      : data_(data), bytes_(bytes), device_(device), free_(free) {}
  Buffer(Buffer&& other) noexcept { *this = static_cast<Buffer&&>(other); }
  Buffer& operator=(Buffer&& other) noexcept;
  ~Buffer();

  // Zeroed host memory, 64-byte aligned, on huge pages where the kernel grants them. Throws LoadError when there is not
  // enough.
  static Buffer host(size_t bytes);

  void* data() const { return data_; }
  size_t bytes() const { return bytes_; }
  Device device() const { return device_; }
  // A dense tensor at `offset` bytes of this buffer; it must fit.
  Tensor tensor(DType dtype, Shape shape, size_t offset = 0) const;

 private:
  void* data_ = nullptr;
  size_t bytes_ = 0;
  Device device_;
  Free free_ = nullptr;
};

}  // namespace calandra

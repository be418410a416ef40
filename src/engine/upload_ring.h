// UploadRing: host memory out of which inputs of launches go to the device. What is on its way stays where it is until
// the device has it, so that several launches are prepared without waiting for the one before.
#pragma once

#include <array>

#include "ops/backend.h"

namespace calandra {

class UploadRing {
 public:
  // `bytes` of all uploads that may be on their way at once; one alone must fit.
  UploadRing(Backend& backend, size_t bytes) : backend_(backend), memory_(backend.allocate_host(bytes)) {}

  // Memory for `count` values, which nobody reads any more; waits until that is so. Filled in, it is sent.
  template <class T>
  T* take(int64_t count) {
    return static_cast<T*>(take_bytes(static_cast<size_t>(count) * sizeof(T)));
  }
  // All of what was taken last, in the order of the stream.
  void send(ExecContext& ctx, void* to);

 private:
  void* take_bytes(size_t bytes);
  void wait_for(size_t begin, size_t end);
  void forget(size_t count);

  static constexpr size_t kMost = 512;  // uploads on their way
  struct Upload {
    size_t begin, end;
    Backend::UploadId id;
  };
  Backend& backend_;
  Buffer memory_;
  std::array<Upload, kMost> uploads_;  // the oldest at first_
  size_t first_ = 0, count_ = 0;
  size_t begin_ = 0, end_ = 0;  // of what was taken last
};

}  // namespace calandra

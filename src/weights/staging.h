// Staging: the memory between a file and the packed weights. Several threads share a budget, so that the raw copies of
// a large model never exist side by side.
#pragma once

#include <condition_variable>
#include <functional>
#include <mutex>
#include <vector>

#include "tensor/buffer.h"

namespace calandra {

class StagingBudget {
 public:
  using Allocate = std::function<Buffer(size_t bytes)>;
  StagingBudget(size_t bytes, Allocate allocate) : bytes_(bytes), allocate_(std::move(allocate)) {}

  // Memory of one tensor, with undefined content, and its share of the budget until destruction.
  class Loan {
   public:
    Loan(StagingBudget& budget, size_t bytes);
    ~Loan();
    Loan(const Loan&) = delete;
    std::byte* data() const { return static_cast<std::byte*>(buffer_.data()); }

   private:
    StagingBudget& budget_;
    Buffer buffer_;
  };
  // Waits until the sum of all loans is within the budget. A tensor larger than the whole budget gets its memory
  // besides, one such tensor at a time: together at most the budget and the largest tensor.
  Loan borrow(size_t bytes) { return Loan(*this, bytes); }

 private:
  bool take_spare(size_t bytes, Buffer& buffer);
  void make_room(size_t bytes);

  const size_t bytes_;
  const Allocate allocate_;
  std::mutex mutex_;
  std::condition_variable returned_;
  size_t lent_ = 0;  // within the budget
  bool oversized_lent_ = false;
  std::vector<Buffer> spares_;  // returned; kept because the kernel clears new memory, a sixth of the time of a load
  size_t spare_bytes_ = 0;
};

}  // namespace calandra

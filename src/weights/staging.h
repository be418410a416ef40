// Staging: the memory between a file and the packed weights. Several threads share a budget, so that the raw copies of
// a large model never exist side by side.
#pragma once

#include <condition_variable>
#include <mutex>

#include "tensor/buffer.h"

namespace calandra {

class StagingBudget {
 public:
  explicit StagingBudget(size_t bytes) : bytes_(bytes) {}

  // Memory of one tensor, and its share of the budget until destruction.
  class Loan {
   public:
    Loan(StagingBudget& budget, size_t bytes);
    ~Loan();
    Loan(const Loan&) = delete;
    std::byte* data() const { return static_cast<std::byte*>(buffer_.data()); }

   private:
    StagingBudget& budget_;
    const size_t bytes_;
    Buffer buffer_;
  };
  // Waits until the sum of all loans is within the budget. A tensor larger than the whole budget gets its memory
  // besides, one such tensor at a time: together at most the budget and the largest tensor.
  Loan borrow(size_t bytes) { return Loan(*this, bytes); }

  size_t most_used() const { return most_used_; }  // bytes lent at once so far; read it when no loan is out

 private:
  const size_t bytes_;
  std::mutex mutex_;
  std::condition_variable returned_;
  size_t used_ = 0;       // by loans within the budget
  size_t oversized_ = 0;  // by the one loan above it
  size_t most_used_ = 0;
};

}  // namespace calandra

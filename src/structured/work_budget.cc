#include "structured/work_budget.h"

#include <malloc.h>
#include <sched.h>

#include <algorithm>
#include <ctime>

#include "base/check.h"

namespace calandra {
namespace {

constexpr int64_t kLooksAtClock = 64;  // allocations between two looks: reading it is a call of the system
constexpr int64_t kYields = 1024;  // allocations, some 100 us: who wakes up does not wait for the end of a time slice

thread_local constinit WorkBudget* current = nullptr;

std::chrono::nanoseconds thread_time() {
  timespec now;
  clock_gettime(CLOCK_THREAD_CPUTIME_ID, &now);
  return std::chrono::seconds(now.tv_sec) + std::chrono::nanoseconds(now.tv_nsec);
}

}  // namespace

WorkBudget::WorkBudget(const Limits& limits, const std::atomic<bool>& stop)
    : limits_(limits),
      stop_(stop),
      end_(limits.time == std::chrono::milliseconds::max() ? std::chrono::nanoseconds::max()
                                                           : thread_time() + limits.time) {
  CHECK(current == nullptr);
  current = this;
}

WorkBudget::~WorkBudget() { end(); }

std::optional<WorkBudget::Bound> WorkBudget::end() {
  if (current == this) current = nullptr;
  return over_;
}

void WorkBudget::check(size_t bytes) {
  ++allocations_;
  if (allocations_ % kYields == 0 && end_ != std::chrono::nanoseconds::max()) sched_yield();
  if (!over_) {
    if (allocations_ > limits_.allocations)
      over_ = Bound::kAllocations;
    else if (bytes_ > limits_.bytes || static_cast<int64_t>(bytes) > limits_.bytes - std::max<int64_t>(0, bytes_))
      over_ = Bound::kBytes;
    else if (stop_.load(std::memory_order_relaxed))
      over_ = Bound::kStop;
    else if (allocations_ % kLooksAtClock == 0 && thread_time() > end_)
      over_ = Bound::kTime;
  }
  if (over_) throw WorkIsOver();
}

void WorkBudget::before(size_t bytes) {
  if (current != nullptr) current->check(bytes);
}

void WorkBudget::after(void* allocated) {
  if (current == nullptr) return;
  current->bytes_ += static_cast<int64_t>(malloc_usable_size(allocated));
  current->most_bytes_ = std::max(current->most_bytes_, current->bytes_);
}

void WorkBudget::freed(void* allocated) {
  if (current != nullptr) current->bytes_ -= static_cast<int64_t>(malloc_usable_size(allocated));
}

}  // namespace calandra

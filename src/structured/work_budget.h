// WorkBudget: an end to the work that a client's words make a library do.
//
// While one counts, it counts the allocations of its thread. When one of its bounds is passed they throw WorkIsOver,
// each of them from then on, so that the library's frames unwind and give back what they hold. It holds in programs
// that are linked with operator_new.cc, which replaces operator new and delete; in others nothing is counted.
#pragma once

#include <atomic>
#include <chrono>
#include <cstddef>
#include <cstdint>
#include <limits>
#include <new>
#include <optional>

namespace calandra {

class WorkIsOver : public std::bad_alloc {
 public:
  const char* what() const noexcept override { return "the work's budget is over"; }
};

class WorkBudget {
 public:
  struct Limits {
    std::chrono::milliseconds time = std::chrono::milliseconds::max();  // of computing, by the thread's own clock
    int64_t bytes = std::numeric_limits<int64_t>::max();                // allocated and not freed
    int64_t allocations = std::numeric_limits<int64_t>::max();          // how many
  };
  // Counts from here on, for the calling thread, which may have one at a time. `stop`: over as soon as it is true.
  WorkBudget(const Limits& limits, const std::atomic<bool>& stop);
  ~WorkBudget();
  WorkBudget(const WorkBudget&) = delete;
  WorkBudget& operator=(const WorkBudget&) = delete;

  enum class Bound { kTime, kBytes, kAllocations, kStop };
  // Counts no more. Which bound was passed, if any: then what was made lacks what could not be allocated, even if the
  // library caught the exception.
  std::optional<Bound> end();
  int64_t allocations() const { return allocations_; }
  int64_t most_bytes() const { return most_bytes_; }

  // What operator new and delete tell the budget of their thread. before() may throw.
  static void before(size_t bytes);
  static void after(void* allocated);
  static void freed(void* allocated);

 private:
  void check(size_t bytes);

  const Limits limits_;
  const std::atomic<bool>& stop_;
  const std::chrono::nanoseconds end_;  // of the thread's clock
  std::optional<Bound> over_;
  int64_t allocations_ = 0, bytes_ = 0, most_bytes_ = 0;
};

}  // namespace calandra

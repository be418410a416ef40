// What one rendering may cost. A template comes from a model repository: it is bounded, not trusted.
#pragma once

#include "text/jinja/failure.h"

#include <cstddef>
#include <cstdint>

namespace calandra::jinja {

struct Budgets {
  int64_t steps = 4'000'000;  // nodes evaluated, items iterated, and one per 128 bytes of text worked on
  int call_depth = 100;       // macros, callers and recursive loops inside each other
  size_t output_bytes = size_t{16} << 20;
  size_t memory_bytes = size_t{32} << 20;  // of values that the template creates, at any moment
};

// Counts steps and live bytes of one rendering. Values that were created under a meter must not outlive it.
class Meter {
 public:
  explicit Meter(const Budgets& budgets) : budgets_(budgets), steps_left_(budgets.steps) {}
  Meter(const Meter&) = delete;
  Meter& operator=(const Meter&) = delete;

  void step(int64_t count = 1) {
    steps_left_ -= count;
    if (steps_left_ < 0) throw Failure("BudgetError", "the template takes too many steps");
  }
  void work(size_t bytes) { step(static_cast<int64_t>(bytes / 128)); }

  // Throws if `bytes` more could not be taken.
  void check(size_t bytes) const {
    if (bytes > budgets_.memory_bytes || live_ > budgets_.memory_bytes - bytes) {
      throw Failure("BudgetError", "the template needs too much memory");
    }
  }
  void take(size_t bytes) {
    check(bytes);
    live_ += bytes;
  }
  void give(size_t bytes) { live_ -= bytes; }

  const Budgets& budgets() const { return budgets_; }
  size_t live_bytes() const { return live_; }
  int64_t steps_left() const { return steps_left_; }

 private:
  Budgets budgets_;
  int64_t steps_left_;
  size_t live_ = 0;
};

}  // namespace calandra::jinja

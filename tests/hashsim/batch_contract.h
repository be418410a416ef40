// What every Batch must fulfil (ops/batch.h, ops/recurrence.h), checked against the slots it names. A scheduler that
// breaks one of these rules may still produce right tokens, until it does not.
#pragma once

#include <string>
#include <vector>

#include "models/causal_lm.h"

namespace calandra::hashsim {

class BatchContract {
 public:
  void check_forward(const Batch& batch, const SlotCounts& slots, int64_t pages, int64_t page_tokens);
  void check_draft(const Batch& batch, int64_t pages, int64_t page_tokens);

  // The first hundred, in words.
  const std::vector<std::string>& violations() const { return violations_; }
  void clear() { violations_.clear(); }

 private:
  template <class... Args>
  void expect(bool holds, const char* format, const Args&... args);
  bool check_rows(const Batch& batch);
  void check_pages(const Batch& batch, int64_t pages, int64_t page_tokens);
  void check_segments(const Batch& batch, const SlotCounts& slots);
  void check_slots_apart(const Batch& batch);

  std::vector<std::string> violations_;
  std::vector<int32_t> writer_;  // per page, the sequence that writes it in this step
  std::vector<int32_t> destination_;
  std::vector<int32_t> written_;
};

}  // namespace calandra::hashsim

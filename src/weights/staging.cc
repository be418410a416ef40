#include "weights/staging.h"

#include <algorithm>

namespace calandra {

StagingBudget::Loan::Loan(StagingBudget& budget, size_t bytes) : budget_(budget), bytes_(bytes) {
  buffer_ = Buffer::host(bytes);  // only reserves addresses: pages come with the first write, after the wait
  std::unique_lock lock(budget_.mutex_);
  if (bytes > budget_.bytes_) {
    budget_.returned_.wait(lock, [&] { return budget_.oversized_ == 0; });
    budget_.oversized_ = bytes;
  } else {
    budget_.returned_.wait(lock, [&] { return budget_.used_ + bytes <= budget_.bytes_; });
    budget_.used_ += bytes;
  }
  budget_.most_used_ = std::max(budget_.most_used_, budget_.used_ + budget_.oversized_);
}

StagingBudget::Loan::~Loan() {
  buffer_ = Buffer();
  {
    const std::lock_guard lock(budget_.mutex_);
    (bytes_ > budget_.bytes_ ? budget_.oversized_ : budget_.used_) -= bytes_;
  }
  budget_.returned_.notify_all();
}

}  // namespace calandra

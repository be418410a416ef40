#include "weights/staging.h"

#include <utility>

namespace calandra {

StagingBudget::Loan::Loan(StagingBudget& budget, size_t bytes) : budget_(budget) {
  std::unique_lock lock(budget_.mutex_);
  if (bytes > budget_.bytes_) {
    budget_.returned_.wait(lock, [&] { return !budget_.oversized_lent_; });
    buffer_ = budget_.allocate_(bytes);
    budget_.oversized_lent_ = true;
    return;
  }
  budget_.returned_.wait(lock,
                         [&] { return budget_.take_spare(bytes, buffer_) || budget_.lent_ + bytes <= budget_.bytes_; });
  if (buffer_.bytes() < bytes) {
    budget_.make_room(bytes);
    buffer_ = budget_.allocate_(bytes);
  }
  budget_.lent_ += buffer_.bytes();
}

StagingBudget::Loan::~Loan() {
  {
    const std::lock_guard lock(budget_.mutex_);
    if (buffer_.bytes() > budget_.bytes_) {
      budget_.oversized_lent_ = false;
      buffer_ = Buffer();  // before the next one is lent
    } else {
      budget_.lent_ -= buffer_.bytes();
      budget_.spare_bytes_ += buffer_.bytes();
      budget_.spares_.push_back(std::move(buffer_));
    }
  }
  budget_.returned_.notify_all();
}

// The smallest spare that is large enough.
bool StagingBudget::take_spare(size_t bytes, Buffer& buffer) {
  auto best = spares_.end();
  for (auto it = spares_.begin(); it != spares_.end(); ++it)
    if (it->bytes() >= bytes && (best == spares_.end() || it->bytes() < best->bytes())) best = it;
  if (best == spares_.end()) return false;
  spare_bytes_ -= best->bytes();
  buffer = std::move(*best);
  spares_.erase(best);
  return true;
}

void StagingBudget::make_room(size_t bytes) {
  while (lent_ + spare_bytes_ + bytes > bytes_) {
    spare_bytes_ -= spares_.back().bytes();
    spares_.pop_back();
  }
}

}  // namespace calandra

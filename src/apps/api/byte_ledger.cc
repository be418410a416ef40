#include "apps/api/byte_ledger.h"

#include <chrono>

#include "base/check.h"

namespace calandra::apps {

ByteLedger::Hold::~Hold() {
  if (ledger_ == nullptr) return;
  {
    const std::lock_guard lock(ledger_->mutex_);
    ledger_->held_ -= bytes_;
  }
  ledger_->freed_.notify_all();
}

std::optional<ByteLedger::Hold> ByteLedger::take(int64_t bytes) {
  const std::lock_guard lock(mutex_);
  if (bytes > most_ - held_) return std::nullopt;
  held_ += bytes;
  return std::optional<Hold>(std::in_place, *this, bytes);
}

std::optional<ByteLedger::Hold> ByteLedger::wait(int64_t bytes, const std::function<bool()>& gone) {
  CHECK_LE(bytes, most_);
  constexpr std::chrono::milliseconds kPause(20);  // between looks at `gone`
  std::unique_lock lock(mutex_);
  while (bytes > most_ - held_) {
    if (gone && gone()) return std::nullopt;
    freed_.wait_for(lock, kPause);
  }
  held_ += bytes;
  return std::optional<Hold>(std::in_place, *this, bytes);
}

int64_t ByteLedger::held() const {
  const std::lock_guard lock(mutex_);
  return held_;
}

}  // namespace calandra::apps

// How many bytes a kind of work holds, against how many it may.
#pragma once

#include <condition_variable>
#include <cstdint>
#include <functional>
#include <memory>
#include <mutex>
#include <optional>
#include <utility>

namespace calandra::apps {

class ByteLedger {
 public:
  explicit ByteLedger(int64_t most) : most_(most) {}

  // Bytes that are given back when it goes. The ledger must outlive it.
  class Hold {
   public:
    Hold(ByteLedger& ledger, int64_t bytes) : ledger_(&ledger), bytes_(bytes) {}
    Hold(Hold&& other) noexcept : ledger_(std::exchange(other.ledger_, nullptr)), bytes_(other.bytes_) {}
    Hold& operator=(Hold&&) = delete;
    ~Hold();
    int64_t bytes() const { return bytes_; }

   private:
    ByteLedger* ledger_;
    int64_t bytes_;
  };

  // Nothing when they are not free.
  std::optional<Hold> take(int64_t bytes);
  // Waits until they are free; nothing when `gone` says that nobody needs them any more. Whoever waits must hold
  // nothing of the same ledger. Needs bytes <= most().
  std::optional<Hold> wait(int64_t bytes, const std::function<bool()>& gone);

  int64_t most() const { return most_; }
  int64_t held() const;

 private:
  const int64_t most_;
  mutable std::mutex mutex_;
  std::condition_variable freed_;
  int64_t held_ = 0;
};

}  // namespace calandra::apps

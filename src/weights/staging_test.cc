#include "weights/staging.h"

#include <gtest/gtest.h>

#include <atomic>
#include <thread>
#include <vector>

namespace calandra {
namespace {

TEST(StagingBudget, BoundsWhatIsLentAtOnce) {
  constexpr size_t kPage = 4096, kBudget = 10 * kPage, kLarge = 25 * kPage;
  StagingBudget budget(kBudget, Buffer::host);
  std::atomic<size_t> lent{0}, most{0};
  std::vector<std::jthread> team;
  for (int t = 0; t < 8; ++t) {
    team.emplace_back([&, t] {
      for (int i = 0; i < 200; ++i) {
        const size_t bytes = (t + i) % 16 == 0 ? kLarge : kPage * (1 + (t * 7 + i) % 10);
        const StagingBudget::Loan loan = budget.borrow(bytes);
        const size_t now = lent += bytes;
        for (size_t seen = most; seen < now && !most.compare_exchange_weak(seen, now);) {
        }
        loan.data()[bytes - 1] = std::byte{1};
        std::this_thread::yield();
        lent -= bytes;
      }
    });
  }
  team.clear();
  EXPECT_LE(most, kBudget + kLarge);
  EXPECT_GE(most, kLarge);
  EXPECT_EQ(lent, 0u);
}

TEST(StagingBudget, ReturnedMemoryIsLentAgain) {
  StagingBudget budget(100'000, Buffer::host);
  const std::byte* first = budget.borrow(60'000).data();
  EXPECT_EQ(budget.borrow(50'000).data(), first);
  budget.borrow(90'000).data()[89'999] = std::byte{1};  // the spare makes room
  EXPECT_EQ(budget.borrow(0).data() == nullptr, false);
}

}  // namespace
}  // namespace calandra

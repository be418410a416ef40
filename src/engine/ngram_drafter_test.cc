#include "engine/ngram_drafter.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <random>

namespace calandra {
namespace {

using Tokens = std::vector<int32_t>;

// The definition, by trying everything.
Tokens naive(const Tokens& history, int least, int most, int k) {
  const auto size = static_cast<int64_t>(history.size());
  for (int n = most; n >= least; --n)
    for (int64_t end = size - 1; end >= n; --end) {
      if (n > size || !std::equal(history.end() - n, history.end(), history.begin() + (end - n))) continue;
      Tokens text = history;
      for (int i = 0; i < k; ++i) text.push_back(text[end + i]);
      return Tokens(text.begin() + size, text.end());
    }
  return {};
}

Tokens propose(const Tokens& history, int least, int most, int k) {
  NgramDrafter drafter(least, most);
  drafter.append(history);
  Tokens drafts = {99};
  drafter.propose(k, drafts);
  return drafts;
}

TEST(NgramDrafter, ByHand) {
  EXPECT_EQ(propose({1, 2, 3, 4, 2, 3}, 2, 3, 4), (Tokens{4, 2, 3, 4}));  // the copy goes on beyond the end
  EXPECT_EQ(propose({1, 2, 3, 4, 2, 3}, 2, 3, 2), (Tokens{4, 2}));
  EXPECT_EQ(propose({1, 2, 3, 4, 2, 3}, 2, 3, 0), Tokens{});
  EXPECT_EQ(propose({1, 2, 3, 4, 2, 3}, 3, 5, 4), Tokens{});           // too short a match
  EXPECT_EQ(propose({5, 1, 7, 5, 1, 8, 5, 1}, 2, 2, 1), (Tokens{8}));  // the most recent of two
  EXPECT_EQ(propose({5, 1, 7, 9, 1, 8, 5, 1}, 1, 2, 1), (Tokens{7}));  // the longer one, though older
  EXPECT_EQ(propose({6, 6, 6}, 2, 2, 3), (Tokens{6, 6, 6}));           // overlapping the end
  EXPECT_EQ(propose({}, 1, 3, 2), Tokens{});
  EXPECT_EQ(propose({4}, 1, 3, 2), Tokens{});
  EXPECT_EQ(propose({-1, 0, -1}, 1, 1, 1), (Tokens{0}));
}

TEST(NgramDrafter, EqualsTheDefinitionAfterEveryToken) {
  std::mt19937 random(11);
  for (int round = 0; round < 60; ++round) {
    const int least = 1 + static_cast<int>(random() % 4), most = least + static_cast<int>(random() % 5);
    const uint32_t alphabet = 1 + random() % 6;
    NgramDrafter drafter(least, most, random());
    if (round % 2) drafter.reserve(150);
    Tokens history, drafts;
    for (int i = 0; i < 150; ++i) {
      // Half of the tokens repeat what was some tokens ago, so that long matches occur.
      const bool copies = i > 20 && (i / 15) % 2;
      history.push_back(copies ? history[history.size() - 17] : static_cast<int32_t>(random() % alphabet));
      drafter.append(history.back());
      drafter.propose(5, drafts);
      ASSERT_EQ(drafts, naive(history, least, most, 5)) << "round " << round << " token " << i;
    }
  }
}

TEST(NgramDrafter, MemoryIsBoundedAndFixedAfterReserve) {
  constexpr int64_t kTokens = 20000;
  NgramDrafter reserved(2, 4), grown(2, 4);
  reserved.reserve(kTokens);
  const int64_t before = reserved.memory_bytes();
  std::mt19937 random(12);
  for (int64_t i = 0; i < kTokens; ++i) {
    const auto token = static_cast<int32_t>(random() % 150000);
    reserved.append(token);
    grown.append(token);
  }
  EXPECT_EQ(reserved.memory_bytes(), before);
  EXPECT_LE(before, kTokens * (4 + 3 * 16));
  EXPECT_LE(grown.memory_bytes(), kTokens * (8 + 3 * 16));
}

}  // namespace
}  // namespace calandra

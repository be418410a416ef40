#include <gtest/gtest.h>

#include <cstring>
#include <random>
#include <set>

#include "cache/page_pool.h"
#include "cache/slot_pool.h"

namespace calandra {
namespace {

std::vector<CacheSpec> two_layers() {
  CacheSpec attention;
  attention.paged = {{DType::kBF16, 2, 8}, {DType::kBF16, 2, 8}};
  CacheSpec recurrent;
  recurrent.slotted = {{"recurrent", DType::kF32, {4, 8, 8}, false}, {"pending", DType::kF32, {2, 8}, true}};
  return {recurrent, attention};
}

TEST(PagePool, SizesAndViews) {
  PagePool pool(two_layers(), 3, 16, Buffer::host);
  EXPECT_EQ(pool.bytes_per_page(), 2 * 2 * 8 * 2 * 16);
  EXPECT_TRUE(pool.layer(0).empty());
  EXPECT_EQ(pool.layer(1)[1].shape(), (Shape{3, 2, 16, 8}));
}

// Every page is free or owned, whatever the order of takes, shares and releases.
TEST(PagePool, EachPageIsFreeOrOwned) {
  for (const int64_t page_tokens : {1, 16}) {
    PagePool pool(two_layers(), 7, page_tokens, Buffer::host);
    std::mt19937 random(5);
    std::multiset<int32_t> held;
    for (int step = 0; step < 5000; ++step) {
      const int what = static_cast<int>(random() % 3);
      if (what == 0) {
        if (const auto page = pool.take()) {
          EXPECT_EQ(held.count(*page), 0u);
          held.insert(*page);
        } else {
          EXPECT_EQ(pool.free_pages(), 0);
        }
      } else if (!held.empty()) {
        const auto it = std::next(held.begin(), random() % held.size());
        if (what == 1) {
          pool.add_reference(*it);
          held.insert(*it);
        } else {
          pool.release(*it);
          held.erase(it);
        }
      }
      EXPECT_EQ(pool.free_pages() + static_cast<int64_t>(std::set<int32_t>(held.begin(), held.end()).size()), 7);
    }
  }
}

TEST(PagePool, CopyOnWriteTakesTheEntriesBelow) {
  PagePool pool(two_layers(), 2, 16, Buffer::host);
  const int32_t from = *pool.take(), to = *pool.take();
  uint16_t* k = reinterpret_cast<uint16_t*>(pool.layer(1)[0].data());
  for (int i = 0; i < 2 * 2 * 16 * 8; ++i) k[i] = static_cast<uint16_t>(i + 1);
  const std::vector<uint16_t> before(k, k + 2 * 2 * 16 * 8);
  pool.copy(from, to, 5, [](void* a, const void* b, size_t n) { std::memcpy(a, b, n); });
  for (int head = 0; head < 2; ++head) {
    for (int token = 0; token < 16; ++token) {
      for (int d = 0; d < 8; ++d) {
        const int at = ((to * 2 + head) * 16 + token) * 8 + d;
        const int source = ((from * 2 + head) * 16 + token) * 8 + d;
        EXPECT_EQ(k[at], token < 5 ? before[source] : before[at]);
        EXPECT_EQ(k[source], before[source]);
      }
    }
  }
}

// The pool tells what only checkpoints hold, whoever lets go last.
TEST(PagePool, CountsPagesThatOnlyCheckpointsHold) {
  PagePool pool(two_layers(), 3, 16, Buffer::host);
  const int32_t page = *pool.take();
  pool.add_reference(page);
  pool.mark_cached(page);
  EXPECT_EQ(pool.cached_only_pages(), 0);
  pool.release(page);  // the sequence's
  EXPECT_EQ(pool.cached_only_pages(), 1);
  pool.add_reference(page);
  EXPECT_EQ(pool.cached_only_pages(), 0);
  pool.mark_cached(page);  // a second checkpoint
  EXPECT_EQ(pool.cached_only_pages(), 1);
  EXPECT_EQ(pool.cached_references(page), 2);
  for (int i = 0; i < 2; ++i) {
    pool.unmark_cached(page);
    EXPECT_EQ(pool.cached_only_pages(), 0);
    pool.release(page);
  }
  EXPECT_EQ(pool.cached_only_pages(), 0);
  EXPECT_EQ(pool.free_pages(), 3);
}

TEST(PagePool, ContentInAndOut) {
  const auto copy = [](void* a, const void* b, size_t n) { std::memcpy(a, b, n); };
  PagePool pool(two_layers(), 3, 4, Buffer::host);
  const int32_t from = *pool.take(), to = *pool.take();
  for (int tensor = 0; tensor < 2; ++tensor)
    for (int i = 0; i < 3 * 2 * 4 * 8; ++i)
      reinterpret_cast<uint16_t*>(pool.layer(1)[tensor].data())[i] = static_cast<uint16_t>(1000 * tensor + i);
  for (const int64_t tokens : {0, 1, 3, 4}) {
    EXPECT_EQ(pool.content_bytes(tokens), 2 * 2 * tokens * 8 * 2);
    std::vector<std::byte> content(static_cast<size_t>(pool.content_bytes(tokens)));
    pool.copy_out(from, tokens, content.data(), copy);
    const auto* values = reinterpret_cast<const uint16_t*>(content.data());
    for (int tensor = 0; tensor < 2; ++tensor)
      for (int64_t head = 0; head < 2; ++head)
        for (int64_t i = 0; i < tokens * 8; ++i)
          EXPECT_EQ(*values++, reinterpret_cast<uint16_t*>(pool.layer(1)[tensor][from][head].data())[i]);
    const auto* k = reinterpret_cast<const uint16_t*>(pool.layer(1)[0][to][1].data());
    const uint16_t above = tokens < 4 ? k[tokens * 8] : 0;
    pool.copy_in(to, tokens, content.data(), copy);
    EXPECT_EQ(tokens < 4 ? k[tokens * 8] : 0, above);
    std::vector<std::byte> again(content.size());
    pool.copy_out(to, tokens, again.data(), copy);
    EXPECT_TRUE(again == content);
  }
}

TEST(SlotPool, ContentInAndOut) {
  const auto copy = [](void* a, const void* b, size_t n) { std::memcpy(a, b, n); };
  SlotPool pool(two_layers(), 10, DType::kF32, 3, 2, Buffer::host);
  const int32_t from = *pool.take(), to = *pool.take();
  pool.layer(0)[0][from].as<float>()[5] = 1.5f;
  pool.layer(0)[1][from].as<float>()[31] = 2.5f;  // the last pending input
  pool.N().as<int32_t>()[from] = 7;
  pool.accepted().as<int32_t>()[from] = 2;
  pool.hidden()[from].as<float>()[29] = 3.5f;
  std::vector<std::byte> content(static_cast<size_t>(pool.bytes_per_slot()));
  pool.copy_out(from, content.data(), copy);
  pool.copy_in(to, content.data(), copy);
  EXPECT_EQ(pool.layer(0)[0][to].as<float>()[5], 1.5f);
  EXPECT_EQ(pool.layer(0)[1][to].as<float>()[31], 2.5f);
  EXPECT_EQ(pool.N().as<int32_t>()[to], 7);
  EXPECT_EQ(pool.accepted().as<int32_t>()[to], 2);
  EXPECT_EQ(pool.hidden()[to].as<float>()[29], 3.5f);
  EXPECT_EQ(pool.N().as<int32_t>()[2], 0);
}

TEST(SlotPool, SizesTakeAndRelease) {
  SlotPool pool(two_layers(), 10, DType::kF32, 3, 2, Buffer::host);
  EXPECT_EQ(pool.bytes_per_slot(), 8 + 3 * 10 * 4 + 4 * 8 * 8 * 4 + 2 * 2 * 8 * 4);
  EXPECT_EQ(pool.layer(0)[0].shape(), (Shape{3, 4, 8, 8}));
  EXPECT_EQ(pool.layer(0)[1].shape(), (Shape{3, 2, 2, 8}));
  EXPECT_EQ(pool.hidden().shape(), (Shape{3, 3, 10}));
  std::set<int32_t> slots;
  for (int i = 0; i < 3; ++i) slots.insert(*pool.take());
  EXPECT_EQ(slots.size(), 3u);
  EXPECT_FALSE(pool.take());
  pool.release(1);
  EXPECT_EQ(*pool.take(), 1);
}

TEST(PoolsDeathTest, DoubleReleaseAborts) {
  SlotPool slots(two_layers(), 10, DType::kF32, 2, 0, Buffer::host);
  const int32_t slot = *slots.take();
  slots.release(slot);
  EXPECT_DEATH(slots.release(slot), "free already");
  PagePool pages(two_layers(), 2, 1, Buffer::host);
  const int32_t page = *pages.take();
  pages.release(page);
  EXPECT_DEATH(pages.release(page), "0");
  EXPECT_DEATH(pages.add_reference(page), "0");
  const int32_t kept = *pages.take();
  pages.mark_cached(kept);
  EXPECT_DEATH(pages.release(kept), "1 against 1");  // a checkpoint's reference is not the sequence's to give
}

}  // namespace
}  // namespace calandra

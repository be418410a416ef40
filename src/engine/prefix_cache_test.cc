#include "engine/prefix_cache.h"

#include "engine/prefix_cache_for_test.h"

namespace calandra {
namespace {

constexpr CheckpointIdentity kIdentity = {{11, 12, 13, 14}, 0, 1};
constexpr int64_t kMuch = 1 << 20;
const std::string kSpace = prefix_space("", "");

PrefixCacheOptions options(int64_t device, int64_t host = 0) { return {device, host, &World::backend(), kIdentity}; }

// Pages of 4 tokens, 144 bytes; slots of 120 bytes.
class PrefixCacheTest : public testing::Test {
 protected:
  World world{60, 16, 4};
  const int64_t kPage = world.pages.bytes_per_page(), kSlot = world.slots.bytes_per_slot();

  CheckpointId add(PrefixCache& cache, const std::string& tokens, int64_t mtp_begin = 0,
                   const std::string& space = kSpace) {
    const auto id = cache.insert(space, text(tokens), world.from_nothing(text(tokens), mtp_begin));
    EXPECT_TRUE(id);
    EXPECT_EQ(cache.check_invariants(), "");
    return id.value_or(-1);
  }
  PrefixMatch find(const PrefixCache& cache, const std::string& tokens, const std::string& space = kSpace) {
    return cache.find(space, text(tokens), std::ssize(tokens) - 1);
  }
};

TEST(PrefixKeys, TextAndPictures) {
  const std::vector<int32_t> tokens = {5, 7, 7, 7, 7, 6};
  EXPECT_EQ(prefix_keys(tokens, {}), (Keys{5, 7, 7, 7, 7, 6}));
  const PictureKey wide{1, 4, {1, 2, 3, 4}, {1, 2, 8}};
  PictureKey tall = wide;
  tall.grid = {1, 8, 2};
  PictureKey other = wide;
  other.content_hash[3] = 5;
  const Keys a = prefix_keys(tokens, std::vector{wide}), b = prefix_keys(tokens, std::vector{tall});
  const Keys c = prefix_keys(tokens, std::vector{other});
  EXPECT_EQ(a[0], 5u);
  EXPECT_EQ(a[5], 6u);
  for (int i = 1; i <= 4; ++i) {
    EXPECT_GT(a[i], uint64_t{1} << 62);  // no text token has such a key
    EXPECT_NE(a[i], b[i]);               // equal pixels under another grid
    EXPECT_NE(a[i], c[i]);
    EXPECT_NE(a[i], a[i % 4 + 1]);
  }
  EXPECT_EQ(a, prefix_keys(tokens, std::vector{wide}));
  // A video in two runs is one video.
  const std::vector<PictureKey> halves = {{1, 2, {1, 2, 3, 4}, {1, 2, 8}, 0}, {3, 2, {1, 2, 3, 4}, {1, 2, 8}, 2}};
  EXPECT_EQ(prefix_keys(tokens, halves), a);
}

TEST(PrefixKeys, SpacesAreExact) {
  EXPECT_NE(prefix_space("ab", "c"), prefix_space("b", "ca"));
  EXPECT_NE(prefix_space("", "x"), prefix_space("x", ""));
  EXPECT_NE(prefix_space("1:a", ""), prefix_space("", "a"));
}

// Long chains of nodes are taken down without recursion.
TEST(PrefixTree, LongChain) {
  PrefixTree tree;
  const Keys keys(20000, 1);
  for (size_t size = keys.size(); size > 0; --size) tree.make(std::span(keys).first(size));
  EXPECT_EQ(tree.walk(keys).node->parent->depth, 19999);
  EXPECT_EQ(PrefixTree::path(tree.walk(keys).node), keys);
}

TEST_F(PrefixCacheTest, TheDeepestBelowMaxP) {
  PrefixCache cache(world.pages, world.slots, options(kMuch));
  EXPECT_FALSE(find(cache, "abcd").checkpoint);
  const CheckpointId three = add(cache, "abc"), six = add(cache, "abcdef");
  EXPECT_EQ(find(cache, "abcdefg").checkpoint, six);
  EXPECT_EQ(find(cache, "abcdef").checkpoint, three);  // a token must be left to run
  EXPECT_EQ(find(cache, "abcdef").matched, 6);
  EXPECT_EQ(find(cache, "abxdefg").checkpoint, std::nullopt);
  EXPECT_EQ(cache.find(kSpace, text("abcdefg"), 2).checkpoint, std::nullopt);
  EXPECT_EQ(find(cache, "abcdefg", prefix_space("salt", "")).matched, 0);  // another space
  EXPECT_EQ(find(cache, "abcdefg", prefix_space("", "adapter")).matched, 0);
  world.verify(cache.checkpoint(six), text("abcdef"));
}

TEST_F(PrefixCacheTest, PicturesMatchOnlyUnderTheirGrid) {
  PrefixCache cache(world.pages, world.slots, options(kMuch));
  const std::vector<int32_t> tokens = {1, 2, 2, 2, 2, 3, 4};
  const Keys wide = prefix_keys(tokens, std::vector<PictureKey>{{1, 4, {1, 2, 3, 4}, {1, 2, 8}}});
  const Keys tall = prefix_keys(tokens, std::vector<PictureKey>{{1, 4, {1, 2, 3, 4}, {1, 8, 2}}});
  ASSERT_TRUE(cache.insert(kSpace, wide, world.from_nothing({wide.begin(), wide.begin() + 6})));
  EXPECT_TRUE(cache.find(kSpace, wide, 6).checkpoint);
  EXPECT_FALSE(cache.find(kSpace, tall, 6).checkpoint);
  EXPECT_EQ(cache.find(kSpace, tall, 6).matched, 1);
}

TEST_F(PrefixCacheTest, BranchPoints) {
  PrefixCache cache(world.pages, world.slots, options(kMuch));
  EXPECT_EQ(find(cache, "abcdef").branch, 0);  // nothing known
  add(cache, "abcdef");
  EXPECT_EQ(find(cache, "abcx").branch, 3);                  // leaves an edge
  EXPECT_EQ(find(cache, "abc").branch, 0);                   // ends on it: its own end will have a checkpoint
  EXPECT_EQ(find(cache, "abcdefgh").branch, 0);              // goes on where one stands
  EXPECT_EQ(find(cache, "x").branch, 0);                     // nothing in common
  EXPECT_EQ(cache.find(kSpace, text("abcx"), 2).branch, 0);  // beyond max_P
  const CheckpointId other = add(cache, "abcxy");
  EXPECT_EQ(find(cache, "abcz").branch, 3);  // leaves a node without a checkpoint
  EXPECT_EQ(find(cache, "abcxyz").branch, 0);
  const CheckpointId middle = add(cache, "abc");
  EXPECT_EQ(find(cache, "abcz").branch, 0);
  EXPECT_EQ(find(cache, "abcz").checkpoint, middle);
  EXPECT_EQ(find(cache, "abcdz").branch, 4);
  EXPECT_EQ(find(cache, "abcxyz").checkpoint, other);
}

TEST_F(PrefixCacheTest, FullPagesAreSharedAndPartialOnesAreNot) {
  PrefixCache cache(world.pages, world.slots, options(kMuch));
  const CheckpointId ten = add(cache, "abcdefghij");
  EXPECT_EQ(cache.bytes(Tier::kDevice), kSlot + 3 * kPage);
  const CheckpointId side = add(cache, "abcdefgXYZ");      // shares "abcd"
  const CheckpointId short_one = add(cache, "abcdefghi");  // both full pages; its third is its own
  const auto& a = cache.checkpoint(ten).pages;
  const auto& b = cache.checkpoint(side).pages;
  const auto& c = cache.checkpoint(short_one).pages;
  EXPECT_EQ(b[0], a[0]);
  EXPECT_NE(b[1], a[1]);
  EXPECT_EQ(c[1], a[1]);
  EXPECT_NE(c[2], a[2]);
  EXPECT_EQ(cache.stats().duplicate_pages_freed, 3);
  EXPECT_EQ(cache.bytes(Tier::kDevice), 3 * kSlot + (3 + 2 + 1) * kPage);
  EXPECT_EQ(world.pages.free_pages(), world.pages.pages() - 6);
}

TEST_F(PrefixCacheTest, PagesThatLackMtpEntriesReplaceNone) {
  PrefixCache cache(world.pages, world.slots, options(kMuch));
  const CheckpointId lacking = add(cache, "abcdefghij", 6);  // entries from 6 on
  const CheckpointId whole = add(cache, "abcdefghijkl");
  const auto& a = cache.checkpoint(lacking).pages;
  const auto& b = cache.checkpoint(whole).pages;
  EXPECT_NE(b[0], a[0]);  // lacks all
  EXPECT_NE(b[1], a[1]);  // lacks 4 and 5
  EXPECT_EQ(cache.stats().duplicate_pages_freed, 0);
  // Both are there: the more complete one serves, whoever came first.
  const CheckpointId third = add(cache, "abcdefghX", 5);
  EXPECT_EQ(cache.checkpoint(third).pages[0], b[0]);
  EXPECT_EQ(cache.checkpoint(third).pages[1], b[1]);
  world.verify(cache.checkpoint(third), text("abcdefghX"));
  // Index 0 is never read, so entries from 1 on are all of them.
  const CheckpointId from_one = add(cache, "abcdZ", 1);
  EXPECT_EQ(cache.checkpoint(from_one).pages[0], b[0]);
  const CheckpointId beside = add(cache, "0123456", 1);
  EXPECT_EQ(cache.checkpoint(add(cache, "01234567")).pages[0], cache.checkpoint(beside).pages[0]);
}

TEST_F(PrefixCacheTest, TwoOfOnePlace) {
  PrefixCache cache(world.pages, world.slots, options(kMuch, kMuch));
  const CheckpointId id = add(cache, "abcdef", 4);
  const int32_t slot = cache.checkpoint(id).slot;
  EXPECT_EQ(add(cache, "abcdef", 4), id);  // equal: the old one
  EXPECT_EQ(cache.checkpoint(id).slot, slot);
  EXPECT_EQ(add(cache, "abcdef", 6), id);  // less
  EXPECT_EQ(cache.checkpoint(id).mtp_begin, 4);
  cache.pin(id);
  EXPECT_EQ(add(cache, "abcdef", 2), id);  // more, but somebody reads the old one
  EXPECT_EQ(cache.checkpoint(id).slot, slot);
  cache.unpin(id);
  EXPECT_EQ(add(cache, "abcdef", 2), id);  // more
  EXPECT_EQ(cache.checkpoint(id).mtp_begin, 2);
  EXPECT_EQ(cache.stats().duplicates_freed, 4);
  EXPECT_EQ(world.slots.free_slots(), world.slots.slots() - 1);
  // One of the host gives way to an equal one of the device.
  ASSERT_TRUE(cache.reclaim(0, world.slots.slots(), kSpace));
  ASSERT_EQ(cache.checkpoint(id).tier, Tier::kHost);
  EXPECT_EQ(add(cache, "abcdef", 2), id);
  EXPECT_EQ(cache.checkpoint(id).tier, Tier::kDevice);
  EXPECT_EQ(cache.bytes(Tier::kHost), 0);
  world.verify(cache.checkpoint(id), text("abcdef"));
}

TEST_F(PrefixCacheTest, PagesOfRunningSequencesWeighNothing) {
  PrefixCache cache(world.pages, world.slots, options(2 * kSlot + 2 * kPage));
  RunningSequence run{kSpace, {}, {}, 0};
  ASSERT_TRUE(world.extend(run, text("abcdefghijkl")));
  const auto id = cache.insert(kSpace, run.keys, world.checkpoint(run));
  ASSERT_TRUE(id);
  EXPECT_EQ(cache.bytes(Tier::kDevice), kSlot);
  world.release(run);
  EXPECT_EQ(cache.bytes(Tier::kDevice), kSlot + 3 * kPage);  // above the limit, until told
  EXPECT_EQ(cache.check_invariants(), "");
  cache.enforce_limits(kSpace);
  EXPECT_FALSE(cache.contains(*id));
  EXPECT_EQ(cache.bytes(Tier::kDevice), 0);
}

TEST_F(PrefixCacheTest, TiersThatAreOff) {
  {
    PrefixCache cache(world.pages, world.slots, options(0));
    EXPECT_FALSE(cache.insert(kSpace, text("abcdef"), world.from_nothing(text("abcdef"))));
    EXPECT_EQ(cache.spaces(), 0);
  }
  PrefixCache cache(world.pages, world.slots, options(0, kMuch));  // straight to the host
  const CheckpointId id = add(cache, "abcdef");
  EXPECT_EQ(cache.checkpoint(id).tier, Tier::kHost);
  EXPECT_EQ(world.pages.free_pages(), world.pages.pages());
}

// priority = clock + uses * saved / bytes, by hand.
TEST_F(PrefixCacheTest, TheLeastTokensPerByteGoFirst) {
  PrefixCache cache(world.pages, world.slots, options(3 * kSlot + 6 * kPage));
  const CheckpointId shallow = add(cache, "abcdefgh");    // 8 tokens, 1 slot once the next one is there
  const CheckpointId deep = add(cache, "abcdefghi");      // 1 token more for a slot and a page
  const CheckpointId other = add(cache, "ABCDEFGHIJKL");  // 12 tokens for a slot and 3 pages
  EXPECT_EQ(cache.bytes(Tier::kDevice), 3 * kSlot + 6 * kPage);
  add(cache, "0123");
  EXPECT_FALSE(cache.contains(deep));
  EXPECT_TRUE(cache.contains(shallow));
  EXPECT_TRUE(cache.contains(other));
  EXPECT_EQ(cache.stats().evictions, 1);
}

TEST_F(PrefixCacheTest, UseKeepsAndAgeLetsGo) {
  const int64_t one = kSlot + kPage;
  PrefixCache cache(world.pages, world.slots, options(3 * one));
  const CheckpointId a = add(cache, "a___"), b = add(cache, "b___"), c = add(cache, "c___");
  cache.note_use(5, a);
  EXPECT_EQ(cache.stats().hit_tokens, 4);
  const CheckpointId d = add(cache, "d___");  // of equals the oldest goes
  EXPECT_FALSE(cache.contains(b));
  EXPECT_TRUE(cache.contains(a));
  add(cache, "e___");
  EXPECT_FALSE(cache.contains(c));
  // The clock rises by what one use of these is worth with every round of evictions; the used one's turn comes too.
  add(cache, "f___");
  add(cache, "g___");
  EXPECT_FALSE(cache.contains(a));
  EXPECT_FALSE(cache.contains(d));
}

TEST_F(PrefixCacheTest, PinnedOnesStay) {
  const int64_t one = kSlot + kPage;
  PrefixCache cache(world.pages, world.slots, options(2 * one));
  const CheckpointId a = add(cache, "a___");
  cache.pin(a);
  cache.pin(a);
  cache.unpin(a);
  for (const char* tokens : {"b___", "c___", "d___"}) add(cache, tokens);
  EXPECT_TRUE(cache.contains(a));
  EXPECT_FALSE(cache.reclaim(world.pages.pages(), 0, kSpace));
  EXPECT_EQ(cache.size(), 2);  // what cannot be had costs nobody
  EXPECT_TRUE(cache.reclaim(world.pages.pages() - 1, 0, kSpace));
  EXPECT_EQ(cache.size(), 1);
  cache.clear();
  EXPECT_TRUE(cache.contains(a));
  cache.unpin(a);
  cache.clear();
  EXPECT_EQ(cache.size(), 0);
}

TEST_F(PrefixCacheTest, ReclaimPagesThatSeveralShare) {
  PrefixCache cache(world.pages, world.slots, options(kMuch));
  RunningSequence run{kSpace, {}, {}, 0};
  ASSERT_TRUE(world.extend(run, text("abcdefg")));
  ASSERT_TRUE(cache.insert(kSpace, run.keys, world.checkpoint(run)));
  ASSERT_TRUE(world.extend(run, text("h")));
  ASSERT_TRUE(cache.insert(kSpace, text("abcdefgh"), world.finish(run)));
  const CheckpointId bystander = add(cache, "zzzz");
  cache.pin(bystander);
  EXPECT_TRUE(cache.reclaim(world.pages.pages() - 1, 0, kSpace));  // neither alone would free a page
  EXPECT_EQ(cache.size(), 1);
  EXPECT_EQ(cache.check_invariants(), "");
}

TEST_F(PrefixCacheTest, AFloodEvictsItself) {
  const int64_t one = kSlot + kPage;
  PrefixCache cache(world.pages, world.slots, options(6 * one));
  const std::string honest = prefix_space("honest", ""), flood = prefix_space("flood", "");
  const CheckpointId mine = add(cache, "a___", 0, honest), also = add(cache, "b___", 0, honest);
  for (int i = 0; i < 12; ++i) {
    const Keys keys = text(std::string(1, static_cast<char>('a' + i)) + "___");
    const auto id = cache.insert(flood, keys, world.from_nothing(keys));
    for (int use = 0; id && use < 3; ++use) cache.note_use(5, id);
  }
  EXPECT_TRUE(cache.contains(mine));
  EXPECT_TRUE(cache.contains(also));
  EXPECT_GE(cache.size(), 5);  // and it may use what nobody else does
  EXPECT_TRUE(cache.reclaim(world.pages.pages() - 4, 0, flood));
  EXPECT_TRUE(cache.contains(mine));
  EXPECT_TRUE(cache.contains(also));
}

TEST_F(PrefixCacheTest, HostTierSharesPagesAndComesBack) {
  PrefixCache cache(world.pages, world.slots, options(kMuch, kMuch));
  const CheckpointId a = add(cache, "abcdefghij"), b = add(cache, "abcdefghXY"), c = add(cache, "abcd");
  ASSERT_TRUE(cache.reclaim(world.pages.pages(), world.slots.slots(), kSpace));
  EXPECT_EQ(cache.check_invariants(), "");
  EXPECT_EQ(cache.bytes(Tier::kDevice), 0);
  EXPECT_EQ(cache.bytes(Tier::kHost), 3 * kSlot + (2 * kPage + kPage / 2 + kPage / 2));  // partial pages up to P
  EXPECT_EQ(cache.stats().demotions, 3);
  const PrefixMatch match = find(cache, "abcdefghijk");
  EXPECT_EQ(match.checkpoint, a);
  EXPECT_FALSE(match.on_device);
  cache.pin(a);
  EXPECT_EQ(cache.pages_to_restore(a), 3);
  ASSERT_TRUE(cache.restore(a));
  cache.note_use(11, a, true);
  EXPECT_EQ(cache.stats().host_hit_tokens, 10);
  world.verify(cache.checkpoint(a), text("abcdefghij"));
  EXPECT_EQ(cache.pages_to_restore(b), 1);  // the two full pages are there again
  cache.pin(b);
  ASSERT_TRUE(cache.restore(b));
  EXPECT_EQ(cache.checkpoint(b).pages[1], cache.checkpoint(a).pages[1]);
  world.verify(cache.checkpoint(b), text("abcdefghXY"));
  EXPECT_EQ(cache.check_invariants(), "");
  EXPECT_EQ(cache.checkpoint(c).tier, Tier::kHost);
}

TEST_F(PrefixCacheTest, RestoreFailsCleanly) {
  PrefixCache cache(world.pages, world.slots, options(kMuch, kMuch));
  const CheckpointId a = add(cache, "abcdefghij");
  ASSERT_TRUE(cache.reclaim(world.pages.pages(), 0, kSpace));
  std::vector<int32_t> taken;
  while (world.pages.free_pages() > 2) taken.push_back(*world.pages.take());
  EXPECT_FALSE(cache.restore(a));
  EXPECT_EQ(world.pages.free_pages(), 2);
  EXPECT_EQ(world.slots.free_slots(), world.slots.slots());
  EXPECT_EQ(cache.checkpoint(a).tier, Tier::kHost);
  EXPECT_EQ(cache.check_invariants(), "");
  world.pages.release(taken.back());
  EXPECT_TRUE(cache.restore(a));
}

TEST_F(PrefixCacheTest, TheHostKeepsWhatIsWorthMore) {
  PrefixCache cache(world.pages, world.slots, options(0, kSlot + 3 * kPage));
  const CheckpointId rich = add(cache, "rrrrrrrr");  // 8 tokens for a slot and 2 pages
  const auto insert = [&](const std::string& tokens) {
    return cache.insert(kSpace, text(tokens), world.from_nothing(text(tokens)));
  };
  EXPECT_FALSE(insert("qqqqq"));  // 5 tokens for a slot and 1 page and a quarter
  EXPECT_TRUE(cache.contains(rich));
  EXPECT_TRUE(insert("ssssssssssss"));  // 12 for a slot and 3 pages
  EXPECT_FALSE(cache.contains(rich));
  EXPECT_FALSE(insert("sssssssssssstttt"));  // larger than the tier
  EXPECT_EQ(cache.size(), 1);
  EXPECT_EQ(cache.check_invariants(), "");
}

TEST(PrefixCacheDeathTest, MisuseAborts) {
  World world(10, 4, 4);
  PrefixCache cache(world.pages, world.slots, options(kMuch));
  const auto id = cache.insert(kSpace, text("abc"), world.from_nothing(text("abc")));
  EXPECT_DEATH(cache.unpin(*id), "pins");
  EXPECT_DEATH(cache.pin(*id + 1), "no checkpoint");
  EXPECT_DEATH(world.pages.release(cache.checkpoint(*id).pages[0]), "cached_");  // not the caller's any more
  Checkpoint short_of_pages = world.from_nothing(text("abcdefgh"));
  short_of_pages.pages.pop_back();
  EXPECT_DEATH(cache.insert(kSpace, text("abcdefgh"), short_of_pages), "pages");
}

}  // namespace
}  // namespace calandra

#include "engine/checkpoint_bytes.h"

#include <random>

#include "base/error.h"
#include "engine/prefix_cache_for_test.h"

namespace calandra {
namespace {

constexpr CheckpointIdentity kIdentity = {{11, 12, 13, 14}, 0, 1};
constexpr int64_t kMuch = 1 << 20;
const std::string kSpace = prefix_space("", "");

class CheckpointBytesTest : public testing::Test {
 protected:
  World world{60, 16, 4};
  PrefixCache cache{world.pages, world.slots, {kMuch, kMuch, &World::backend(), kIdentity}};

  CheckpointId add(const std::string& tokens, int64_t mtp_begin) {
    return *cache.insert(kSpace, text(tokens), world.from_nothing(text(tokens), mtp_begin));
  }
};

TEST_F(CheckpointBytesTest, ByteFormFromBothTiers) {
  const CheckpointId id = add("abcdefghij", 3);
  const auto bytes = cache.save(id);
  ASSERT_TRUE(cache.reclaim(world.pages.pages(), 0, kSpace));
  ASSERT_EQ(cache.checkpoint(id).tier, Tier::kHost);
  EXPECT_TRUE(cache.save(id) == bytes);
  const std::string other = prefix_space("other", "");
  const auto loaded = cache.load(other, bytes, "here");
  ASSERT_TRUE(loaded);
  EXPECT_EQ(cache.checkpoint(*loaded).mtp_begin, 3);
  EXPECT_EQ(cache.find(other, text("abcdefghijk"), 10).checkpoint, loaded);
  world.verify(cache.checkpoint(*loaded), text("abcdefghij"));
  EXPECT_EQ(cache.load(other, bytes, "here"), loaded);  // it is there already
  EXPECT_EQ(cache.check_invariants(), "");
}

std::string error_of(const World& world, const CheckpointIdentity& identity, std::span<const std::byte> bytes) {
  try {
    read_checkpoint(world.reading, identity, bytes, "file.ckpt");
  } catch (const LoadError& error) {
    return error.what();
  }
  return "";
}

TEST_F(CheckpointBytesTest, BadBytesAreRefused) {
  const auto good = cache.save(add("abcdefghij", 3));
  EXPECT_EQ(error_of(world, kIdentity, good), "");
  for (size_t size = 0; size < good.size(); ++size) {
    const std::vector<std::byte> cut(good.begin(), good.begin() + size);  // its own memory: sanitizers see overreads
    EXPECT_NE(error_of(world, kIdentity, cut), "") << size;
  }
  for (size_t at = 0; at < good.size(); ++at) {
    for (const int bit : {0, 7}) {
      auto bad = good;
      bad[at] ^= std::byte(1 << bit);
      EXPECT_NE(error_of(world, kIdentity, bad), "") << at;
    }
  }
  std::mt19937_64 random(3);
  for (int round = 0; round < 2000; ++round) {  // header fields of any size, at any place
    auto bad = good;
    const uint64_t word = round % 2 ? random() : ~uint64_t{0} >> (random() % 64);
    std::memcpy(bad.data() + random() % 200, &word, 8);
    EXPECT_EQ(error_of(world, kIdentity, bad).empty(), bad == good);
  }
  auto longer = good;
  longer.push_back(std::byte{0});
  const auto says = [](const std::string& error, const char* what) { return error.find(what) != std::string::npos; };
  EXPECT_TRUE(says(error_of(world, kIdentity, longer), "file.ckpt: 1 bytes follow"));
  auto version = good;
  version[8] = std::byte{2};
  EXPECT_TRUE(says(error_of(world, kIdentity, version), "version 2, this program reads version 1"));
  EXPECT_TRUE(says(error_of(world, {{11, 12, 13, 15}, 0, 1}, good), "another model"));
  EXPECT_TRUE(says(error_of(world, {{11, 12, 13, 14}, 1, 2}, good), "rank 0 of 1, expected rank 1 of 2"));
  EXPECT_TRUE(says(error_of(World(10, 2, 8), kIdentity, good), "expected \"page of 8 tokens\", found \"page of 4 "));
  EXPECT_TRUE(says(error_of(world, kIdentity, std::span(good).first(good.size() - 9)), "truncated"));
  EXPECT_THROW(cache.load(kSpace, std::span(good).first(40), "x"), LoadError);
  EXPECT_EQ(cache.check_invariants(), "");
}

// Counts that the device would follow out of its memory, under a right checksum.
TEST_F(CheckpointBytesTest, SlotCountsAreChecked) {
  Checkpoint wrong = world.from_nothing(text("abcd"));
  world.slots.accepted().as<int32_t>()[wrong.slot] = 3;  // of at most 2
  world.slots.N().as<int32_t>()[wrong.slot] = 1;
  const auto bytes = cache.save(*cache.insert(kSpace, text("abcd"), wrong));
  EXPECT_NE(error_of(world, kIdentity, bytes).find("accepted 3"), std::string::npos);
}

}  // namespace
}  // namespace calandra

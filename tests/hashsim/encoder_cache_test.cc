// The vision tower's results within their bytes: the least recently used one goes first, and none that somebody holds.
#include "engine/encoder_cache.h"

#include <algorithm>
#include <list>

#include "tests/hashsim/engine_core_fixture.h"

namespace calandra::hashsim {
namespace {

constexpr int64_t kRowBytes = kHiddenSize * static_cast<int64_t>(sizeof(float));

class EncoderBytes : public EngineCoreTest {
 protected:
  EncoderCache cache_of(int64_t rows) { return {*model_.vision(), backend_, rows * kRowBytes}; }
  // One picture within a prompt that begins like no other.
  RequestId ask(int32_t which) {
    Request r = request(tokens(20, which), 2);
    r.pictures.push_back({5, 6, picture(static_cast<float>(which), 6), 0});
    const RequestId id = add(std::move(r));
    run();
    return id;
  }
};

TEST_F(EncoderBytes, TheLeastRecentlyUsedGoesFirst) {
  EncoderCache cache = cache_of(12);
  const auto small = picture(1, 2), middle = picture(2, 4), large = picture(3, 6), other = picture(4, 5);
  for (const auto& input : {small, middle, large}) cache.encode(*input);
  EXPECT_EQ(cache.bytes(), 12 * kRowBytes);
  cache.encode(*small);
  EXPECT_EQ(cache.hits(), 1);
  cache.encode(*other);  // the middle one alone would not be room enough
  EXPECT_TRUE(cache.contains(*small) && cache.contains(*other));
  EXPECT_FALSE(cache.contains(*middle) || cache.contains(*large));
  EXPECT_EQ(cache.bytes(), 7 * kRowBytes);
  cache.encode(*middle);
  EXPECT_TRUE(cache.contains(*small) && cache.contains(*other));
  EXPECT_EQ(cache.bytes(), 11 * kRowBytes);
  EXPECT_EQ(cache.queries(), 6);
}

// Against a list in order of use.
TEST_F(EncoderBytes, BytesStayWithinTheLimit) {
  constexpr int64_t kMost = 20;
  EncoderCache cache = cache_of(kMost);
  std::list<int64_t> used;  // pictures by their rows, 1 to 9
  int64_t rows = 0;
  for (uint64_t draw = 0; draw < 500; ++draw) {
    const auto size = 1 + static_cast<int64_t>(mix(5, draw) % 9);
    const auto found = std::find(used.begin(), used.end(), size);
    EXPECT_EQ(cache.contains(*picture(1, size)), found != used.end());
    cache.encode(*picture(1, size));
    rows += found == used.end() ? size : 0;
    if (found != used.end()) used.erase(found);
    for (used.push_back(size); rows > kMost; used.pop_front()) rows -= used.front();
    ASSERT_EQ(cache.bytes(), rows * kRowBytes) << "draw " << draw;
  }
}

TEST_F(EncoderBytes, WhatSomebodyHoldsGoesWhenItIsGivenBack) {
  EncoderCache cache = cache_of(6);
  const auto first = picture(1, 4), second = picture(2, 4), third = picture(3, 4);
  auto held = cache.encode(*first);
  auto too = cache.encode(*second);
  EXPECT_EQ(cache.bytes(), 8 * kRowBytes);
  cache.encode(*third);
  cache.enforce_limit();
  EXPECT_EQ(cache.bytes(), 8 * kRowBytes);
  EXPECT_FALSE(cache.contains(*third));
  held.reset();
  cache.enforce_limit();
  EXPECT_FALSE(cache.contains(*first));
  EXPECT_EQ(cache.bytes(), 4 * kRowBytes);
  cache.clear();
  EXPECT_EQ(cache.bytes(), 4 * kRowBytes);
  too.reset();
  cache.clear();
  EXPECT_EQ(cache.bytes(), 0);
}

TEST_F(EncoderBytes, OfAnEngineAreWithinItsOption) {
  EngineOptions options;
  options.encoder_cache_bytes = 13 * kRowBytes;  // two pictures of six rows
  start(limits(), options);
  const auto expect = [&](int32_t which, int64_t hits, int64_t rows) {
    ask(which);
    EXPECT_EQ(core_->stats().encoder_hits, hits) << which;
    EXPECT_EQ(core_->stats().encoder_bytes, rows * kRowBytes) << which;
  };
  expect(1, 0, 6);
  expect(2, 0, 12);
  expect(1, 1, 12);
  expect(3, 1, 12);
  expect(1, 2, 12);
  expect(2, 2, 12);  // it had to go for the third
  EXPECT_EQ(core_->stats().encoder_queries, 6);
}

// A cache of no bytes keeps nothing that no request needs any more: one that ended, or was cancelled.
TEST_F(EncoderBytes, OfAnEngineWithoutThemAreGivenBackAtOnce) {
  EngineOptions options;
  options.encoder_cache_bytes = 0;
  start(limits(), options);
  ask(1);
  EXPECT_EQ(core_->stats().encoder_bytes, 0);
  Request r = request(tokens(100, 2), 2);  // its prompt takes two steps
  r.pictures.push_back({5, 6, picture(2, 6), 0});
  const RequestId id = add(std::move(r));
  core_->step();
  EXPECT_EQ(core_->stats().encoder_bytes, 6 * kRowBytes);
  core_->cancel(id);
  run();
  core_->step();
  EXPECT_EQ(core_->stats().encoder_bytes, 0);
}

}  // namespace
}  // namespace calandra::hashsim

// Work of requests on threads of its own, and the replies that become its.
#include "apps/api/handler_pool.h"

#include <gtest/gtest.h>

#include <future>
#include <thread>

namespace calandra::apps {
namespace {

struct Woken {
  std::promise<void> promise;
  server::Wake wake() {
    return [this] { promise.set_value(); };
  }
};

TEST(HandlerPool, AReplyBecomesThatOfTheWork) {
  HandlerPool pool(2);
  Woken woken;
  auto result =
      pool.defer([](const auto&) -> HandlerPool::Result { return server::HttpReply{.status = 418}; }, woken.wake());
  auto& pending = std::get<std::unique_ptr<server::PendingReply>>(result);
  woken.promise.get_future().wait();
  ASSERT_TRUE(pending->is_ready());
  EXPECT_FALSE(pending->is_stream());
  server::HttpReply reply;
  EXPECT_TRUE(pending->advance(reply));
  EXPECT_EQ(reply.status, 418);
}

TEST(HandlerPool, WorkEndsWhenItsClientHasLeft) {
  HandlerPool pool(1);
  Woken woken;
  std::promise<void> begun;
  auto result = pool.defer(
      [&](const auto& gone) -> HandlerPool::Result {
        begun.set_value();
        while (!gone()) std::this_thread::yield();
        return server::HttpReply{};
      },
      woken.wake());
  begun.get_future().wait();
  auto& pending = std::get<std::unique_ptr<server::PendingReply>>(result);
  EXPECT_FALSE(pending->is_ready());
  server::HttpReply reply;
  EXPECT_FALSE(pending->is_stream());
  EXPECT_FALSE(pending->advance(reply));
  pending.reset();
  woken.promise.get_future().wait();
  // What waits behind it is not begun when nobody wants it; the pool's end ends what runs.
  bool ran = false;
  Woken never;
  {
    std::promise<void> runs;
    auto other = pool.defer(
        [&](const auto& gone) -> HandlerPool::Result {
          runs.set_value();
          while (!gone()) std::this_thread::yield();
          return server::HttpReply{};
        },
        [] {});
    runs.get_future().wait();
    auto dropped =
        pool.defer([&](const auto&) -> HandlerPool::Result { return ran = true, server::HttpReply{}; }, [] {});
    std::get<std::unique_ptr<server::PendingReply>>(dropped).reset();
    pool.stop();
    EXPECT_TRUE(std::get<std::unique_ptr<server::PendingReply>>(other)->is_ready());
  }
  EXPECT_FALSE(ran);
  auto late = pool.defer([](const auto&) -> HandlerPool::Result { return server::HttpReply{}; }, [] {});
  EXPECT_EQ(std::get<server::HttpReply>(late).status, 503);
}

TEST(HandlerPool, AFaultOfTheWorkIsAReply) {
  HandlerPool pool(1);
  Woken woken;
  auto result = pool.defer([](const auto&) -> HandlerPool::Result { throw std::runtime_error("x"); }, woken.wake());
  woken.promise.get_future().wait();
  server::HttpReply reply;
  EXPECT_TRUE(std::get<std::unique_ptr<server::PendingReply>>(result)->advance(reply));
  EXPECT_EQ(reply.status, 500);
}

}  // namespace
}  // namespace calandra::apps

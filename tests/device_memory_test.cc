// No leak on a device: a thousand requests of every kind, in rounds that are all alike. After each of them the device's
// free memory and the engine's accounts are what they were after the second one; by then every size was there once.
// Alone on its device. CALANDRA_LOSSLESS_BACKEND says cuda or cuda_fast; skipped without it.
#include <fmt/format.h>
#include <gtest/gtest.h>

#include <vector>

#include "tests/device_free_memory.h"
#include "tests/losslessness_session.h"

namespace calandra::lossless {
namespace {

using testing::device_free_memory;

class DeviceMemory : public ::testing::TestWithParam<std::string> {
 protected:
  void SetUp() override {
    subject_ = subject(GetParam());
    if (!subject_->on_device()) GTEST_SKIP() << "skipped: CALANDRA_LOSSLESS_BACKEND names no device";
  }
  Subject* subject_ = nullptr;
};

TEST_P(DeviceMemory, AThousandRequestsLeaveNothing) {
  const std::vector<AskedRequest>& all = requests_of(*subject_);
  std::vector<const AskedRequest*> requests;
  for (const AskedRequest& asked : all) requests.push_back(&asked);
  Setting setting{.drafting = {DraftMethod::kMtp, 3}, .cache = true, .batch = 7, .seed = 3};
  ample_limits(setting, 256);
  Tally tally;
  Session session(*subject_, setting, tally);
  EngineCore& core = session.core();
  int64_t ran = 0, rounds = 0;
  size_t before = 0;
  while (ran < 1000) {
    session.run(requests, true);  // all at once, so that rounds are alike
    core.cache()->clear();
    ran += std::ssize(requests);
    ++rounds;
    const size_t free = device_free_memory();
    if (rounds == 2) before = free;
    if (rounds > 2) {
      ASSERT_EQ(free, before) << "round " << rounds;
    }
    const EngineStats& stats = core.stats();
    ASSERT_EQ(stats.pages_used, 0) << "round " << rounds;
    ASSERT_EQ(stats.slots_used, 0) << "round " << rounds;
    ASSERT_EQ(stats.checkpoint_bytes, 0) << "round " << rounds;
    ASSERT_EQ(session.runner().pages().free_pages(), session.runner().pages().pages());
    ASSERT_EQ(session.runner().slots().free_slots(), session.runner().slots().slots());
  }
  fmt::print("{}: {} requests in {} rounds, {:.1f} MB free after the second and the last; {}\n", GetParam(), ran,
             rounds, static_cast<double>(before) * 1e-6, tally.words());
  EXPECT_EQ(tally.differences, 0) << tally.first;

  // And a leak would be seen.
  const Buffer leak = subject_->backend->allocate(size_t{4} << 20);
  EXPECT_LT(device_free_memory(), before);
}

INSTANTIATE_TEST_SUITE_P(Models, DeviceMemory, ::testing::Values("demo-qwen3_5", "demo-bailing"), [](const auto& info) {
  return std::string(info.param == std::string("demo-bailing") ? "bailing" : "qwen3_5");
});

}  // namespace
}  // namespace calandra::lossless

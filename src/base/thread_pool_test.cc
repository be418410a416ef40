#include "base/thread_pool.h"

#include <gtest/gtest.h>

#include <unistd.h>

#include <chrono>
#include <filesystem>
#include <fstream>
#include <limits>
#include <numeric>

#include "base/cpu_topology.h"

namespace calandra {
namespace {

class ThreadPoolTest : public testing::TestWithParam<int> {};

TEST_P(ThreadPoolTest, EveryThreadRunsEachRegionOnce) {
  ThreadPool pool(GetParam());
  ASSERT_EQ(pool.threads(), GetParam());
  std::vector<int> runs(static_cast<size_t>(pool.threads()));
  for (int region = 1; region <= 500; ++region) {
    pool.run([&](int thread) { ++runs[static_cast<size_t>(thread)]; });
    for (const int count : runs) ASSERT_EQ(count, region);
  }
}

TEST_P(ThreadPoolTest, SleepingThreadsWakeUp) {
  ThreadPool pool(GetParam());
  std::atomic<int> sum{0};
  for (int region = 0; region < 5; ++region) {
    std::this_thread::sleep_for(std::chrono::milliseconds(5));  // beyond the spinning
    pool.run([&](int thread) {
      if (thread + 1 == pool.threads())
        std::this_thread::sleep_for(std::chrono::milliseconds(5));  // the caller sleeps too
      sum += thread + 1;
    });
  }
  EXPECT_EQ(sum, 5 * pool.threads() * (pool.threads() + 1) / 2);
}

TEST_P(ThreadPoolTest, ParallelForCoversTheRangeOnce) {
  ThreadPool pool(GetParam());
  for (const int64_t n : {0, 1, 2, 3, 15, 16, 17, 1000})
    for (const int64_t grain : {0, 1, 7, 2000}) {
      std::vector<int> seen(static_cast<size_t>(n));
      std::atomic<int> parts{0};
      pool.parallel_for(n, grain, [&](int64_t begin, int64_t end, int thread) {
        ++parts;
        EXPECT_LT(thread, pool.threads());
        EXPECT_TRUE(end - begin >= grain || (begin == 0 && end == n));
        for (int64_t i = begin; i < end; ++i) ++seen[static_cast<size_t>(i)];
      });
      for (const int count : seen) ASSERT_EQ(count, 1);
      EXPECT_LE(parts, std::max<int64_t>(1, n / std::max<int64_t>(grain, 1)));
    }
}

TEST_P(ThreadPoolTest, DenormalsAreZeroOnEveryThreadAndOnlyInside) {
  ThreadPool pool(GetParam());
  volatile float tiny = std::numeric_limits<float>::min();
  std::atomic<int> flushed{0};
  const auto look = [&] { flushed += tiny * 0.5f == 0.0f; };
  pool.run([&](int) { look(); });
  EXPECT_EQ(flushed, pool.threads());
  pool.parallel_for(1, 1, [&](int64_t, int64_t, int) { look(); });
  EXPECT_EQ(flushed, pool.threads() + 1);
  EXPECT_NE(tiny * 0.5f, 0.0f);
}

TEST_P(ThreadPoolTest, WritesAreVisibleToTheNextRegion) {
  ThreadPool pool(GetParam());
  const int n = pool.threads();
  std::vector<int64_t> a(static_cast<size_t>(n), 1), b(a);
  for (int region = 0; region < 20; ++region) {  // each thread sums what the others wrote in the region before
    pool.run([&](int t) { b[static_cast<size_t>(t)] = std::accumulate(a.begin(), a.end(), int64_t{0}) % 1009; });
    std::swap(a, b);
  }
  for (const int64_t value : a) EXPECT_EQ(value, a[0]);
}

INSTANTIATE_TEST_SUITE_P(Threads, ThreadPoolTest, testing::Values(1, 2, 3, 16));

TEST(ThreadPoolDeathTest, RefusesARegionInsideAnother) {
  GTEST_FLAG_SET(death_test_style, "threadsafe");
  for (const int threads : {1, 2})
    EXPECT_DEATH(
        {
          ThreadPool pool(threads);
          pool.run([&](int thread) {
            if (thread == 0) pool.run([](int) {});
          });
        },
        "a parallel region inside another");
}

TEST(CpuTopology, FindsTheCoresOfThisMachine) {
  EXPECT_GE(default_thread_count(), 1);
  EXPECT_LE(default_thread_count(), static_cast<int>(usable_cores().size()));
  for (const auto& processors : usable_cores()) EXPECT_FALSE(processors.empty());
}

class CgroupTest : public testing::Test {
 protected:
  CgroupTest() : folder(std::filesystem::temp_directory_path() / ("calandra_cgroup_" + std::to_string(getpid()))) {}
  ~CgroupTest() override { std::filesystem::remove_all(folder); }
  void write(const std::filesystem::path& file, const char* text) {
    std::filesystem::create_directories((folder / file).parent_path());
    std::ofstream(folder / file) << text;
  }
  double limit() { return cgroup_cpu_limit(folder / "membership", folder / "mount"); }
  const std::filesystem::path folder;
};

TEST_F(CgroupTest, Version2TakesTheLeastOfAllLevels) {
  write("membership", "0::/pods/one\n");
  EXPECT_EQ(limit(), 0);
  write("mount/pods/one/cpu.max", "max 100000\n");
  EXPECT_EQ(limit(), 0);
  write("mount/pods/cpu.max", "250000 100000\n");
  EXPECT_EQ(limit(), 2.5);
  write("mount/pods/one/cpu.max", "50000 100000\n");
  EXPECT_EQ(limit(), 0.5);
}

TEST_F(CgroupTest, Version1ReadsTheCpuController) {
  write("membership", "5:cpuset:/x\n4:cpu,cpuacct:/docker/abc\n0::/\n");
  write("mount/cpuset/x/cpu.cfs_quota_us", "100000");
  write("mount/cpu,cpuacct/cpu.cfs_quota_us", "-1");
  write("mount/cpu,cpuacct/cpu.cfs_period_us", "100000");
  EXPECT_EQ(limit(), 0);
  write("mount/cpu,cpuacct/cpu.cfs_quota_us", "300000");  // seen from inside a container, which lacks docker/abc
  EXPECT_EQ(limit(), 3);
}

TEST_F(CgroupTest, NoMembershipMeansNoLimit) { EXPECT_EQ(limit(), 0); }

}  // namespace
}  // namespace calandra

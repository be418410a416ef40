#include "base/thread_pool.h"

#include <linux/futex.h>
#include <pthread.h>
#include <sys/syscall.h>
#include <unistd.h>
#include <xmmintrin.h>

#include <chrono>
#include <string>
#include <system_error>

#include "base/check.h"
#include "base/cpu_topology.h"
#include "base/error.h"

namespace calandra {
namespace {

constexpr unsigned kFlush = 0x8000 | 0x0040;  // FTZ | DAZ
constexpr auto kSpin = std::chrono::microseconds(50);

static_assert(sizeof(std::atomic<uint32_t>) == sizeof(uint32_t));

void futex_wait(std::atomic<uint32_t>& word, uint32_t while_value) {
  syscall(SYS_futex, &word, FUTEX_WAIT_PRIVATE, while_value, nullptr, nullptr, 0);
}

void futex_wake(std::atomic<uint32_t>& word, int count) {
  syscall(SYS_futex, &word, FUTEX_WAKE_PRIVATE, count, nullptr, nullptr, 0);
}

// How often a waiting thread can look at a counter within kSpin. The pause instruction takes 10 to 140 cycles by CPU
// model.
int spins_within_budget() {
  constexpr int kSample = 256;
  const auto start = std::chrono::steady_clock::now();
  for (int i = 0; i < kSample; ++i) _mm_pause();
  const auto took = std::max(std::chrono::steady_clock::now() - start, std::chrono::steady_clock::duration(1));
  return static_cast<int>(std::clamp<int64_t>(kSample * std::chrono::steady_clock::duration(kSpin) / took, 64, 65536));
}

void pin(std::thread& thread, const std::vector<int>& processors) {
  cpu_set_t set;
  CPU_ZERO(&set);
  for (const int p : processors) CPU_SET(p, &set);
  pthread_setaffinity_np(thread.native_handle(), sizeof set, &set);  // a refusal costs speed only
}

}  // namespace

FlushDenormals::FlushDenormals() : saved_(_mm_getcsr()) { _mm_setcsr(saved_ | kFlush); }
FlushDenormals::~FlushDenormals() { _mm_setcsr((_mm_getcsr() & ~kFlush) | (saved_ & kFlush)); }

ThreadPool::ThreadPool(int threads) : spins_(spins_within_budget()) {
  CHECK_GE(threads, 1);
  if (threads == 1) return;
  const std::vector<std::vector<int>> cores = usable_cores();
  const int processors = static_cast<int>(cores.size());
  if (threads > processors) spins_ = 64;  // a spinning thread would keep a working one from its processor
  workers_.reserve(static_cast<size_t>(threads - 1));
  try {
    for (int t = 1; t < threads; ++t) {
      workers_.emplace_back([this, t] { work(t); });
      if (threads == processors) pin(workers_.back(), cores[static_cast<size_t>(t)]);
    }
  } catch (const std::system_error& error) {
    stop();
    throw LoadError("cannot start thread " + std::to_string(workers_.size() + 2) + " of " + std::to_string(threads) +
                    " (" + error.what() + "); lower --threads");
  }
}

ThreadPool::~ThreadPool() { stop(); }

void ThreadPool::stop() {
  task_ = nullptr;
  region_.fetch_add(1);
  futex_wake(region_, threads());
  for (std::thread& worker : workers_) worker.join();
}

void ThreadPool::run_task(Task task, void* context) {
  CHECK_MSG(!running_.exchange(true, std::memory_order_acquire), "a parallel region inside another");
  const FlushDenormals flush;
  if (!workers_.empty()) {
    task_ = task;
    context_ = context;
    remaining_.store(static_cast<uint32_t>(workers_.size()), std::memory_order_relaxed);
    region_.fetch_add(1);  // sequentially consistent, as the sleeper's count: one of the two sides
    if (sleepers_.load() > 0) futex_wake(region_, threads());  // sees the other
  }
  task(context, 0);
  if (!workers_.empty()) {
    for (int i = 0; i < spins_ && remaining_.load(std::memory_order_acquire) != 0; ++i) _mm_pause();
    if (remaining_.load(std::memory_order_acquire) != 0) {
      caller_sleeps_.store(true);
      for (uint32_t left; (left = remaining_.load()) != 0;) futex_wait(remaining_, left);
      caller_sleeps_.store(false);
    }
  }
  running_.store(false, std::memory_order_release);
}

uint32_t ThreadPool::wait_for_next(uint32_t seen) {
  for (int i = 0; i < spins_; ++i) {
    const uint32_t region = region_.load(std::memory_order_acquire);
    if (region != seen) return region;
    _mm_pause();
  }
  sleepers_.fetch_add(1);
  uint32_t region;
  while ((region = region_.load()) == seen) futex_wait(region_, seen);
  sleepers_.fetch_sub(1);
  return region;
}

void ThreadPool::work(int thread) {
  const FlushDenormals flush;
  for (uint32_t seen = 0;;) {
    seen = wait_for_next(seen);
    if (task_ == nullptr) return;
    task_(context_, thread);
    if (remaining_.fetch_sub(1) == 1 && caller_sleeps_.load()) futex_wake(remaining_, 1);
  }
}

}  // namespace calandra

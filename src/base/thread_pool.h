// ThreadPool: fork-join regions a few microseconds apart. Waiting threads spin briefly, then sleep.
#pragma once

#include <algorithm>
#include <atomic>
#include <cstdint>
#include <thread>
#include <type_traits>
#include <vector>

namespace calandra {

// While it lives, the calling thread treats denormal numbers as zero. A result must not depend on the thread that
// computed it, so every pool thread does so always, and a caller while it computes.
class FlushDenormals {
 public:
  FlushDenormals();
  ~FlushDenormals();
  FlushDenormals(const FlushDenormals&) = delete;
  FlushDenormals& operator=(const FlushDenormals&) = delete;

 private:
  unsigned saved_;
};

class ThreadPool {
 public:
  // `threads` counts the caller of run(), which works as thread 0. When there is one thread for each usable core, the
  // others are pinned; with fewer, pinned threads of two processes would meet on the same cores. Throws LoadError when
  // the system gives no more threads.
  explicit ThreadPool(int threads);
  ~ThreadPool();
  ThreadPool(const ThreadPool&) = delete;
  ThreadPool& operator=(const ThreadPool&) = delete;

  int threads() const { return static_cast<int>(workers_.size()) + 1; }
  // Regions that several threads worked in since the start, each with one barrier at its end; for the caller of run().
  uint32_t regions() const { return region_.load(std::memory_order_relaxed); }

  // Calls fn(thread) once on each thread, returns when all have returned. One region at a time: a call from inside a
  // region, or from a second thread meanwhile, aborts. fn must not throw.
  template <class F>
  void run(F&& fn) {
    using Function = std::remove_reference_t<F>;
    run_task([](void* context, int thread) { (*static_cast<Function*>(context))(thread); },
             const_cast<void*>(static_cast<const void*>(&fn)));
  }

  // fn(begin, end, thread) over a static partition of [0, n) into parts of at least `grain`; without a fork when one
  // part is left.
  template <class F>
  void parallel_for(int64_t n, int64_t grain, F&& fn) {
    const int64_t parts = std::min<int64_t>(threads(), n / std::max<int64_t>(grain, 1));
    if (parts <= 1) {
      if (n <= 0) return;
      const FlushDenormals flush;
      fn(int64_t{0}, n, 0);
      return;
    }
    run([&](int thread) {
      if (thread < parts) fn(n * thread / parts, n * (thread + 1) / parts, thread);
    });
  }

 private:
  using Task = void (*)(void* context, int thread);
  void run_task(Task task, void* context);
  void work(int thread);
  void stop();
  uint32_t wait_for_next(uint32_t seen);

  std::vector<std::thread> workers_;
  int spins_;  // looks at a counter before a thread sleeps

  Task task_ = nullptr;  // null in a new region: end
  void* context_ = nullptr;
  alignas(64) std::atomic<uint32_t> region_{0};
  std::atomic<uint32_t> sleepers_{0};
  alignas(64) std::atomic<uint32_t> remaining_{0};
  std::atomic<bool> caller_sleeps_{false};
  std::atomic<bool> running_{false};
};

}  // namespace calandra

// How ops that work row by row are spread over the threads.
#pragma once

#include <algorithm>
#include <atomic>
#include <cstdint>

#include "base/thread_pool.h"

namespace calandra {

// Numbers for which a fork is worth its microseconds.
constexpr int64_t kNumbersPerThread = 16384;

// fn(row) for each of `rows` rows of `numbers` numbers: on the calling thread alone when that is little work.
template <class F>
void for_each_row(ThreadPool& pool, int64_t rows, int64_t numbers, const F& fn) {
  const int64_t grain = std::max<int64_t>(1, kNumbersPerThread / std::max<int64_t>(numbers, 1));
  pool.parallel_for(rows, grain, [&](int64_t begin, int64_t end, int) {
    for (int64_t row = begin; row < end; ++row) fn(row);
  });
}

// fn(task, thread), in ascending order, each on the next free thread.
template <class F>
void for_each_task(ThreadPool& pool, int64_t tasks, const F& fn) {
  std::atomic<int64_t> next{0};
  pool.run([&](int thread) {
    for (int64_t i = next++; i < tasks; i = next++) fn(i, thread);
  });
}

// Whether equal tasks keep the threads busy for 80 % of the time that they take together.
inline bool keep_busy(int64_t tasks, int64_t threads) {
  const int64_t rounds = (tasks + threads - 1) / threads;
  return 5 * tasks >= 4 * rounds * threads;
}

}  // namespace calandra

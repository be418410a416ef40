#include "apps/bench/probe.h"

#include <immintrin.h>
#include <pthread.h>
#include <sched.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cstdint>
#include <cstring>
#include <functional>
#include <thread>
#include <vector>

#include "tensor/buffer.h"

namespace calandra::apps {
namespace {

std::vector<int> usable_cpus() {
  cpu_set_t set;
  CPU_ZERO(&set);
  sched_getaffinity(0, sizeof set, &set);
  std::vector<int> cpus;
  for (int i = 0; i < CPU_SETSIZE; ++i)
    if (CPU_ISSET(i, &set)) cpus.push_back(i);
  return cpus;
}

// Seconds from the common start of `threads` pinned threads to the last end.
double timed(int threads, const std::function<void(int)>& work) {
  const std::vector<int> cpus = usable_cpus();
  std::atomic<int> ready{0};
  std::atomic<bool> go{false};
  std::vector<std::thread> team;
  for (int i = 0; i < threads; ++i) {
    team.emplace_back([&, i] {
      cpu_set_t set;
      CPU_ZERO(&set);
      CPU_SET(cpus[i % cpus.size()], &set);
      pthread_setaffinity_np(pthread_self(), sizeof set, &set);
      ++ready;
      while (!go.load(std::memory_order_acquire)) _mm_pause();
      work(i);
    });
  }
  while (ready != threads) std::this_thread::yield();
  const auto start = std::chrono::steady_clock::now();
  go.store(true, std::memory_order_release);
  for (std::thread& thread : team) thread.join();
  return std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
}

volatile uint64_t sink;

__attribute__((target("avx2"))) uint64_t sum(const char* p, size_t bytes) {
  __m256i a = _mm256_setzero_si256(), b = a, c = a, d = a;
  for (size_t i = 0; i < bytes; i += 128) {
    a = _mm256_add_epi64(a, _mm256_load_si256(reinterpret_cast<const __m256i*>(p + i)));
    b = _mm256_add_epi64(b, _mm256_load_si256(reinterpret_cast<const __m256i*>(p + i + 32)));
    c = _mm256_add_epi64(c, _mm256_load_si256(reinterpret_cast<const __m256i*>(p + i + 64)));
    d = _mm256_add_epi64(d, _mm256_load_si256(reinterpret_cast<const __m256i*>(p + i + 96)));
  }
  alignas(32) uint64_t v[4];
  _mm256_store_si256(reinterpret_cast<__m256i*>(v), _mm256_add_epi64(_mm256_add_epi64(a, b), _mm256_add_epi64(c, d)));
  return v[0] + v[1] + v[2] + v[3];
}

constexpr int kLoops = 4'000'000;
constexpr int kAccumulators = 12;

// The asm statement makes every accumulator opaque, so that no iteration can be folded away.
__attribute__((target("fma,avx2"))) void fma256() {
  __m256 acc[kAccumulators], x = _mm256_setzero_ps();
#pragma GCC unroll 12
  for (__m256& a : acc) a = _mm256_setzero_ps();
  for (int i = 0; i < kLoops; ++i) {
#pragma GCC unroll 12
    for (__m256& a : acc) a = _mm256_fmadd_ps(x, x, a);
#pragma GCC unroll 12
    for (__m256& a : acc) asm volatile("" : "+x"(a));
  }
}

__attribute__((target("avx512f"))) void fma512() {
  __m512 acc[kAccumulators], x = _mm512_setzero_ps();
#pragma GCC unroll 12
  for (__m512& a : acc) a = _mm512_setzero_ps();
  for (int i = 0; i < kLoops; ++i) {
#pragma GCC unroll 12
    for (__m512& a : acc) a = _mm512_fmadd_ps(x, x, a);
#pragma GCC unroll 12
    for (__m512& a : acc) asm volatile("" : "+v"(a));
  }
}

}  // namespace

MachineProbe probe_machine(int threads, size_t bytes) {
  MachineProbe probe;
  if (!__builtin_cpu_supports("avx2") || !__builtin_cpu_supports("fma")) return probe;
  const size_t part = bytes / threads / 4096 * 4096;
  const Buffer buffer = Buffer::host(part * threads);
  char* data = static_cast<char*>(buffer.data());
  timed(threads, [&](int t) { std::memset(data + t * part, 1, part); });
  for (int pass = 0; pass < 5; ++pass) {
    const double seconds = timed(threads, [&](int t) { sink = sum(data + t * part, part); });
    probe.read_bytes_per_s = std::max(probe.read_bytes_per_s, static_cast<double>(part) * threads / seconds);
  }
  const bool wide = __builtin_cpu_supports("avx512f");
  for (int pass = 0; pass < 5; ++pass) {
    const double seconds = timed(threads, [&](int) { wide ? fma512() : fma256(); });
    probe.flops_per_s = std::max(probe.flops_per_s, threads * 2.0 * (wide ? 16 : 8) * kAccumulators * kLoops / seconds);
  }
  return probe;
}

MachineProbe probe_of(Backend& backend, int threads) {
  if (backend.device().kind == DeviceKind::kCpu) return probe_machine(threads);
  return {.read_bytes_per_s = backend.read_bytes_per_s()};
}

}  // namespace calandra::apps

// For benches: how fast memory is read, and times of single kernels (kernel_timer.h).
#include <algorithm>
#include <cstring>

#include "backends/cuda/cuda_backend.h"
#include "backends/cuda/kernel_timer.h"

namespace calandra {
namespace cuda {
namespace {

constexpr int kThreads = 512;
constexpr int kAhead = 8;  // reads of a thread before the first is used

__global__ void __launch_bounds__(kThreads) read_all(const uint4* from, size_t count, uint32_t* sink) {
  const size_t step = size_t{gridDim.x} * kThreads;
  uint32_t sum = 0;
  for (size_t i = size_t{blockIdx.x} * kThreads + threadIdx.x; i + (kAhead - 1) * step < count; i += kAhead * step) {
    uint4 v[kAhead];
#pragma unroll
    for (int j = 0; j < kAhead; ++j) v[j] = __ldg(from + i + j * step);
#pragma unroll
    for (int j = 0; j < kAhead; ++j) sum ^= v[j].x ^ v[j].y ^ v[j].z ^ v[j].w;
  }
  if (sum == 1) *sink = sum;  // so that the reads are wanted; the memory is zeros
}

__global__ void hold(int64_t nanoseconds) {
  int64_t begin, now;
  asm volatile("mov.u64 %0, %globaltimer;" : "=l"(begin));
  do {
    asm volatile("mov.u64 %0, %globaltimer;" : "=l"(now));
  } while (now - begin < nanoseconds);
}

__global__ void nothing() {}

}  // namespace

KernelTimer::KernelTimer(cudaStream_t stream) {
  constexpr int64_t kHostAhead = 20'000'000;
  constexpr size_t kBytes = size_t{1} << 16;
  CUDA_CHECK(cudaMalloc(&copied_to_, kBytes));
  CUDA_CHECK(cudaHostAlloc(&copied_from_, kBytes, cudaHostAllocDefault));
  // The first copy of some KB after memory was freed takes 0.1 ms longer: none that is timed.
  CUDA_CHECK(cudaMemcpyAsync(copied_to_, copied_from_, kBytes, cudaMemcpyHostToDevice, stream));
  hold<<<1, 1, 0, stream>>>(kHostAhead);
  CUDA_CHECK(cudaGetLastError());
  begin_ = record(stream);
  for (int i = 0; i < 8; ++i) {
    nothing<<<1, 1, 0, stream>>>();
    CUDA_CHECK(cudaGetLastError());
    note(stream, "(an empty kernel)");
  }
}

KernelTimer::~KernelTimer() {
  for (const Note& note : notes_) CUDA_CHECK(cudaEventDestroy(note.behind));
  CUDA_CHECK(cudaEventDestroy(begin_));
  CUDA_CHECK(cudaFree(copied_to_));
  CUDA_CHECK(cudaFreeHost(copied_from_));
}

cudaEvent_t KernelTimer::record(cudaStream_t stream) {
  cudaEvent_t event;
  CUDA_CHECK(cudaEventCreate(&event));
  CUDA_CHECK(cudaEventRecord(event, stream));
  return event;
}

void KernelTimer::note(cudaStream_t stream, const char* kernel) { notes_.push_back({kernel, record(stream)}); }

std::vector<Backend::KernelTime> KernelTimer::times() {
  std::vector<Backend::KernelTime> times;
  cudaEvent_t before = begin_;
  for (const Note& note : notes_) {
    float milliseconds = 0;
    CUDA_CHECK(cudaEventSynchronize(note.behind));
    CUDA_CHECK(cudaEventElapsedTime(&milliseconds, before, note.behind));
    before = note.behind;
    const auto same = [&](const Backend::KernelTime& time) { return std::strcmp(time.name, note.kernel) == 0; };
    auto found = std::find_if(times.begin(), times.end(), same);
    if (found == times.end()) found = times.insert(times.end(), {note.kernel, 0, 0});
    ++found->launches;
    found->seconds += 1e-3 * static_cast<double>(milliseconds);
  }
  return times;
}

}  // namespace cuda

using namespace cuda;

std::vector<Backend::KernelTime> CudaBackend::time_kernels(const std::function<void()>& work) {
  CUDA_CHECK(cudaSetDevice(options_.device));
  KernelTimer timer(last_stream_);
  timer_ = &timer;
  work();
  timer_ = nullptr;
  return timer.times();
}

// The best of some passes over half of what is free, up to 8 GiB: of 1 GiB the caches of an H100 keep so much from pass
// to pass that it seems to read more than its memory can give.
double CudaBackend::read_bytes_per_s() {
  CUDA_CHECK(cudaSetDevice(options_.device));
  size_t free = 0, total = 0;
  CUDA_CHECK(cudaMemGetInfo(&free, &total));
  const size_t bytes = std::min(size_t{8} << 30, free / 2) / 16 * 16;
  const Buffer memory = allocate(bytes + 16);
  const auto* from = static_cast<const uint4*>(memory.data());
  auto* sink = reinterpret_cast<uint32_t*>(static_cast<std::byte*>(memory.data()) + bytes);
  cudaDeviceProp properties{};
  CUDA_CHECK(cudaGetDeviceProperties(&properties, options_.device));
  cudaEvent_t begin, end;
  CUDA_CHECK(cudaEventCreate(&begin));
  CUDA_CHECK(cudaEventCreate(&end));
  double best = 0;
  for (int pass = 0; pass < 6; ++pass) {
    CUDA_CHECK(cudaEventRecord(begin, nullptr));
    read_all<<<static_cast<unsigned>(16 * properties.multiProcessorCount), kThreads>>>(from, bytes / 16, sink);
    CUDA_CHECK(cudaGetLastError());
    CUDA_CHECK(cudaEventRecord(end, nullptr));
    CUDA_CHECK(cudaEventSynchronize(end));
    float milliseconds = 0;
    CUDA_CHECK(cudaEventElapsedTime(&milliseconds, begin, end));
    best = std::max(best, static_cast<double>(bytes) / (1e-3 * static_cast<double>(milliseconds)));
  }
  CUDA_CHECK(cudaEventDestroy(begin));
  CUDA_CHECK(cudaEventDestroy(end));
  return best;
}

}  // namespace calandra

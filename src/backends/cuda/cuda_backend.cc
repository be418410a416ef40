#include "backends/cuda/cuda_backend.h"

#include <algorithm>
#include <chrono>
#include <cstdio>
#include <string>

#include "backends/cuda/cuda_release.h"
#include "backends/cuda/kernel_timer.h"
#include "backends/cuda/mapped_memory.h"
#include "backends/cuda/packed_rows.h"
#include "backends/cuda/plugin_host.h"

namespace calandra {

namespace cuda {

void check_device(int device) {
  // No std::string alive when load_error throws.
  static thread_local char message[512];
  int count = 0;
  const cudaError_t status = cudaGetDeviceCount(&count);
  if (status != cudaSuccess || count == 0) {
    std::snprintf(message, sizeof message, "no CUDA device: %s (a driver of version 580 or later is needed)",
                  status != cudaSuccess ? cudaGetErrorString(status) : "the driver reports none");
    load_error(message);
  }
  if (device < 0 || device >= count) {
    std::snprintf(message, sizeof message, "CUDA device %d does not exist; there are %d, counted from 0", device,
                  count);
    load_error(message);
  }
  cudaDeviceProp properties{};
  CUDA_CHECK(cudaGetDeviceProperties(&properties, device));
  if (properties.major != 9) {
    std::snprintf(message, sizeof message,
                  "CUDA device %d (%s) has compute capability %d.%d; the kernels are built for 9.0 (Hopper)", device,
                  properties.name, properties.major, properties.minor);
    load_error(message);
  }
}

}  // namespace cuda

namespace {

constexpr int64_t kMostSampled = 256;  // rows of one block of logits

}  // namespace

CudaBackend::CudaBackend(const CudaOptions& options) : options_(options) {
  CUDA_CHECK(cudaSetDevice(options_.device));
  CUDA_CHECK(cudaFree(nullptr));  // makes the context now
  size_t free = 0, total = 0;
  CUDA_CHECK(cudaMemGetInfo(&free, &total));
  memory_bytes_ = free - free / 32;        // kernels are loaded as they are first run, and allocations are rounded up
  CUDA_CHECK(cudaStreamCreate(&stream_));  // blocking: copies keep their order to a step that was launched ahead
  for (cudaEvent_t& event : uploaded_) CUDA_CHECK(cudaEventCreateWithFlags(&event, cudaEventDisableTiming));
  CUDA_CHECK(cudaStreamCreateWithFlags(&beside_, cudaStreamNonBlocking));
  CUDA_CHECK(cudaEventCreateWithFlags(&now_, cudaEventDisableTiming));
  for (cudaEvent_t& event : copied_) CUDA_CHECK(cudaEventCreateWithFlags(&event, cudaEventDisableTiming));
  for (cuda::SamplingFlight& flight : sampling_.flights)
    CUDA_CHECK(cudaEventCreateWithFlags(&flight.sampled, cudaEventDisableTiming));
  cuda::fail_call(options_.fail_call);
}

CudaBackend::~CudaBackend() {
  for (const cuda::SamplingFlight& flight : sampling_.flights) CUDA_RELEASE(cudaEventDestroy(flight.sampled));
  for (const cudaEvent_t event : uploaded_) CUDA_RELEASE(cudaEventDestroy(event));
  for (const cudaEvent_t event : copied_) CUDA_RELEASE(cudaEventDestroy(event));
  CUDA_RELEASE(cudaEventDestroy(now_));
  CUDA_RELEASE(cudaStreamDestroy(beside_));
  CUDA_RELEASE(cudaStreamDestroy(stream_));
}

// No std::string alive when load_error throws.
void CudaBackend::out_of_memory(size_t bytes, const char* advice) const {
  size_t free = 0, total = 0;
  CUDA_CHECK(cudaMemGetInfo(&free, &total));
  static thread_local char message[512];
  std::snprintf(message, sizeof message, "out of memory on CUDA device %d: %.2f GB asked for, %.2f of %.2f GB free; %s",
                options_.device, static_cast<double>(bytes) * 1e-9, static_cast<double>(free) * 1e-9,
                static_cast<double>(total) * 1e-9, advice);
  cuda::load_error(message);
}

namespace {

// Zeroed. Null: there is not enough.
void* allocate_fixed(size_t bytes) {
  void* data = nullptr;
  const cudaError_t status = cuda::counted(cudaMalloc(&data, bytes));
  if (status == cudaErrorMemoryAllocation) {
    cudaGetLastError();  // not sticky: forget it
    return nullptr;
  }
  cuda::check(status, "cudaMalloc", __FILE__, __LINE__);
  CUDA_CHECK(cudaMemset(data, 0, bytes));
  CUDA_CHECK(cudaStreamSynchronize(nullptr));
  return data;
}

}  // namespace

Buffer CudaBackend::allocate(size_t bytes) {
  if (bytes == 0) return {};
  CUDA_CHECK(cudaSetDevice(options_.device));
  void* const data = options_.gives_back ? cuda::allocate_mapped(options_.device, bytes) : allocate_fixed(bytes);
  if (data == nullptr)
    out_of_memory(bytes, "use a smaller model, a smaller --max-model-len or fewer sequences (--max-num-seqs)");
  if (options_.gives_back) return Buffer(data, bytes, device(), [](void* p, size_t) { cuda::free_mapped(p); });
  return Buffer(data, bytes, device(), [](void* p, size_t) { CUDA_RELEASE(cudaFree(p)); });
}

void CudaBackend::give_back(const Tensor& memory) {
  if (!memory.empty()) cuda::give_back_mapped(memory.data());
}

void CudaBackend::take_back(const Tensor& memory) {
  if (memory.empty() || cuda::take_back_mapped(memory.data())) return;
  out_of_memory(memory.bytes(), "others have taken what was given back");
}

Buffer CudaBackend::allocate_host(size_t bytes) {
  if (bytes == 0) return {};
  CUDA_CHECK(cudaSetDevice(options_.device));  // else a thread's first call makes a context of device 0
  void* data = nullptr;
  const cudaError_t status = cuda::counted(cudaHostAlloc(&data, bytes, cudaHostAllocPortable));
  if (status == cudaErrorMemoryAllocation) {
    cudaGetLastError();
    static thread_local char message[128];
    std::snprintf(message, sizeof message, "out of memory: %.2f GB of page-locked host memory asked for",
                  static_cast<double>(bytes) * 1e-9);
    cuda::load_error(message);
  }
  cuda::check(status, "cudaHostAlloc", __FILE__, __LINE__);
  std::memset(data, 0, bytes);
  return Buffer(data, bytes, Device{}, [](void* p, size_t) { CUDA_RELEASE(cudaFreeHost(p)); });
}

void CudaBackend::copy_bytes(void* to, const void* from, size_t bytes) {
  if (bytes == 0) return;
  CUDA_CHECK(cudaSetDevice(options_.device));
  waiting([&] { CUDA_CHECK(cudaMemcpy(to, from, bytes, cudaMemcpyDefault)); });
}

Backend::UploadId CudaBackend::upload(ExecContext& ctx, void* to, const void* from, size_t bytes) {
  CUDA_CHECK(cudaSetDevice(options_.device));
  if (bytes > 0) CUDA_CHECK(cudaMemcpyAsync(to, from, bytes, cudaMemcpyHostToDevice, cuda::stream_of(ctx)));
  CUDA_CHECK(cudaEventRecord(uploaded_[static_cast<size_t>(uploads_ % kUploads)], cuda::stream_of(ctx)));
  return uploads_++;
}

// An event that stands behind a later upload by now waits a little longer.
void CudaBackend::wait_for_upload(UploadId id) {
  if (id < awaited_) return;
  CUDA_CHECK(cudaSetDevice(options_.device));
  wait_for(uploaded_[static_cast<size_t>(id % kUploads)]);
  awaited_ = id + 1;
}

// The event of an upload stands behind all that the stream was given before it.
Backend::CopyId CudaBackend::copy_beside(std::span<const CopyBeside> copies, UploadId behind) {
  CUDA_CHECK(cudaSetDevice(options_.device));
  cudaEvent_t begin = now_;
  if (behind < uploads_)
    begin = uploaded_[static_cast<size_t>(behind % kUploads)];
  else
    CUDA_CHECK(cudaEventRecord(now_, stream_));
  CUDA_CHECK(cudaStreamWaitEvent(beside_, begin));
  beside_to_.clear();
  beside_from_.clear();
  beside_bytes_.clear();
  for (const CopyBeside& copy : copies) {
    beside_to_.push_back(copy.to);
    beside_from_.push_back(copy.from);
    beside_bytes_.push_back(copy.bytes);
  }
  cudaMemcpyAttributes attributes{};
  attributes.srcAccessOrder = cudaMemcpySrcAccessOrderStream;
  size_t first = 0;  // of those that have these attributes
  if (!copies.empty())
    CUDA_CHECK(cudaMemcpyBatchAsync(beside_to_.data(), beside_from_.data(), beside_bytes_.data(), copies.size(),
                                    &attributes, &first, 1, beside_));
  ++copies_;
  CUDA_CHECK(cudaEventRecord(copied_[static_cast<size_t>(copies_ % kCopies)], beside_));
  return copies_;
}

void CudaBackend::wait_for_copies(CopyId id) {
  if (id == 0) return;
  CUDA_CHECK(cudaSetDevice(options_.device));
  CUDA_CHECK(cudaEventSynchronize(copied_[static_cast<size_t>(id % kCopies)]));
}

void CudaBackend::follow_copies() {
  if (copies_ == 0) return;
  CUDA_CHECK(cudaSetDevice(options_.device));
  CUDA_CHECK(cudaStreamWaitEvent(stream_, copied_[static_cast<size_t>(copies_ % kCopies)]));
}

template <class F>
void CudaBackend::waiting(const F& call) {
  const auto begin = std::chrono::steady_clock::now();
  call();
  waited_seconds_ += std::chrono::duration<double>(std::chrono::steady_clock::now() - begin).count();
}

void CudaBackend::wait_for(cudaEvent_t event) {
  waiting([&] { CUDA_CHECK(cudaEventSynchronize(event)); });
}

void CudaBackend::plan(ExecContext& ctx, const Batch& batch) {
  CUDA_CHECK(cudaSetDevice(options_.device));  // the thread that runs steps may not be the one that loaded
  if (ctx.dry_run) reserve_samples(std::min(kMostSampled, batch.sequences() * (1 + batch.max_drafts)));
}

size_t CudaBackend::packed_bytes(const StoredMatrix& source) const {
  return static_cast<size_t>(source.N()) * cuda::packed_row(source.dtype(), source.K(), source.block_k);
}

namespace {

// Rows of `width` bytes in the order of this thread's stream.
void put_rows(void* to, size_t to_stride, const void* from, size_t from_stride, size_t width, size_t rows) {
  if (to_stride == width && from_stride == width)
    CUDA_CHECK(cudaMemcpyAsync(to, from, rows * width, cudaMemcpyDefault, cudaStreamPerThread));
  else
    CUDA_CHECK(
        cudaMemcpy2DAsync(to, to_stride, from, from_stride, width, rows, cudaMemcpyDefault, cudaStreamPerThread));
}

}  // namespace

// Rows as stored, each padded with zeros (packed_rows.h); scales of f8 behind the values of their row. Each thread has
// its stream, so that one's copies overlap with what the others read. Rows that lie otherwise than on the host are
// copied as they are and set out on the device, whose memory is many times as fast as the way there.
PackedWeight CudaBackend::pack_weight(const StoredMatrix& source, std::byte* to) {
  const int64_t N = source.N(), K = source.K();
  const DType dtype = source.dtype();
  CHECK(dtype == DType::kF32 || dtype == DType::kBF16 || dtype == DType::kF16 || dtype == DType::kF8E4M3);
  const size_t row = cuda::packed_row(dtype, K, source.block_k), width = static_cast<size_t>(K) * size_of(dtype);
  const size_t stride = static_cast<size_t>(source.values.stride(0)) * size_of(dtype);
  const auto rows = static_cast<size_t>(N), bytes = CudaBackend::packed_bytes(source);
  const PackedWeight packed{N, K, dtype, Tensor(to, DType::kU8, {static_cast<int64_t>(bytes)}, device()),
                            source.block_k};
  if (bytes == 0) return packed;
  CUDA_CHECK(cudaSetDevice(options_.device));
  const void* values = source.values.data();
  if (row == width) {
    put_rows(to, row, values, stride, width, rows);
    CUDA_CHECK(cudaStreamSynchronize(cudaStreamPerThread));
    return packed;
  }
  const size_t blocks = dtype == DType::kF8E4M3 ? static_cast<size_t>(source.scales.size(1)) * sizeof(float) : 0;
  std::vector<std::byte> repeated(rows * blocks);  // a row of scales for each row of values
  for (size_t n = 0; n < rows && blocks > 0; ++n)
    std::memcpy(repeated.data() + n * blocks, source.scales[static_cast<int64_t>(n) / source.block_n].data(), blocks);
  static thread_local Buffer room;  // of one piece; goes with the thread
  if (room.bytes() < rows * (width + blocks) || room.device() != device()) {
    room = {};
    room = allocate(rows * (width + blocks));
  }
  auto* const dense = static_cast<std::byte*>(room.data());
  put_rows(dense, width, values, stride, width, rows);
  CUDA_CHECK(cudaMemsetAsync(to, 0, bytes, cudaStreamPerThread));
  put_rows(to, row, dense, width, width, rows);
  if (blocks > 0) {
    put_rows(dense + rows * width, blocks, repeated.data(), blocks, blocks, rows);
    put_rows(to + cuda::padded_values(dtype, K), row, dense + rows * width, blocks, blocks, rows);
    cuda::scale_nans(cudaStreamPerThread, to, N, K, source.block_k);
    CUDA_CHECK(cudaGetLastError());
  }
  CUDA_CHECK(cudaStreamSynchronize(cudaStreamPerThread));
  return packed;
}

void CudaBackend::launched(const ExecContext& ctx, const char* kernel) {
  ++launches_;
  last_stream_ = cuda::stream_of(ctx);
  const Scope scope(kernel);
  CUDA_CHECK(cudaGetLastError());
  if (timer_ != nullptr) timer_->note(last_stream_, kernel);
  if (options_.synchronous) CUDA_CHECK(cudaStreamSynchronize(cuda::stream_of(ctx)));
}

}  // namespace calandra

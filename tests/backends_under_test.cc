#include "tests/backends_under_test.h"

#include <cstring>
#include <deque>

#include "backends/cpu/batch_for_test.h"
#include "backends/cpu/cpu_backend.h"
#include "backends/cuda/plugin_loader.h"

namespace calandra {
namespace {

constexpr CudaOptions kCuda{.synchronous = true};  // tests look at results as soon as an op returns

// Host memory that the device reads and writes at the host's addresses, out of large pieces, because each of them takes
// the driver a while. It lives until the process ends.
class MappedMemory {
 public:
  explicit MappedMemory(Backend& backend) : backend_(backend) {}

  std::byte* take(size_t bytes) {
    bytes = (bytes + kAlignment - 1) / kAlignment * kAlignment;
    Piece* piece = nullptr;
    for (Piece& p : pieces_)
      if (p.used + bytes <= p.memory.bytes()) piece = &p;
    if (piece == nullptr) piece = &pieces_.emplace_back(backend_.allocate_host(std::max(bytes, kPiece)));
    std::byte* at = static_cast<std::byte*>(piece->memory.data()) + piece->used;
    piece->used += bytes;
    ++piece->live;
    std::memset(at, 0, bytes);
    return at;
  }
  void give_back(const void* at) {
    for (Piece& piece : pieces_) {
      const auto* begin = static_cast<const std::byte*>(piece.memory.data());
      if (at < begin || at >= begin + piece.memory.bytes()) continue;
      if (--piece.live == 0) piece.used = 0;
    }
  }

 private:
  static constexpr size_t kAlignment = 256, kPiece = size_t{64} << 20;
  struct Piece {
    explicit Piece(Buffer buffer) : memory(std::move(buffer)) {}
    Buffer memory;
    size_t used = 0;
    int64_t live = 0;
  };
  Backend& backend_;
  std::deque<Piece> pieces_;
};

MappedMemory* mapped = nullptr;

Buffer mapped_buffer(size_t bytes) {
  if (bytes == 0) return {};
  return Buffer(mapped->take(bytes), bytes, Device{}, [](void* at, size_t) { mapped->give_back(at); });
}

// The backend of this process's mapped memory; null without a device.
Backend* device() {
  static Backend* const backend = open_cuda_backend(kCuda).backend.release();
  if (backend != nullptr && mapped == nullptr) {
    mapped = new MappedMemory(*backend);
    test_memory = mapped_buffer;
  }
  return backend;
}

}  // namespace

std::vector<BackendUnderTest> backends_under_test() {
  std::vector<BackendUnderTest> all = {{"reference", [] { return std::make_unique<ReferenceBackend>(); }}};
  for (const Isa isa : machine_isas())
    for (const int threads : {1, 3})
      all.push_back({"cpu_" + std::string(name_of(isa)) + "_" + std::to_string(threads),
                     [=] { return make_cpu_backend({.threads = threads, .isa = isa}); }});
  if (device() == nullptr) return all;
  all.push_back({"cuda", [] { return open_cuda_backend(kCuda).backend; }, false});
  all.push_back({"cuda_deterministic", [] {
                   CudaOptions options = kCuda;
                   options.deterministic = true;
                   return open_cuda_backend(options).backend;
                 }});
  return all;
}

}  // namespace calandra

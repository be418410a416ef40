// Host memory, and weights packed as copies of their rows (rows.h).
#include <sys/mman.h>

#include <cstring>

#include "backends/reference/reference.h"
#include "backends/reference/rows.h"

namespace calandra {

std::unique_ptr<Backend> make_reference_backend() { return std::make_unique<ReferenceBackend>(); }

Buffer ReferenceBackend::allocate(size_t bytes) { return Buffer::host(bytes); }

void ReferenceBackend::give_back(const Tensor& memory) {
  if (!memory.empty()) CHECK_EQ(madvise(memory.data(), memory.bytes(), MADV_DONTNEED), 0);
}

void ReferenceBackend::copy_bytes(void* to, const void* from, size_t bytes) {
  if (bytes > 0) std::memmove(to, from, bytes);
}

size_t ReferenceBackend::packed_bytes(const StoredMatrix& source) const {
  return static_cast<size_t>(source.N()) * reference::packed_row(source.dtype(), source.K(), source.block_k);
}

PackedWeight ReferenceBackend::pack_weight(const StoredMatrix& source, std::byte* to) {
  const int64_t N = source.N(), K = source.K();
  const DType dtype = source.dtype();
  CHECK(dtype == DType::kF32 || dtype == DType::kBF16 || dtype == DType::kF16 || dtype == DType::kF8E4M3);
  const auto bytes = static_cast<int64_t>(ReferenceBackend::packed_bytes(source));
  const size_t row = reference::packed_row(dtype, K, source.block_k);
  const size_t values = static_cast<size_t>(K) * size_of(dtype),
               blocks = source.block_k > 0 ? source.scales.size(1) : 0;
  for (int64_t n = 0; n < N && row > 0; ++n) {
    std::memcpy(to + n * row, source.values.bytes_at(n * source.values.stride(0)), values);
    if (blocks > 0)
      std::memcpy(to + (n + 1) * row - blocks * sizeof(float), source.scales[n / source.block_n].data(),
                  blocks * sizeof(float));
  }
  return {N, K, dtype, Tensor(to, DType::kU8, {bytes}), source.block_k};
}

}  // namespace calandra

// Host memory, and weights packed as row-major copies.
#include <cstring>

#include "backends/reference/reference.h"

namespace calandra {

std::unique_ptr<Backend> make_reference_backend() { return std::make_unique<ReferenceBackend>(); }

Buffer ReferenceBackend::allocate(size_t bytes) { return Buffer::host(bytes); }

void ReferenceBackend::copy_bytes(void* to, const void* from, size_t bytes) {
  if (bytes > 0) std::memmove(to, from, bytes);
}

size_t ReferenceBackend::packed_bytes(DType dtype, int64_t N, int64_t K) const {
  return static_cast<size_t>(N) * static_cast<size_t>(K) * size_of(dtype);
}

PreparedWeight ReferenceBackend::prepare_weight(const Tensor& source) {
  const int64_t N = source.size(0), K = source.size(1);
  const DType dtype = source.dtype();
  CHECK(dtype == DType::kF32 || dtype == DType::kBF16 || dtype == DType::kF16);
  const size_t bytes = ReferenceBackend::packed_bytes(dtype, N, K);
  PreparedWeight prepared;
  prepared.storage = Buffer::host(bytes);
  prepared.weight = {N, K, dtype, prepared.storage.tensor(DType::kU8, {static_cast<int64_t>(bytes)})};
  const size_t row = bytes == 0 ? 0 : bytes / static_cast<size_t>(N);
  auto* to = static_cast<std::byte*>(prepared.storage.data());
  for (int64_t n = 0; n < N && row > 0; ++n) std::memcpy(to + n * row, source.bytes_at(n * source.stride(0)), row);
  return prepared;
}

}  // namespace calandra

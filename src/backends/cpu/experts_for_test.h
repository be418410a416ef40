// Groups of experts for tests.
#pragma once

#include <cmath>
#include <deque>
#include <random>
#include <span>
#include <vector>

#include "ops/backend.h"

namespace calandra {

// E random matrices [N, K] of f8_e4m3 with scales, of order 1 / sqrt(K).
class F8Experts {
 public:
  F8Experts(int64_t E, int64_t N, int64_t K, int64_t block_n, int64_t block_k, unsigned seed) {
    std::mt19937 engine(seed);
    const int64_t rows = (N + block_n - 1) / block_n, columns = (K + block_k - 1) / block_k;
    for (int64_t e = 0; e < E; ++e) {
      Buffer& values = buffers_.emplace_back(Buffer::host(static_cast<size_t>(N * K)));
      Buffer& scales = buffers_.emplace_back(Buffer::host(static_cast<size_t>(rows * columns) * sizeof(float)));
      for (int64_t i = 0; i < N * K; ++i)  // below 2
        static_cast<uint8_t*>(values.data())[i] = static_cast<uint8_t>((engine() & 0x80) | engine() % 0x40);
      for (int64_t i = 0; i < rows * columns; ++i)
        static_cast<float*>(scales.data())[i] =
            static_cast<float>(engine() % 1000 + 500) / 500.0f / std::sqrt(static_cast<float>(K));
      matrices.push_back(
          {values.tensor(DType::kF8E4M3, {N, K}), scales.tensor(DType::kF32, {rows, columns}), block_n, block_k});
    }
  }
  std::vector<StoredMatrix> matrices;

 private:
  std::deque<Buffer> buffers_;
};

// Matrices of one shape and format, packed as one group. `storage` must live as long as it.
inline GroupedWeight group(Backend& backend, std::span<const StoredMatrix> experts, Buffer& storage) {
  const size_t bytes = backend.packed_bytes(experts[0]);
  const size_t stride = (bytes + kWeightAlignment - 1) / kWeightAlignment * kWeightAlignment;
  const auto E = static_cast<int64_t>(experts.size());
  storage = backend.allocate(stride * experts.size());
  GroupedWeight weight;
  for (int64_t e = 0; e < E; ++e) {
    const PackedWeight each = backend.pack_weight(experts[e], static_cast<std::byte*>(storage.data()) + stride * e);
    weight = {E, each.N, each.K, each.dtype, {}, each.block_k};
  }
  weight.packed = storage.tensor(DType::kU8, {E, static_cast<int64_t>(stride)});
  return weight;
}

// The same of values [E, N, K].
inline GroupedWeight group(Backend& backend, const Tensor& experts, Buffer& storage) {
  std::vector<StoredMatrix> matrices;
  for (int64_t e = 0; e < experts.size(0); ++e) matrices.push_back({experts[e]});
  return group(backend, matrices, storage);
}

}  // namespace calandra

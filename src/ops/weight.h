// Weights as a backend wants them: packed once at load, opaque to everybody else.
#pragma once

#include <array>
#include <span>

#include "base/check.h"
#include "tensor/buffer.h"
#include "tensor/tensor.h"

namespace calandra {

// A matrix [N, K] (out, in) in host memory as a checkpoint stores it: what a backend packs. Without memory behind its
// tensors it stands for a matrix of this shape and format.
struct StoredMatrix {
  Tensor values;  // [N, K] f32 | bf16 | f16 | f8_e4m3; rows may have a stride
  // Of f8_e4m3 alone: the weight is values[n, k] * scales[n / block_n, k / block_k]. A last block is cut off, not
  // shrunk: 192 rows are 128 and 64.
  Tensor scales = {};  // [ceil(N / block_n), ceil(K / block_k)] f32, dense
  int64_t block_n = 0;
  int64_t block_k = 0;

  int64_t N() const { return values.size(0); }
  int64_t K() const { return values.size(1); }
  DType dtype() const { return values.dtype(); }
};

// A matrix [N, K] in the backend's layout. A view; the WeightStore owns the memory.
struct PackedWeight {
  int64_t N = 0;
  int64_t K = 0;
  DType dtype = DType::kBF16;  // number format of the stored values
  Tensor packed;               // [bytes] u8, layout known to the backend that made it
  int64_t block_k = 0;         // f8_e4m3: consecutive inputs that share a scale
  Tensor bias = {};            // [N] f32, added to the f32 sums before they are rounded; absent: none
};

// Packed weights begin at multiples of so many bytes.
constexpr size_t kWeightAlignment = 256;

// E matrices [N, K] of one format at a fixed distance: the experts of a mixture.
struct GroupedWeight {
  int64_t E = 0;
  int64_t N = 0;
  int64_t K = 0;
  DType dtype = DType::kBF16;
  Tensor packed;  // [E, bytes from one to the next] u8
  int64_t block_k = 0;

  PackedWeight expert(int64_t e) const { return {N, K, dtype, packed ? packed[e] : Tensor(), block_k}; }
};

// Several weights of one input, read in one pass over x ("qkv | z | b | a"). Parts may differ in format.
class LinearPack {
 public:
  static constexpr int kMaxParts = 4;

  LinearPack() = default;
  LinearPack(std::initializer_list<PackedWeight> parts) {
    for (const PackedWeight& part : parts) {
      CHECK_LT(count_, kMaxParts);
      CHECK_EQ(part.K, parts.begin()->K);
      parts_[count_++] = part;
    }
  }
  explicit LinearPack(int count) : count_(count) { CHECK_LE(count, kMaxParts); }  // parts to be filled in by the loader
  PackedWeight& part(int i) { return parts_.at(i); }
  std::span<const PackedWeight> parts() const { return {parts_.data(), static_cast<size_t>(count_)}; }
  int64_t K() const { return parts_[0].K; }
  int64_t N() const {  // sum over parts
    int64_t n = 0;
    for (const PackedWeight& part : parts()) n += part.N;
    return n;
  }

 private:
  std::array<PackedWeight, kMaxParts> parts_;
  int count_ = 0;
};

}  // namespace calandra

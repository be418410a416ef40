// Weights as a backend wants them: packed once at load, opaque to everybody else.
#pragma once

#include <array>
#include <span>

#include "base/check.h"
#include "tensor/buffer.h"
#include "tensor/tensor.h"

namespace calandra {

// A matrix [N, K] (out, in) in the backend's layout. A view; the WeightStore owns the memory.
struct PackedWeight {
  int64_t N = 0;
  int64_t K = 0;
  DType dtype = DType::kBF16;  // number format of the stored values
  Tensor packed;               // [bytes] u8, layout known to the backend that made it
};

struct PreparedWeight {
  PackedWeight weight;
  Buffer storage;
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

// For tests of the cpu backend: every instruction set of the machine with several thread counts, and tensors with
// random numbers.
#pragma once

#include <gtest/gtest.h>

#include <cmath>
#include <cstring>
#include <random>
#include <string>
#include <vector>

#include "backends/cpu/cpu_backend.h"

namespace calandra {

struct CpuSetting {
  Isa isa;
  int threads;
};

inline std::vector<CpuSetting> cpu_settings() {
  std::vector<CpuSetting> all;
  for (const Isa isa : machine_isas())
    for (const int threads : {1, 2, 3, 16}) all.push_back({isa, threads});
  return all;
}

inline std::string cpu_setting_name(const testing::TestParamInfo<CpuSetting>& info) {
  return std::string(name_of(info.param.isa)) + "_" + std::to_string(info.param.threads);
}

// A tensor with its memory. Rows may be padded.
struct Owned {
  Owned(DType dtype, Shape shape, int64_t padding = 0) {
    Shape padded = shape;
    const int last = shape.rank() - 1;
    padded[last] += padding;
    buffer = Buffer::host(static_cast<size_t>(padded.numel()) * size_of(dtype) + 64);
    tensor = buffer.tensor(dtype, padded).slice(last, 0, shape[last]);
  }
  Buffer buffer;
  Tensor tensor;
};

inline void put(const Tensor& x, int64_t row, int64_t column, float value) {
  std::byte* at = x.bytes_at(row * x.stride(0) + column);
  switch (x.dtype()) {
    case DType::kF32:
      *reinterpret_cast<float*>(at) = value;
      break;
    case DType::kBF16:
      *reinterpret_cast<bf16*>(at) = bf16(value);
      break;
    case DType::kF16:
      *reinterpret_cast<f16*>(at) = f16(value);
      break;
    default:
      FAIL();
  }
}

inline float get(const Tensor& x, int64_t row, int64_t column) {
  const std::byte* at = x.bytes_at(row * x.stride(0) + column);
  switch (x.dtype()) {
    case DType::kF32:
      return *reinterpret_cast<const float*>(at);
    case DType::kBF16:
      return static_cast<float>(*reinterpret_cast<const bf16*>(at));
    case DType::kF16:
      return static_cast<float>(*reinterpret_cast<const f16*>(at));
    default:
      return NAN;
  }
}

// A packed weight with its memory.
struct OwnedWeight {
  OwnedWeight(Backend& backend, const StoredMatrix& source)
      : buffer(backend.allocate(backend.packed_bytes(source))),
        weight(backend.pack_weight(source, static_cast<std::byte*>(buffer.data()))) {}
  Buffer buffer;
  PackedWeight weight;
};

inline Owned random_matrix(DType dtype, int64_t rows, int64_t columns, unsigned seed, int64_t padding = 0) {
  std::mt19937 engine(seed);
  std::normal_distribution<float> normal;
  Owned x(dtype, {rows, columns}, padding);
  for (int64_t r = 0; r < rows; ++r)
    for (int64_t c = 0; c < columns; ++c) put(x.tensor, r, c, normal(engine));
  return x;
}

inline float as_type(DType dtype, float value) {
  return dtype == DType::kBF16 ? static_cast<float>(bf16(value)) : value;
}

inline bool same_bits(float a, float b) { return std::memcmp(&a, &b, sizeof a) == 0; }

class CpuTest : public testing::TestWithParam<CpuSetting> {
 protected:
  CpuBackend backend{GetParam().threads, GetParam().isa};
  Workspace workspace{measured(), Buffer::host(measured().bytes())};
  OneRank communicator;
  ExecContext ctx{backend, workspace, communicator};

 private:
  static Workspace measured() {
    Workspace counting;
    counting.alloc(DType::kU8, {32 << 20});  // room for any of the tests
    return counting;
  }
};

}  // namespace calandra

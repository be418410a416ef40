// What the op tests share: a backend under test beside the reference, inputs, and a run of an op in a workspace that is
// exactly as large as its dry run said.
#pragma once

#include <memory>

#include "backends/cpu/batch_for_test.h"
#include "tests/backends_under_test.h"
#include "tests/tolerance.h"

namespace calandra {

inline void set_element(const Tensor& x, int64_t r, int64_t i, float value) {
  std::byte* at = x.bytes_at(r * x.stride(0) + i);
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
      FAIL() << name_of(x.dtype());
  }
}

// Bytes of the elements, rows one after the other.
inline std::vector<std::byte> row_bytes(const Tensor& x, int64_t begin, int64_t end) {
  std::vector<std::byte> all;
  for (int64_t r = begin; r < end; ++r) {
    const auto row = bytes_of(x.rank() == 1 ? x.slice(0, r, r + 1) : x[r]);
    all.insert(all.end(), row.begin(), row.end());
  }
  return all;
}
inline std::vector<std::byte> row_bytes(const Tensor& x) { return row_bytes(x, 0, x.size(0)); }

// Numbers in (-scale, scale) around offset. With padding, rows of a wider tensor whose other elements are NaN.
inline Tensor random(TensorPool& pool, DType dtype, Shape shape, uint64_t seed, float scale = 1, float offset = 0,
                     int64_t padding = 0) {
  const int64_t rows = shape[0];
  int64_t inner = 1;
  for (int axis = 1; axis < shape.rank(); ++axis) inner *= shape[axis];
  const Tensor wide = pool.zeros(dtype, {rows, inner + padding});
  for (int64_t r = 0; r < rows; ++r)
    for (int64_t i = 0; i < inner + padding; ++i) {
      const bool inside = i >= padding / 2 && i < padding / 2 + inner;
      set_element(wide, r, i, inside ? noise(seed, r * inner + i - padding / 2) * scale + offset : NAN);
    }
  if (shape.rank() == 1) return wide.view(shape);
  return wide.slice(1, padding / 2, padding / 2 + inner).view(shape);
}

// One backend with the weights and workspaces of its runs.
class OpRunner {
 public:
  explicit OpRunner(std::unique_ptr<Backend> backend) : backend_(std::move(backend)) {}

  Backend& backend() { return *backend_; }
  PackedWeight weight(const StoredMatrix& source) {
    weights_.push_back(backend_->allocate(backend_->packed_bytes(source)));
    return backend_->pack_weight(source, static_cast<std::byte*>(weights_.back().data()));
  }
  PackedWeight weight(const Tensor& source) { return weight(StoredMatrix{source}); }
  // op(ctx), first dry, then for real. Results live as long as the runner.
  template <class F>
  auto run(F op) {
    Workspace measured;
    ExecContext dry{.backend = *backend_, .workspace = measured, .communicator = rank_, .dry_run = true};
    op(dry);
    workspaces_.emplace_back(measured, test_memory(measured.bytes()));
    ExecContext ctx{.backend = *backend_, .workspace = workspaces_.back(), .communicator = rank_};
    return op(ctx);
  }

 private:
  std::unique_ptr<Backend> backend_;
  OneRank rank_;
  std::deque<Buffer> weights_;
  std::deque<Workspace> workspaces_;
};

class OpTest : public testing::TestWithParam<BackendUnderTest> {
 protected:
  const std::string& name() const { return GetParam().name; }

  // op(runner) gives tensors; on the backend under test they are those of the reference up to rounding.
  template <class F>
  void compare(const std::string& label, const Tolerance& tolerance, F op) {
    const std::vector<Tensor> got = op(tested), want = op(reference);
    ASSERT_EQ(got.size(), want.size());
    for (size_t i = 0; i < want.size(); ++i)
      EXPECT_TRUE(close_to(got[i], want[i], tolerance, label + (want.size() > 1 ? " result " + std::to_string(i) : ""),
                           name()));
  }

  TensorPool pool;
  OpRunner tested{GetParam().make()};
  OpRunner reference{std::make_unique<ReferenceBackend>()};
};

#define CALANDRA_ON_ALL_BACKENDS(suite)                                          \
  INSTANTIATE_TEST_SUITE_P(All, suite, testing::ValuesIn(backends_under_test()), \
                           [](const testing::TestParamInfo<BackendUnderTest>& tested) { return tested.param.name; })

}  // namespace calandra

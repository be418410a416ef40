// Products with packed weights: every number is one chain of fused multiply-adds over k, whatever the rows, threads,
// instruction set or the op it is asked through.
#include <gtest/gtest.h>

#include <cmath>
#include <cstring>

#include "backends/cpu/cpu_test_setting.h"
#include "ops/dense.h"

namespace calandra {
namespace {

float chain(const Tensor& x, int64_t row, const Tensor& w, int64_t n) {
  float sum = 0;
  for (int64_t k = 0; k < x.size(1); ++k) sum = std::fma(get(x, row, k), get(w, n, k), sum);
  return sum;
}

class CpuLinearTest : public CpuTest {};
GTEST_ALLOW_UNINSTANTIATED_PARAMETERIZED_TEST(CpuLinearTest);

TEST_P(CpuLinearTest, EveryProductIsOneChain) {
  const FlushDenormals flush;
  unsigned seed = 1;
  for (const auto& [K, N] : {std::pair<int64_t, int64_t>{1, 1}, {7, 33}, {255, 31}, {257, 65}, {600, 32}})
    for (const DType type : {DType::kF32, DType::kBF16})
      for (const DType stored : {DType::kF32, DType::kBF16, DType::kF16}) {
        seed += 2;
        const Owned w = random_matrix(stored, N, K, seed, seed % 3);
        const PreparedWeight weight = backend.prepare_weight(w.tensor);
        const Owned x = random_matrix(type, 65, K, seed + 1, seed % 5);
        for (const int64_t rows : {1, 2, 3, 4, 5, 6, 7, 8, 11, 12, 13, 24, 25, 64, 65}) {
          workspace.reset();
          const Tensor y = ops::linear(ctx, x.tensor.slice(0, 0, rows), weight.weight, DType::kF32);
          const Tensor rounded = ops::linear(ctx, x.tensor.slice(0, 0, rows), weight.weight, DType::kBF16);
          const int64_t step = rows < 8 ? 1 : 7;
          for (int64_t r = 0; r < rows; r += step)
            for (int64_t n = 0; n < N; ++n) {
              const float expected = chain(x.tensor, r, w.tensor, n);
              ASSERT_PRED2(same_bits, get(y, r, n), expected)
                  << "K " << K << " rows " << rows << " at " << r << " " << n;
              ASSERT_PRED2(same_bits, get(rounded, r, n), as_type(DType::kBF16, expected));
            }
        }
      }
}

TEST_P(CpuLinearTest, ManyRowsEqualSingleRows) {
  constexpr int64_t kN = 70, kK = 520;
  const Owned w = random_matrix(DType::kBF16, kN, kK, 1);
  const PreparedWeight weight = backend.prepare_weight(w.tensor);
  for (const int64_t rows : {97, 383, 385, 800}) {  // around the row block and the chunk
    const Owned x = random_matrix(DType::kBF16, rows, kK, 2);
    workspace.reset();
    const Tensor all = ops::linear(ctx, x.tensor, weight.weight, DType::kF32);
    for (int64_t r = 0; r < rows; ++r) {
      const Tensor one = ops::linear(ctx, x.tensor.slice(0, r, r + 1), weight.weight, DType::kF32);
      ASSERT_EQ(std::memcmp(one.data(), all.bytes_at(r * kN), kN * sizeof(float)), 0) << "row " << r << " of " << rows;
    }
  }
}

TEST_P(CpuLinearTest, PackOfFormatsWritesEachPartToItsColumns) {
  const FlushDenormals flush;
  constexpr int64_t kK = 300;
  const Owned a = random_matrix(DType::kBF16, 33, kK, 1), b = random_matrix(DType::kF32, 5, kK, 2),
              c = random_matrix(DType::kF16, 64, kK, 3), d = random_matrix(DType::kBF16, 1, kK, 4);
  const Owned* parts[] = {&a, &b, &c, &d};
  const PreparedWeight pa = backend.prepare_weight(a.tensor), pb = backend.prepare_weight(b.tensor),
                       pc = backend.prepare_weight(c.tensor), pd = backend.prepare_weight(d.tensor);
  const LinearPack pack{pa.weight, pb.weight, pc.weight, pd.weight};
  for (const int64_t rows : {1, 6, 30}) {
    const Owned x = random_matrix(DType::kBF16, rows, kK, 5);
    workspace.reset();
    const ops::PackResult y = ops::linear(ctx, x.tensor, pack);
    for (int p = 0; p < 4; ++p)
      for (int64_t r = 0; r < rows; ++r)
        for (int64_t n = 0; n < y[p].size(1); ++n)
          ASSERT_PRED2(same_bits, get(y[p], r, n), as_type(DType::kBF16, chain(x.tensor, r, parts[p]->tensor, n)));
  }
}

TEST_P(CpuLinearTest, FusedOpsEqualTheirParts) {
  constexpr int64_t kD = 290, kF = 333;
  for (const DType type : {DType::kF32, DType::kBF16}) {
    const Owned gate = random_matrix(DType::kBF16, kF, kD, 1), up = random_matrix(DType::kBF16, kF, kD, 2),
                down = random_matrix(DType::kBF16, kD, kF, 3);
    const PreparedWeight pg = backend.prepare_weight(gate.tensor), pu = backend.prepare_weight(up.tensor),
                         pd = backend.prepare_weight(down.tensor);
    for (const int64_t rows : {1, 4, 5, 40, 100}) {
      const Owned x = random_matrix(type, rows, kD, 4, 3), residual = random_matrix(type, rows, kD, 5, 1);
      workspace.reset();
      Tensor fused = workspace.alloc(type, {rows, kD}), parts = workspace.alloc(type, {rows, kD});
      const size_t bytes = static_cast<size_t>(fused.bytes());
      backend.swiglu_mlp(ctx, x.tensor, {pg.weight, pu.weight}, pd.weight, residual.tensor, fused);
      backend.Backend::swiglu_mlp(ctx, x.tensor, {pg.weight, pu.weight}, pd.weight, residual.tensor, parts);
      EXPECT_EQ(std::memcmp(fused.data(), parts.data(), bytes), 0) << "swiglu_mlp, rows " << rows;

      const Tensor h = ops::linear(ctx, x.tensor, pg.weight, type);
      backend.linear_add(ctx, h, pd.weight, residual.tensor, fused);
      backend.Backend::linear_add(ctx, h, pd.weight, residual.tensor, parts);
      EXPECT_EQ(std::memcmp(fused.data(), parts.data(), bytes), 0) << "linear_add, rows " << rows;
    }
  }
}

TEST_P(CpuLinearTest, EmbeddingGivesTheStoredRows) {
  // 64 rows fill their panels and whole pages: the row behind the last is no memory of the weight's
  for (const auto& [N, K] : {std::pair<int64_t, int64_t>{70, 37}, {64, 64}})
    for (const DType stored : {DType::kF32, DType::kBF16, DType::kF16}) {
      const Owned w = random_matrix(stored, N, K, 1);
      const PreparedWeight weight = backend.prepare_weight(w.tensor);
      Owned ids(DType::kI32, {N + 3});
      for (int32_t i = 0; i < static_cast<int32_t>(N) + 3; ++i)
        ids.tensor.as<int32_t>()[i] = (i * 13 + 5) % static_cast<int32_t>(N);
      ids.tensor.as<int32_t>()[N] = -1;
      ids.tensor.as<int32_t>()[N + 1] = INT32_MAX;
      ids.tensor.as<int32_t>()[N + 2] = static_cast<int32_t>(N);
      for (const DType type : {DType::kF32, DType::kBF16}) {
        workspace.reset();
        const Tensor y = ops::embedding(ctx, ids.tensor, weight.weight, type);
        for (int64_t i = 0; i < N + 3; ++i)
          for (int64_t k = 0; k < K; ++k) {
            const float expected = i < N ? get(w.tensor, ids.tensor.as<int32_t>()[i], k) : 0.0f;
            ASSERT_PRED2(same_bits, get(y, i, k), as_type(type, expected));
          }
      }
    }
}

TEST_P(CpuLinearTest, NoRowsDoNothing) {
  const Owned w = random_matrix(DType::kBF16, 40, 50, 1);
  const PreparedWeight weight = backend.prepare_weight(w.tensor);
  const Tensor x = workspace.alloc(DType::kBF16, {0, 50});
  EXPECT_EQ(ops::linear(ctx, x, weight.weight, DType::kF32).numel(), 0);
}

TEST_P(CpuLinearTest, NotANumberStaysInItsRowAndColumn) {
  const Owned w = random_matrix(DType::kBF16, 40, 300, 1), x = random_matrix(DType::kBF16, 14, 300, 2);
  put(w.tensor, 17, 299, NAN);
  put(x.tensor, 3, 0, NAN);
  const PreparedWeight weight = backend.prepare_weight(w.tensor);
  const Tensor y = ops::linear(ctx, x.tensor, weight.weight, DType::kBF16);
  for (int64_t r = 0; r < 14; ++r)
    for (int64_t n = 0; n < 40; ++n) EXPECT_EQ(std::isnan(get(y, r, n)), r == 3 || n == 17) << r << " " << n;
}

INSTANTIATE_TEST_SUITE_P(Machine, CpuLinearTest, testing::ValuesIn(cpu_settings()), cpu_setting_name);

TEST(IsaTest, NamesAreRead) {
  for (const Isa isa : {Isa::kAvx2, Isa::kAvx512}) EXPECT_EQ(isa_by_name(name_of(isa)), isa);
  EXPECT_FALSE(isa_by_name("avx10").has_value());
}

}  // namespace
}  // namespace calandra

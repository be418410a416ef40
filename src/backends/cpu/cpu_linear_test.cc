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
        const OwnedWeight weight(backend, {w.tensor});
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

// An FP8 matrix of all codes but NaN, with a scale for every block, and the f32 matrix that it means.
struct Fp8Matrix {
  Fp8Matrix(int64_t N, int64_t K, int64_t block_n, int64_t block_k, unsigned seed)
      : values(DType::kF8E4M3, {N, K}, 3),
        scales(random_matrix(DType::kF32, (N + block_n - 1) / block_n, (K + block_k - 1) / block_k, seed)),
        meaning(DType::kF32, {N, K}),
        stored{values.tensor, scales.tensor, block_n, block_k} {
    std::mt19937 engine(seed);
    for (int64_t n = 0; n < N; ++n)
      for (int64_t k = 0; k < K; ++k) {
        uint32_t code = engine() & 0xff;
        if (code % 4 == 0) code &= 0x87;  // more subnormals and zeros
        if ((code & 0x7f) == 0x7f) code = 0;
        const auto value = f8_e4m3::from_bits(static_cast<uint8_t>(code));
        values.tensor.as<f8_e4m3>()[n * values.tensor.stride(0) + k] = value;
        put(meaning.tensor, n, k, static_cast<float>(value) * get(scales.tensor, n / block_n, k / block_k));
      }
  }
  Owned values, scales, meaning;
  StoredMatrix stored;
};

TEST_P(CpuLinearTest, Fp8IsTheChainOfItsMeaning) {
  const FlushDenormals flush;
  const struct {
    int64_t N, K, block_n, block_k;
  } cases[] = {{1, 1, 128, 128},   {33, 7, 128, 128}, {192, 300, 128, 128}, {65, 257, 16, 100},
               {31, 1031, 5, 384}, {70, 600, 1, 600}, {64, 512, 32, 3},     {97, 255, 128, 64}};
  unsigned seed = 1;
  int64_t checked = 0;
  for (const auto& c : cases)
    for (const DType type : {DType::kF32, DType::kBF16}) {
      seed += 2;
      const Fp8Matrix w(c.N, c.K, c.block_n, c.block_k, seed);
      const OwnedWeight weight(backend, w.stored);
      const Owned x = random_matrix(type, 200, c.K, seed + 1, seed % 5);
      for (const int64_t rows : {1, 2, 3, 5, 6, 7, 12, 13, 24, 25, 95, 97, 200}) {
        workspace.reset();
        const Tensor y = ops::linear(ctx, x.tensor.slice(0, 0, rows), weight.weight, DType::kF32);
        const int64_t step = rows < 8 ? 1 : 23;
        for (int64_t r = 0; r < rows; r += step)
          for (int64_t n = 0; n < c.N; ++n, ++checked)
            ASSERT_PRED2(same_bits, get(y, r, n), chain(x.tensor, r, w.meaning.tensor, n))
                << "N " << c.N << " K " << c.K << " block_k " << c.block_k << " rows " << rows << " at " << r << " "
                << n;
      }
    }
  EXPECT_GT(checked, 50'000);
}

TEST_P(CpuLinearTest, Fp8EveryCodeAlone) {
  const FlushDenormals flush;  // as in the pool's threads: subnormal codes must live on
  Owned values(DType::kF8E4M3, {256, 1}), scales(DType::kF32, {256, 1}), x(DType::kF32, {30, 1});
  for (int code = 0; code < 256; ++code) {
    values.tensor.as<f8_e4m3>()[code] = f8_e4m3::from_bits(static_cast<uint8_t>(code));
    put(scales.tensor, code, 0, 0x1p-20f * static_cast<float>(code + 1));
  }
  for (int r = 0; r < 30; ++r) put(x.tensor, r, 0, static_cast<float>(r - 7));
  const OwnedWeight weight(backend, {values.tensor, scales.tensor, 1, 128});
  for (const int64_t rows : {1, 3, 30}) {
    workspace.reset();
    const Tensor y = ops::linear(ctx, x.tensor.slice(0, 0, rows), weight.weight, DType::kF32);
    for (int64_t r = 0; r < rows; ++r)
      for (int code = 0; code < 256; ++code) {
        const float value = static_cast<float>(f8_e4m3::from_bits(static_cast<uint8_t>(code)));
        if ((code & 0x7f) == 0x7f) {
          EXPECT_TRUE(std::isnan(get(y, r, code))) << code;
        } else {
          const float expected = std::fma(get(x.tensor, r, 0), value * get(scales.tensor, code, 0), 0.0f);
          ASSERT_PRED2(same_bits, get(y, r, code), expected) << code << " row " << r;
        }
      }
  }
}

TEST_P(CpuLinearTest, Fp8RowsAndFusedOps) {
  constexpr int64_t kD = 290, kF = 333;
  const Fp8Matrix gate(kF, kD, 128, 128, 1), up(kF, kD, 128, 128, 2), down(kD, kF, 128, 128, 3);
  const OwnedWeight pg(backend, gate.stored), pu(backend, up.stored), pd(backend, down.stored);
  for (const int64_t rows : {1, 5, 40, 200}) {
    const Owned x = random_matrix(DType::kBF16, rows, kD, 4, 3), residual = random_matrix(DType::kBF16, rows, kD, 5, 1);
    workspace.reset();
    Tensor fused = workspace.alloc(DType::kBF16, {rows, kD}), parts = workspace.alloc(DType::kBF16, {rows, kD}),
           one = workspace.alloc(DType::kBF16, {1, kD});
    backend.swiglu_mlp(ctx, x.tensor, {pg.weight, pu.weight}, pd.weight, residual.tensor, fused);
    backend.Backend::swiglu_mlp(ctx, x.tensor, {pg.weight, pu.weight}, pd.weight, residual.tensor, parts);
    EXPECT_EQ(std::memcmp(fused.data(), parts.data(), static_cast<size_t>(fused.bytes())), 0) << "rows " << rows;
    for (int64_t r = 0; r < rows; ++r) {
      backend.swiglu_mlp(ctx, x.tensor.slice(0, r, r + 1), {pg.weight, pu.weight}, pd.weight,
                         residual.tensor.slice(0, r, r + 1), one);
      ASSERT_EQ(std::memcmp(one.data(), fused.bytes_at(r * kD), static_cast<size_t>(one.bytes())), 0) << "row " << r;
    }
  }
  Owned ids(DType::kI32, {3});
  for (int32_t i = 0; i < 3; ++i) ids.tensor.as<int32_t>()[i] = i * 150;
  const Tensor rows = ops::embedding(ctx, ids.tensor, pg.weight, DType::kF32);
  for (int64_t i = 0; i < 3; ++i)
    for (int64_t k = 0; k < kD; ++k)
      ASSERT_PRED2(same_bits, get(rows, i, k), get(gate.meaning.tensor, i * 150, k)) << i << " " << k;
}

TEST_P(CpuLinearTest, ManyRowsEqualSingleRows) {
  constexpr int64_t kN = 70, kK = 520;
  const Owned w = random_matrix(DType::kBF16, kN, kK, 1);
  const OwnedWeight weight(backend, {w.tensor});
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
  const OwnedWeight pa(backend, {a.tensor}), pb(backend, {b.tensor}), pc(backend, {c.tensor}), pd(backend, {d.tensor});
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
    const OwnedWeight pg(backend, {gate.tensor}), pu(backend, {up.tensor}), pd(backend, {down.tensor});
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
      const OwnedWeight weight(backend, {w.tensor});
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
  const OwnedWeight weight(backend, {w.tensor});
  const Tensor x = workspace.alloc(DType::kBF16, {0, 50});
  EXPECT_EQ(ops::linear(ctx, x, weight.weight, DType::kF32).numel(), 0);
}

TEST_P(CpuLinearTest, NotANumberStaysInItsRowAndColumn) {
  const Owned w = random_matrix(DType::kBF16, 40, 300, 1), x = random_matrix(DType::kBF16, 14, 300, 2);
  put(w.tensor, 17, 299, NAN);
  put(x.tensor, 3, 0, NAN);
  const OwnedWeight weight(backend, {w.tensor});
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

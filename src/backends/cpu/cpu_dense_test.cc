// Elementwise ops and norms: against their formulas in f64, and bit for bit over instruction sets, threads, row counts
// and places.
#include <gtest/gtest.h>

#include "backends/cpu/cpu_test_setting.h"
#include "ops/attention.h"
#include "ops/dense.h"
#include "ops/norm.h"

namespace calandra {
namespace {

class CpuDenseTest : public CpuTest {
 protected:
  // |got - expected| within one rounding of the type and a few units of f32.
  static void expect_near(DType type, double got, double expected, double scale, const std::string& where) {
    const double unit = type == DType::kBF16 ? 0x1p-8 : 0x1p-24;
    ASSERT_LE(std::abs(got - expected), unit * std::abs(expected) + 16 * 0x1p-24 * scale) << where;
  }
};
GTEST_ALLOW_UNINSTANTIATED_PARAMETERIZED_TEST(CpuDenseTest);

double sigmoid(double x) { return 1 / (1 + std::exp(-x)); }

TEST_P(CpuDenseTest, ElementwiseOpsFollowTheirFormulas) {
  for (const DType type : {DType::kF32, DType::kBF16})
    for (const int64_t n : {1, 7, 8, 15, 16, 33, 3000}) {
      const Owned a = random_matrix(type, 20, n, 1, 3), b = random_matrix(type, 20, n, 2, 1);
      put(a.tensor, 0, 0, 95.0f);
      put(a.tensor, 1, 0, -95.0f);
      workspace.reset();
      const Tensor silu = ops::silu_mul(ctx, a.tensor, b.tensor), gated = ops::sigmoid_mul(ctx, b.tensor, a.tensor),
                   plain = ops::sigmoid(ctx, a.tensor), sum = ops::add(ctx, a.tensor, b.tensor);
      for (int64_t r = 0; r < 20; ++r)
        for (int64_t i = 0; i < n; ++i) {
          const double x = get(a.tensor, r, i), y = get(b.tensor, r, i);
          const std::string where = "row " + std::to_string(r) + " column " + std::to_string(i);
          expect_near(DType::kF32, get(plain, r, i), sigmoid(x), 1, where);
          expect_near(type, get(sum, r, i), x + y, 0, where);
          // one rounding of the activation, one of the product
          const double activation = type == DType::kBF16 ? 0x1p-8 : 0;
          expect_near(type, get(silu, r, i), x * sigmoid(x) * y, (1 + activation * 0x1p20) * std::abs(x * y), where);
          expect_near(type, get(gated, r, i), y * sigmoid(x), (1 + activation * 0x1p20) * std::abs(y), where);
        }
    }
}

TEST_P(CpuDenseTest, NormsFollowTheirFormulas) {
  constexpr float kEps = 1e-6f;
  for (const DType type : {DType::kF32, DType::kBF16})
    for (const int64_t D : {1, 5, 16, 40, 128, 1031}) {
      constexpr int64_t kT = 9, kH = 3;
      const Owned wide = random_matrix(type, kT, kH * D, 1, 7), gate = random_matrix(type, kT, kH * D, 2, 2),
                  weight = random_matrix(DType::kF32, 1, D, 3);
      const Tensor w = weight.tensor[0];
      const Tensor x = wide.tensor.view({kT, kH, D}), z = gate.tensor.view({kT, kH, D});
      workspace.reset();
      const Tensor norm = ops::rms_norm(ctx, x, w, kEps, 1),
                   plain = ops::rms_norm(ctx, wide.tensor.slice(1, 0, D), w, kEps, 0);
      const Tensor with_silu = ops::gated_rms_norm(ctx, x, z, w, kEps, ops::GateActivation::kSilu);
      const Tensor with_sigmoid = ops::gated_rms_norm(ctx, x, z, w, kEps, ops::GateActivation::kSigmoid);
      for (int64_t t = 0; t < kT; ++t)
        for (int64_t h = 0; h < kH; ++h) {
          double squares = 0;
          for (int64_t d = 0; d < D; ++d) squares += std::pow(get(wide.tensor, t, h * D + d), 2);
          const double scale = 1 / std::sqrt(squares / static_cast<double>(D) + kEps);
          for (int64_t d = 0; d < D; ++d) {
            const double v = get(wide.tensor, t, h * D + d) * scale, g = get(gate.tensor, t, h * D + d),
                         m = get(w.view({1, D}), 0, d);
            const std::string where =
                "row " + std::to_string(t) + " head " + std::to_string(h) + " at " + std::to_string(d);
            expect_near(type, get(norm.view({kT, kH * D}), t, h * D + d), v * (1 + m), std::abs(v) * (1 + std::abs(m)),
                        where);
            if (h == 0) expect_near(type, get(plain, t, d), v * m, std::abs(v * m), where);
            expect_near(type, get(with_silu.view({kT, kH * D}), t, h * D + d), v * m * g * sigmoid(g),
                        std::abs(v * m * g), where);
            expect_near(type, get(with_sigmoid.view({kT, kH * D}), t, h * D + d), v * m * sigmoid(g), std::abs(v * m),
                        where);
          }
        }
    }
}

TEST_P(CpuDenseTest, AddRmsNormEqualsItsParts) {
  for (const DType type : {DType::kF32, DType::kBF16})
    for (const int64_t rows : {1, 50}) {
      const Owned x = random_matrix(type, rows, 1000, 1, 1), y = random_matrix(type, rows, 1000, 2, 5),
                  weight = random_matrix(DType::kF32, 1, 1000, 3);
      workspace.reset();
      const auto [sum, norm] = ops::add_rms_norm(ctx, x.tensor, y.tensor, weight.tensor[0], 1e-6f, 1);
      Tensor sum_of_parts = workspace.alloc(type, sum.shape()), norm_of_parts = workspace.alloc(type, sum.shape());
      backend.Backend::add_rms_norm(ctx, x.tensor, y.tensor, weight.tensor[0], 1e-6f, 1, sum_of_parts, norm_of_parts);
      EXPECT_EQ(std::memcmp(sum.data(), sum_of_parts.data(), static_cast<size_t>(sum.bytes())), 0);
      EXPECT_EQ(std::memcmp(norm.data(), norm_of_parts.data(), static_cast<size_t>(sum.bytes())), 0);
    }
}

TEST_P(CpuDenseTest, RopeTurnsPairsAndKeepsTheRest) {
  constexpr int64_t kT = 30, kH = 3, kDh = 80;
  for (const DType type : {DType::kF32, DType::kBF16})
    for (const int64_t half : {1, 8, 11, 16, 40}) {
      const Owned x = random_matrix(type, kT, kH * kDh, 1, 9), table = random_matrix(type, 2 * kT, half, 2);
      workspace.reset();
      const Tensor y =
          ops::rope(ctx, x.tensor.view({kT, kH, kDh}), table.tensor.view({2, kT, half})).view({kT, kH * kDh});
      for (int64_t t = 0; t < kT; ++t)
        for (int64_t i = 0; i < kH * kDh; ++i) {
          const int64_t d = i % kDh;
          float expected = get(x.tensor, t, i);
          if (d < 2 * half) {
            const float c = get(table.tensor, t, d % half), s = get(table.tensor, kT + t, d % half);
            const float other = d < half ? -get(x.tensor, t, i + half) : get(x.tensor, t, i - half);
            expected = as_type(type, expected * c + other * s);
          }
          ASSERT_PRED2(same_bits, get(y, t, i), expected) << t << " " << i << " half " << half;
        }
    }
}

TEST_P(CpuDenseTest, GatherCopiesRows) {
  const Owned x = random_matrix(DType::kBF16, 12, 33, 1, 4);
  Owned rows(DType::kI32, {40});
  for (int32_t i = 0; i < 40; ++i) rows.tensor.as<int32_t>()[i] = i * 5 % 12;
  const Tensor y = ops::gather_rows(ctx, x.tensor, rows.tensor);
  for (int64_t i = 0; i < 40; ++i)
    for (int64_t d = 0; d < 33; ++d) ASSERT_EQ(get(y, i, d), get(x.tensor, i * 5 % 12, d));
}

// All results as bytes, for rows [begin, end) of fixed inputs.
std::vector<std::byte> results(const CpuSetting& setting, DType type, int64_t begin, int64_t end) {
  constexpr int64_t kT = 40, kD = 1031;
  CpuBackend backend(setting.threads, setting.isa);
  Workspace counting;
  counting.alloc(DType::kU8, {4 << 20});
  Workspace workspace(counting, Buffer::host(counting.bytes()));
  OneRank communicator;
  ExecContext ctx{backend, workspace, communicator};
  const Owned a = random_matrix(type, kT, kD, 1, 1), b = random_matrix(type, kT, kD, 2),
              w = random_matrix(DType::kF32, 1, kD, 3);
  const Tensor x = a.tensor.slice(0, begin, end), y = b.tensor.slice(0, begin, end);
  const Tensor all[] = {ops::silu_mul(ctx, x, y),
                        ops::sigmoid_mul(ctx, x, y),
                        ops::sigmoid(ctx, x),
                        ops::add(ctx, x, y),
                        ops::rms_norm(ctx, x, w.tensor[0], 1e-6f, 1),
                        ops::gated_rms_norm(ctx, x.view({-1, 1, kD}), y.view({-1, 1, kD}), w.tensor[0], 1e-6f,
                                            ops::GateActivation::kSilu)};
  std::vector<std::byte> bytes;
  for (int64_t t = 0; t < end - begin; ++t)
    for (const Tensor& result : all) {
      const Tensor row = result[t];
      bytes.insert(bytes.end(), row.bytes_at(0), row.bytes_at(0) + row.bytes());
    }
  return bytes;
}

TEST_P(CpuDenseTest, BitsDependOnNeitherMachineNorRows) {
  for (const DType type : {DType::kF32, DType::kBF16}) {
    const std::vector<std::byte> expected = results({machine_isas().front(), 1}, type, 0, 40);
    EXPECT_EQ(results(GetParam(), type, 0, 40), expected);
    std::vector<std::byte> joined;
    for (const auto& [begin, end] : {std::pair<int64_t, int64_t>{0, 1}, {1, 3}, {3, 40}}) {
      const std::vector<std::byte> part = results(GetParam(), type, begin, end);
      joined.insert(joined.end(), part.begin(), part.end());
    }
    EXPECT_EQ(joined, expected);
  }
}

INSTANTIATE_TEST_SUITE_P(Machine, CpuDenseTest, testing::ValuesIn(cpu_settings()), cpu_setting_name);

}  // namespace
}  // namespace calandra

// Biases of linear ops on every backend: added to the f32 sum before its one rounding, whatever the weight's format.
#include "tests/ops/op_setting.h"

namespace calandra {
namespace {

using Results = std::vector<Tensor>;
constexpr DType kTypes[] = {DType::kF32, DType::kBF16};

class BiasOps : public OpTest {
 protected:
  PackedWeight with_bias(OpRunner& on, const StoredMatrix& source, const Tensor& bias) {
    PackedWeight weight = on.weight(source);
    weight.bias = bias;
    return weight;
  }
  // [N, K] of f8 in blocks of 32
  StoredMatrix f8(int64_t N, int64_t K) {
    const Tensor values = pool.zeros(DType::kF8E4M3, {N, K});
    for (int64_t i = 0; i < N * K; ++i)
      values.as<f8_e4m3>()[i] = f8_e4m3::from_bits(static_cast<uint8_t>(i * 37 % 256 & 0xbf));
    return {values, random(pool, DType::kF32, {(N + 31) / 32, (K + 31) / 32}, 9, 0.2f, 0.5f), 32, 32};
  }
};

TEST_P(BiasOps, EqualTheReference) {
  for (const DType dtype : kTypes)
    for (const int64_t K : {1, 31, 257})
      for (const int64_t T : {1, 5, 40, 130}) {
        const Tensor x = random(pool, dtype, {T, K}, 1, 1, 0, 3), a = random(pool, DType::kBF16, {33, K}, 2),
                     b = random(pool, DType::kF32, {5, K}, 3), c = random(pool, DType::kF16, {64, K}, 4),
                     a_bias = random(pool, DType::kF32, {33}, 5, 20), c_bias = random(pool, DType::kF32, {64}, 6, 20),
                     d_bias = random(pool, DType::kF32, {40}, 7, 20);
        const StoredMatrix d = f8(40, K);
        compare("linear with and without bias", {.reduction = K}, [&](OpRunner& on) {
          const LinearPack pack{with_bias(on, {a}, a_bias), on.weight(b), with_bias(on, {c}, c_bias),
                                with_bias(on, d, d_bias)};
          const ops::PackResult parts = on.run([&](ExecContext& ctx) { return ops::linear(ctx, x, pack); });
          return Results{Tensor(parts[0].data(), dtype, {T, 142})};
        });
      }
}

// x = 0: what comes out is the bias, rounded once, and with a residual once more.
TEST_P(BiasOps, IsRoundedOnceWithTheSum) {
  for (const DType dtype : kTypes)
    for (const int64_t T : {1, 7, 100}) {
      const int64_t N = 70, K = 33;
      const Tensor x = pool.zeros(dtype, {T, K}), w = random(pool, DType::kBF16, {N, K}, 2),
                   bias = random(pool, DType::kF32, {N}, 3, 5), residual = random(pool, dtype, {T, N}, 4);
      const PackedWeight weight = with_bias(tested, {w}, bias);
      const Tensor y = tested.run([&](ExecContext&ctx) { return ops::linear(ctx, x, weight, dtype); }),
                   sum = tested.run([&](ExecContext&ctx) { return ops::linear_add(ctx, x, weight, residual); });
      const auto rounded = [&](float value) { return dtype == DType::kBF16 ? static_cast<float>(bf16(value)) : value; };
      for (int64_t t = 0; t < T; ++t)
        for (int64_t n = 0; n < N; ++n) {
          const float product = rounded(bias.as<float>()[n]);
          ASSERT_EQ(element(y, t, n), product) << t << " " << n << " on " << name();
          ASSERT_EQ(element(sum, t, n), rounded(element(residual, t, n) + product))
              << t << " " << n << " on " << name();
        }
    }
}

TEST_P(BiasOps, SwigluMlpWithBiases) {
  for (const DType dtype : kTypes) {
    const int64_t T = 9, D = 50, F = 70;
    const Tensor x = random(pool, dtype, {T, D}, 1), residual = random(pool, dtype, {T, D}, 2),
                 gate = random(pool, DType::kBF16, {F, D}, 3, 0.3f), up = random(pool, DType::kBF16, {F, D}, 4, 0.3f),
                 down = random(pool, DType::kBF16, {D, F}, 5, 0.3f), inner = random(pool, DType::kF32, {F}, 6),
                 outer = random(pool, DType::kF32, {D}, 7);
    compare("swiglu_mlp", {.reduction = D + F, .roundings = 3}, [&](OpRunner& on) {
      const LinearPack gate_up{with_bias(on, {gate}, inner), with_bias(on, {up}, inner)};
      const PackedWeight weight = with_bias(on, {down}, outer);
      return Results{on.run([&](ExecContext& ctx) { return ops::swiglu_mlp(ctx, x, gate_up, weight, residual); })};
    });
  }
}

CALANDRA_ON_ALL_BACKENDS(BiasOps);

}  // namespace
}  // namespace calandra

// Normalisations on every backend against the reference, and against numbers made by hand.
#include "tests/ops/op_setting.h"

namespace calandra {
namespace {

using Results = std::vector<Tensor>;
constexpr DType kTypes[] = {DType::kF32, DType::kBF16};

class NormOps : public OpTest {};

TEST_P(NormOps, EqualTheReference) {
  for (const DType dtype : kTypes)
    for (const int64_t D : {1, 24, 128, 1031})
      for (const int64_t T : {0, 1, 19}) {
        const Tensor weight = random(pool, DType::kF32, {D}, 1), x = random(pool, dtype, {T, D}, 2, 3, 0, 5),
                     y = random(pool, dtype, {T, D}, 3, 1, 0, 2), heads = random(pool, dtype, {T, 3, D}, 4, 2, 0, 7),
                     z = random(pool, dtype, {T, 3, D}, 5, 4, 0, 4);
        const auto of = [&](const char* op, double roundings, auto function) {
          compare(op, {.reduction = D, .roundings = roundings}, [&](OpRunner& on) { return on.run(function); });
        };
        for (const float offset : {0.0f, 1.0f}) {
          of("rms_norm 2-D", 1,
             [&](ExecContext& ctx) { return Results{ops::rms_norm(ctx, x, weight, 1e-6f, offset)}; });
          of("rms_norm 3-D", 1,
             [&](ExecContext& ctx) { return Results{ops::rms_norm(ctx, heads, weight, 1e-5f, offset)}; });
          of("add_rms_norm", 2, [&](ExecContext& ctx) {
            const auto [sum, norm] = ops::add_rms_norm(ctx, x, y, weight, 1e-6f, offset);
            return Results{sum, norm};
          });
        }
        const Tensor own = random(pool, DType::kF32, {3, D}, 6);  // a weight for each head
        of("rms_norm of heads", 1, [&](ExecContext& ctx) { return Results{ops::rms_norm(ctx, heads, own, 1e-6f, 0)}; });
        for (const auto act : {ops::GateActivation::kSilu, ops::GateActivation::kSigmoid})
          for (const DType out : kTypes)
            of("gated_rms_norm", 1, [&](ExecContext& ctx) {
              return Results{ops::gated_rms_norm(ctx, heads, z, weight, 1e-6f, act),
                             ops::gated_rms_norm(ctx, heads, z, own, 1e-6f, act, out)};
            });
      }
}

// Exact bits: neither the other rows, nor whether sum and norm are asked for in one.
TEST_P(NormOps, ARowAloneIsTheRowInTheBatch) {
  for (const DType dtype : kTypes) {
    const int64_t T = 21, D = 515;
    const Tensor weight = random(pool, DType::kF32, {D}, 1), x = random(pool, dtype, {T, D}, 2, 3, 0, 5),
                 y = random(pool, dtype, {T, D}, 3);
    const auto all = [&](int64_t begin, int64_t end) {
      return tested.run([&](ExecContext& ctx) {
        const Tensor a = x.slice(0, begin, end), b = y.slice(0, begin, end);
        const auto [sum, norm] = ops::add_rms_norm(ctx, a, b, weight, 1e-6f, 1);
        return Results{sum, norm, ops::add(ctx, a, b), ops::rms_norm(ctx, sum, weight, 1e-6f, 1),
                       ops::gated_rms_norm(ctx, a.view({end - begin, 1, D}), b.view({end - begin, 1, D}), weight, 1e-6f,
                                           ops::GateActivation::kSilu)};
      });
    };
    const Results whole = all(0, T);
    EXPECT_EQ(row_bytes(whole[0]), row_bytes(whole[2])) << "sum";
    EXPECT_EQ(row_bytes(whole[1]), row_bytes(whole[3])) << "norm";
    for (int64_t t = 0; t < T; ++t) {
      const Results alone = all(t, t + 1);
      for (size_t i = 0; i < whole.size(); ++i)
        ASSERT_EQ(row_bytes(alone[i]), row_bytes(whole[i], t, t + 1))
            << "result " << i << " row " << t << " on " << name();
    }
  }
}

TEST_P(NormOps, NumbersMadeByHand) {
  const auto row = [&](const std::vector<float>& values) {
    const Tensor x = pool.zeros(DType::kF32, {1, 1, static_cast<int64_t>(values.size())});
    std::copy(values.begin(), values.end(), x.as<float>());
    return x;
  };
  // mean(x^2) = (1 + 49) / 2 = 25
  const Tensor x = row({1, -7}), weight = row({0.5f, 2}).view({2}), z = row({0, std::log(3.0f)});
  const auto norm = [&](float offset) {
    return tested.run([&](ExecContext& ctx) { return ops::rms_norm(ctx, x, weight, 0, offset); });
  };
  const auto gated = [&](ops::GateActivation act) {
    return tested.run([&](ExecContext& ctx) { return ops::gated_rms_norm(ctx, x, z, weight, 0, act); });
  };
  EXPECT_TRUE(close_to(norm(0), row({0.1f, -2.8f}), {}, "rms_norm", name()));
  EXPECT_TRUE(close_to(norm(1), row({0.3f, -4.2f}), {}, "rms_norm", name()));
  EXPECT_TRUE(close_to(gated(ops::GateActivation::kSigmoid), row({0.05f, -2.1f}), {}, "gated_rms_norm", name()));
  EXPECT_TRUE(
      close_to(gated(ops::GateActivation::kSilu), row({0, -2.1f * std::log(3.0f)}), {}, "gated_rms_norm", name()));
  const Tensor with_eps =
      tested.run([&](ExecContext& ctx) { return ops::rms_norm(ctx, x, weight, 11, 0); });  // 25 + 11 = 36
  EXPECT_TRUE(close_to(with_eps, row({0.5f / 6, -14.0f / 6}), {}, "rms_norm", name()));
}

CALANDRA_ON_ALL_BACKENDS(NormOps);

}  // namespace
}  // namespace calandra

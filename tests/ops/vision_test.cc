// Ops of vision towers on every backend against the reference, against numbers made by hand, and properties.
#include <numbers>

#include "tests/ops/op_setting.h"

namespace calandra {
namespace {

using Results = std::vector<Tensor>;
constexpr DType kTypes[] = {DType::kF32, DType::kBF16};

// Queries, keys and values of P patches as a tower has them: columns of one matrix.
struct Heads {
  int64_t H, Dh;
  DType dtype;
};
constexpr float kSize = 2;  // of queries and keys

class VisionOps : public OpTest {
 protected:
  Tensor qkv(const Heads& d, int64_t P, uint64_t seed = 1) {
    const Tensor rows = random(pool, d.dtype, {P, 3 * d.H * d.Dh}, seed, kSize, 0, 5);
    for (int64_t p = 0; p < P; ++p)  // values above 1, so that their mean is not small beside them
      for (int64_t i = 2 * d.H * d.Dh; i < 3 * d.H * d.Dh; ++i) set_element(rows, p, i, element(rows, p, i) + 3);
    return rows;
  }
  // Patches [begin, end) of `rows`, cut into segments of these lengths.
  Tensor attend(OpRunner& on, const Heads& d, const Tensor& rows, const std::vector<int32_t>& lengths,
                int64_t begin = 0) {
    std::vector<int32_t> start{0};
    for (const int32_t length : lengths) start.push_back(start.back() + length);
    const Tensor some = rows.slice(0, begin, begin + start.back()), starts = pool.ints(start);
    const auto part = [&](int64_t i) {
      return some.slice(1, i * d.H * d.Dh, (i + 1) * d.H * d.Dh).view({some.size(0), d.H, d.Dh});
    };
    const float scale = 1 / std::sqrt(static_cast<float>(d.Dh));
    return on.run(
        [&](ExecContext& ctx) { return ops::segment_attention(ctx, part(0), part(1), part(2), starts, scale); });
  }
  Tensor matrix(Shape shape, const std::vector<float>& values) {
    const Tensor x = pool.zeros(DType::kF32, shape);
    std::copy(values.begin(), values.end(), x.as<float>());
    return x;
  }
};

TEST_P(VisionOps, LayerNormEqualsTheReference) {
  for (const DType dtype : kTypes)
    for (const int64_t D : {1, 24, 72, 1031})
      for (const int64_t P : {0, 1, 19})
        for (const float offset : {0.0f, 2.0f}) {
          const Tensor x = random(pool, dtype, {P, D}, 1, 3, offset, 5), weight = random(pool, DType::kF32, {D}, 2),
                       bias = random(pool, DType::kF32, {D}, 3);
          compare("layer_norm", {.reduction = D}, [&](OpRunner& on) {
            return Results{on.run([&](ExecContext& ctx) { return ops::layer_norm(ctx, x, weight, bias, 1e-6f); })};
          });
        }
}

TEST_P(VisionOps, LayerNormOfNumbersMadeByHand) {
  // mean 2, variance ((1)^2 + (1)^2) / 2 = 1; with eps 3 the deviation is 2
  const Tensor x = matrix({1, 2}, {1, 3}), weight = matrix({2}, {10, 20}), bias = matrix({2}, {0.5f, -0.5f});
  const auto norm = [&](float eps) {
    return tested.run([&](ExecContext& ctx) { return ops::layer_norm(ctx, x, weight, bias, eps); });
  };
  EXPECT_TRUE(close_to(norm(0), matrix({1, 2}, {-9.5f, 19.5f}), {}, "layer_norm", name()));
  EXPECT_TRUE(close_to(norm(3), matrix({1, 2}, {-4.5f, 9.5f}), {}, "layer_norm", name()));
}

// Of a number x, in units of u = 2^-24 (half an ulp):
//   erf   |x| 1.5e-7 / 2 of the polynomial; its roundings, the division and e^(-x^2 / 2) within 8 u of a Phi(-|x|)
//         below 1/2, the exponent's rounding times x^2 / 2 e^(-x^2 / 2) <= 0.37: |x| 8 u; one more and the product
//   tanh  the exponent 2 u(x) has five roundings, which its size multiplies; e, sum and quotient 8 u
TEST_P(VisionOps, GeluStaysWithinItsBounds) {
  constexpr double u = 0x1p-24;
  for (const DType dtype : kTypes)
    for (const int64_t D : {1, 7, 72, 1031}) {
      const int64_t P = 4000 / D + 1;
      const Tensor x = random(pool, dtype, {P, D}, D, 12, 0, 3);
      for (const auto form : {ops::GeluForm::kErf, ops::GeluForm::kTanh}) {
        const Tensor y = tested.run([&](ExecContext& ctx) { return ops::gelu(ctx, x, form); });
        for (int64_t p = 0; p < P; ++p)
          for (int64_t i = 0; i < D; ++i) {
            const double v = element(x, p, i), inner = 2 * std::sqrt(2 / std::numbers::pi) * (v + 0.044715 * v * v * v);
            const double want =
                form == ops::GeluForm::kErf ? v / 2 * std::erfc(-v / std::numbers::sqrt2) : v / (1 + std::exp(-inner));
            double bound = form == ops::GeluForm::kErf ? std::fabs(v) * (0.75e-7 + 10 * u)
                                                       : std::fabs(want) * u * (8 + 5 * std::fabs(inner));
            if (dtype == DType::kBF16) bound += std::fabs(want) * 0x1p-8;
            ASSERT_NEAR(element(y, p, i), want, bound + kFlushed) << "gelu of " << v << " on " << name();
          }
      }
    }
}

TEST_P(VisionOps, WeightedRows) {
  for (const DType dtype : kTypes)
    for (const int64_t D : {1, 72, 515})
      for (const int64_t P : {0, 1, 33}) {
        const int64_t N = 9, J = 4;
        const Tensor table = random(pool, DType::kF32, {N, D}, 1, 1, 2),
                     weight = random(pool, DType::kF32, {P, J}, 2, 0.5f, 0.5f), index = pool.zeros(DType::kI32, {P, J});
        for (int64_t i = 0; i < P * J; ++i) index.as<int32_t>()[i] = static_cast<int32_t>(i * 7 % N);
        compare("weighted_rows", {.reduction = J}, [&](OpRunner& on) {
          return Results{
              on.run([&](ExecContext& ctx) { return ops::weighted_rows(ctx, table, index, weight, dtype); })};
        });
      }
  const Tensor table = matrix({3, 2}, {1, 10, 2, 20, 4, 40}), weight = matrix({1, 3}, {0.5f, 0.25f, 2}),
               index = pool.ints({2, 0, 2}).view({1, 3});
  const Tensor y =
      tested.run([&](ExecContext& ctx) { return ops::weighted_rows(ctx, table, index, weight, DType::kF32); });
  EXPECT_TRUE(close_to(y, matrix({1, 2}, {10.25f, 102.5f}), {}, "weighted_rows", name()));
}

// A score is a sum of Dh products of up to kSize^2 times Dh^-1/2: in f32 it is off by a few eps of sqrt(Dh) kSize^2,
// and a weight by as much of itself.
TEST_P(VisionOps, SegmentAttentionEqualsTheReference) {
  const std::vector<std::vector<int32_t>> cuts = {{1}, {3}, {16, 1, 4}, {47, 48, 49, 0, 96}, {127, 128, 129}, {300, 2}};
  for (const Heads& d : {Heads{2, 72, DType::kF32},
                         {2, 72, DType::kBF16},
                         {1, 4, DType::kF32},
                         {3, 64, DType::kBF16},
                         {1, 80, DType::kF32},
                         {1, 20, DType::kBF16},
                         {1, 260, DType::kF32}})
    for (const auto& cut : cuts) {
      int64_t P = 0;
      for (const int32_t length : cut) P += length;
      const Tensor rows = qkv(d, P);
      const double scores = std::sqrt(static_cast<double>(d.Dh)) * kSize * kSize;
      compare("segment_attention Dh " + std::to_string(d.Dh) + " P " + std::to_string(P),
              {.c = 4 + scores, .reduction = P}, [&](OpRunner& on) { return Results{attend(on, d, rows, cut)}; });
    }
}

TEST_P(VisionOps, APatchAloneGetsItsOwnValue) {
  for (const Heads& d : {Heads{2, 72, DType::kF32}, {3, 20, DType::kBF16}}) {
    const Tensor rows = qkv(d, 5), y = attend(tested, d, rows, {1, 1, 1, 1, 1});
    const Tensor v = rows.slice(1, 2 * d.H * d.Dh, 3 * d.H * d.Dh);
    EXPECT_EQ(row_bytes(y), row_bytes(v)) << name();
  }
}

// Equal keys: the mean of the values. A large score: the value of its key.
TEST_P(VisionOps, SegmentAttentionOfNumbersMadeByHand) {
  const int64_t P = 200, Dh = 8;
  const Tensor q = pool.zeros(DType::kF32, {P, 1, Dh}), k = pool.zeros(DType::kF32, {P, 1, Dh}),
               v = pool.zeros(DType::kF32, {P, 1, Dh}), starts = pool.ints({0, 150, 200});
  for (int64_t p = 0; p < P; ++p)
    for (int64_t i = 0; i < Dh; ++i) {
      q.as<float>()[p * Dh + i] = 1;
      v.as<float>()[p * Dh + i] = static_cast<float>(p);
    }
  const auto run = [&] {
    return tested.run([&](ExecContext& ctx) { return ops::segment_attention(ctx, q, k, v, starts, 1); });
  };
  const Tensor mean = run();
  for (int64_t p = 0; p < P; ++p) EXPECT_NEAR(element(mean, p, 5), p < 150 ? 74.5 : 174.5, 1e-3) << p;
  for (int64_t i = 0; i < Dh; ++i) {
    k.as<float>()[137 * Dh + i] = 100;  // behind the first block of keys
    k.as<float>()[160 * Dh + i] = 100;
  }
  const Tensor one = run();
  for (int64_t p = 0; p < P; ++p) EXPECT_EQ(element(one, p, 0), p < 150 ? 137 : 160) << p;
}

// Exact bits: alone, between other segments, and whatever those hold.
TEST_P(VisionOps, SegmentsDoNotSeeEachOther) {
  for (const Heads& d : {Heads{2, 72, DType::kF32}, {1, 20, DType::kBF16}}) {
    const std::vector<int32_t> lengths = {130, 1, 48, 300, 17};
    const Tensor rows = qkv(d, 496), whole = attend(tested, d, rows, lengths);
    int64_t begin = 0;
    for (const int32_t length : lengths) {
      EXPECT_EQ(row_bytes(attend(tested, d, rows, {length}, begin)), row_bytes(whole, begin, begin + length))
          << length << " on " << name();
      begin += length;
    }
    for (int64_t p = 131; p < 179; ++p)
      for (int64_t i = 0; i < 3 * d.H * d.Dh; ++i) set_element(rows, p, i, NAN);
    const Tensor beside_nan = attend(tested, d, rows, lengths);
    EXPECT_EQ(row_bytes(beside_nan, 0, 131), row_bytes(whole, 0, 131)) << name();
    EXPECT_EQ(row_bytes(beside_nan, 179, 496), row_bytes(whole, 179, 496)) << name();
    EXPECT_TRUE(std::isnan(element(beside_nan, 131, 0)));
  }
}

// A query more or less changes nothing for the others.
TEST_P(VisionOps, ARowAloneIsTheRowInTheBatch) {
  for (const DType dtype : kTypes) {
    const int64_t P = 21, D = 515;
    const Tensor x = random(pool, dtype, {P, D}, 1, 4, 0, 5), weight = random(pool, DType::kF32, {D}, 2),
                 bias = random(pool, DType::kF32, {D}, 3);
    const auto all = [&](int64_t begin, int64_t end) {
      return tested.run([&](ExecContext& ctx) {
        const Tensor rows = x.slice(0, begin, end);
        return Results{ops::layer_norm(ctx, rows, weight, bias, 1e-6f), ops::gelu(ctx, rows, ops::GeluForm::kTanh),
                       ops::gelu(ctx, rows, ops::GeluForm::kErf)};
      });
    };
    const Results whole = all(0, P);
    for (int64_t p = 0; p < P; ++p) {
      const Results alone = all(p, p + 1);
      for (size_t i = 0; i < whole.size(); ++i)
        ASSERT_EQ(row_bytes(alone[i]), row_bytes(whole[i], p, p + 1)) << "result " << i << " on " << name();
    }
  }
}

// Queries and keys of a tower are turned in f32: a table of f32 beside rows of bf16.
TEST_P(VisionOps, RopeWithAnF32Table) {
  for (const int64_t half : {1, 18, 36})
    for (const auto pairing : {ops::RopePairing::kHalves, ops::RopePairing::kNeighbours}) {
      const Tensor x = random(pool, DType::kBF16, {9, 2, 80}, 1, 2, 0, 6),
                   table = random(pool, DType::kF32, {2, 9 * half}, 2).view({2, 9, half});
      const Tensor wide = pool.zeros(DType::kF32, {9, 160});
      for (int64_t t = 0; t < 9; ++t)
        for (int64_t i = 0; i < 160; ++i) set_element(wide, t, i, element(x, t, i));
      const Tensor y = tested.run([&](ExecContext&ctx) { return ops::rope(ctx, x, table, pairing); }),
                   exact = tested.run([&](ExecContext&ctx) {
                     return ops::rope(ctx, wide.view({9, 2, 80}), table, pairing);
                   });
      for (int64_t t = 0; t < 9; ++t)
        for (int64_t i = 0; i < 160; ++i)
          ASSERT_EQ(element(y, t, i), static_cast<float>(bf16(element(exact, t, i))))
              << t << " " << i << " on " << name();
      compare("rope", {}, [&](OpRunner& on) {
        return Results{on.run([&](ExecContext& ctx) { return ops::rope(ctx, x, table, pairing); })};
      });
    }
}

TEST_P(VisionOps, ConcatColumns) {
  for (const DType dtype : kTypes)
    for (const int64_t T : {0, 1, 30}) {
      const Tensor a = random(pool, dtype, {T, 5}, 1, 1, 0, 3), b = random(pool, dtype, {T, 64}, 2, 1, 0, 2);
      const Tensor y = tested.run([&](ExecContext& ctx) { return ops::concat_columns(ctx, a, b); });
      ASSERT_EQ(y.shape(), (Shape{T, 69}));
      EXPECT_EQ(row_bytes(y.slice(1, 0, 5)), row_bytes(a)) << name();
      EXPECT_EQ(row_bytes(y.slice(1, 5, 69)), row_bytes(b)) << name();
    }
}

CALANDRA_ON_ALL_BACKENDS(VisionOps);

// The same bits for every instruction set and number of threads of the cpu backend.
TEST(VisionOps, ThreadsAndInstructionSetsDoNotChangeABit) {
  TensorPool pool;
  for (const DType dtype : kTypes) {
    const int64_t P = 400, H = 3, Dh = 72, D = H * Dh;
    const Tensor rows = random(pool, dtype, {P, 3 * D}, 1, 2), weight = random(pool, DType::kF32, {D}, 2),
                 bias = random(pool, DType::kF32, {D}, 3), starts = pool.ints({0, 1, 50, 54, 400});
    std::vector<std::byte> first;
    std::string first_name;
    for (const BackendUnderTest& backend : backends_under_test()) {
      if (backend.name == "reference") continue;
      OpRunner runner(backend.make());
      const auto part = [&](int64_t i) { return rows.slice(1, i * D, (i + 1) * D); };
      const auto heads = [&](int64_t i) { return part(i).view({P, H, Dh}); };
      const Results results = runner.run([&](ExecContext& ctx) {
        return Results{ops::segment_attention(ctx, heads(0), heads(1), heads(2), starts, 0.1f).view({P, D}),
                       ops::layer_norm(ctx, part(0), weight, bias, 1e-6f), ops::gelu(ctx, part(1), ops::GeluForm::kErf),
                       ops::gelu(ctx, part(2), ops::GeluForm::kTanh)};
      });
      std::vector<std::byte> all;
      for (const Tensor& result : results) {
        const auto bytes = row_bytes(result);
        all.insert(all.end(), bytes.begin(), bytes.end());
      }
      if (first.empty()) first = all, first_name = backend.name;
      EXPECT_TRUE(all == first) << backend.name << " and " << first_name << ", " << name_of(dtype);
    }
  }
}

}  // namespace
}  // namespace calandra

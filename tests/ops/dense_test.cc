// Dense ops on every backend against the reference, and against numbers made by hand.
#include <algorithm>
#include <cmath>

#include "backends/cpu/experts_for_test.h"
#include "tests/ops/op_setting.h"

namespace calandra {
namespace {

using Results = std::vector<Tensor>;
constexpr DType kTypes[] = {DType::kF32, DType::kBF16};

class DenseOps : public OpTest {};

TEST_P(DenseOps, LinearOfAPackOfFormats) {
  for (const DType dtype : kTypes)
    for (const int64_t K : {1, 31, 257})
      for (const int64_t T : {0, 1, 5, 40}) {
        const Tensor x = random(pool, dtype, {T, K}, 1, 1, 0, 3), a = random(pool, DType::kBF16, {33, K}, 2),
                     b = random(pool, DType::kF32, {5, K}, 3, 1, 0, 2), c = random(pool, DType::kF16, {64, K}, 4),
                     d = random(pool, DType::kBF16, {1, K}, 5);
        for (const std::optional<DType> out : {std::optional<DType>(), {DType::kF32}})
          compare("linear pack K " + std::to_string(K), {.reduction = K}, [&](OpRunner& on) {
            const LinearPack pack{on.weight(a), on.weight(b), on.weight(c), on.weight(d)};
            const ops::PackResult parts = on.run([&](ExecContext& ctx) { return ops::linear(ctx, x, pack, out); });
            for (const Tensor& part : parts) EXPECT_EQ(part.stride(0), 103);
            // one tensor, whose rows give the scale of its narrow parts
            return Results{Tensor(parts[0].data(), out.value_or(dtype), {T, 103})};
          });
        for (const DType out : kTypes)
          compare("linear", {.reduction = K}, [&](OpRunner& on) {
            const PackedWeight weight = on.weight(a);
            return Results{on.run([&](ExecContext& ctx) { return ops::linear(ctx, x, weight, out); })};
          });
      }
}

TEST_P(DenseOps, LinearOfFp8InBlocks) {
  for (const DType dtype : kTypes)
    for (const int64_t K : {1, 130, 515})
      for (const auto& [block_n, block_k] : {std::pair<int64_t, int64_t>{128, 128}, {1, 515}, {7, 50}})
        for (const int64_t T : {0, 1, 5, 40}) {
          constexpr int64_t kN = 150;
          const Tensor x = random(pool, dtype, {T, K}, 1, 1, 0, 3), other = random(pool, DType::kBF16, {33, K}, 2),
                       values = pool.zeros(DType::kF8E4M3, {kN, K});
          for (int64_t i = 0; i < kN * K; ++i) {
            const auto code = static_cast<uint8_t>(i * 37 % 251);
            values.as<f8_e4m3>()[i] = f8_e4m3::from_bits((code & 0x7f) == 0x7f ? 0 : code);
          }
          const Tensor scales =
              random(pool, DType::kF32, {(kN + block_n - 1) / block_n, (K + block_k - 1) / block_k}, 4, 0.01f, 0.02f);
          const StoredMatrix stored{values, scales, block_n, block_k};
          compare("linear fp8 K " + std::to_string(K), {.reduction = K}, [&](OpRunner& on) {
            const LinearPack pack{on.weight(stored), on.weight(other)};
            const ops::PackResult parts = on.run([&](ExecContext& ctx) { return ops::linear(ctx, x, pack); });
            return Results{Tensor(parts[0].data(), dtype, {T, kN + 33})};
          });
          const Tensor ids = pool.ints({0, kN - 1, -1, 64});
          compare("embedding fp8", {.c = 0, .roundings = 0}, [&](OpRunner& on) {
            const PackedWeight packed = on.weight(stored);
            return Results{on.run([&](ExecContext& ctx) { return ops::embedding(ctx, ids, packed, dtype); })};
          });
        }
}

// Each number alone, exactly. Row 0 of the weight has both NaNs, one in each block of scales, so no other number of it.
TEST_P(DenseOps, LinearOfEveryFp8Number) {
  constexpr int64_t kN = 16, kNumbers = 256;
  const Tensor values = pool.zeros(DType::kF8E4M3, {kN, kNumbers}), scales = pool.zeros(DType::kF32, {1, 2}),
               x = pool.zeros(DType::kBF16, {kNumbers, kNumbers});
  for (int64_t i = 0; i < kN * kNumbers; ++i) {
    const auto code = static_cast<uint8_t>(i);
    values.as<f8_e4m3>()[i] = f8_e4m3::from_bits(i >= kNumbers && (code & 0x7f) == 0x7f ? 0 : code);
  }
  for (int64_t i = 0; i < kNumbers; ++i) x.as<bf16>()[i * kNumbers + i] = bf16(1.0f);
  scales.as<float>()[0] = 0.5f, scales.as<float>()[1] = 3;
  const StoredMatrix stored{values, scales, 128, 128};
  for (const int64_t T : {kNumbers, int64_t{64}, int64_t{17}, int64_t{8}, int64_t{1}})
    for (int64_t first = 0; first < kNumbers; first += T) {
      const int64_t end = std::min(first + T, kNumbers);
      const auto run = [&](OpRunner& on) {
        const PackedWeight weight = on.weight(stored);
        return on.run([&](ExecContext& ctx) { return ops::linear(ctx, x.slice(0, first, end), weight, DType::kF32); });
      };
      const Tensor got = run(tested), want = run(reference);
      for (int64_t i = 0; i < (end - first) * kN; ++i) {
        const float g = got.as<float>()[i], w = want.as<float>()[i];
        ASSERT_TRUE(i % kN == 0 ? std::isnan(g) && std::isnan(w) : g == w)
            << "number " << first + i / kN << ", output " << i % kN << " of " << T << " rows: " << g << ", not " << w;
      }
    }
}

// WeightStore::load packs large matrices so.
TEST_P(DenseOps, PiecesPackedOneBehindTheOtherAreTheWhole) {
  const int64_t kRows = 128, N = 3 * kRows + 5, K = 200;
  for (const DType dtype : {DType::kF32, DType::kBF16, DType::kF16, DType::kF8E4M3}) {
    F8Experts f8(1, N, K, 64, 128, 7);
    const StoredMatrix whole = dtype == DType::kF8E4M3 ? f8.matrices[0] : StoredMatrix{random(pool, dtype, {N, K}, 7)};
    const auto rows = [&](int64_t begin, int64_t end) {
      StoredMatrix part = whole;
      part.values = whole.values.slice(0, begin, end);
      if (dtype == DType::kF8E4M3) part.scales = whole.scales.slice(0, begin / 64, (end + 63) / 64);
      return part;
    };
    const PackedWeight want = tested.weight(whole);
    Backend& backend = tested.backend();
    const Buffer memory = backend.allocate(static_cast<size_t>(want.packed.bytes()));
    for (const int64_t begin : {int64_t{0}, kRows, 3 * kRows}) {
      const int64_t end = begin == 0 ? kRows : begin == kRows ? 3 * kRows : N;
      const size_t before = begin == 0 ? 0 : backend.packed_bytes(rows(0, begin));
      backend.pack_weight(rows(begin, end), static_cast<std::byte*>(memory.data()) + before);
    }
    std::vector<std::byte> got(memory.bytes()), all(memory.bytes());
    backend.copy_bytes(got.data(), memory.data(), got.size());
    backend.copy_bytes(all.data(), want.packed.data(), all.size());
    EXPECT_EQ(got, all) << name_of(dtype);
  }
}

TEST_P(DenseOps, LinearAddAndSwigluMlp) {
  for (const DType dtype : kTypes)
    for (const DType stored : {DType::kF32, DType::kBF16, DType::kF16})
      for (const int64_t T : {0, 1, 3, 30}) {
        const int64_t D = 77, F = 131;
        const Tensor x = random(pool, dtype, {T, D}, 1, 1, 0, 5), residual = random(pool, dtype, {T, D}, 2, 1, 0, 1),
                     gate = random(pool, stored, {F, D}, 3, 0.3f), up = random(pool, stored, {F, D}, 4, 0.3f),
                     down = random(pool, stored, {D, F}, 5, 0.3f), square = random(pool, stored, {D, D}, 6);
        compare("linear_add", {.reduction = D, .roundings = 2}, [&](OpRunner& on) {
          const PackedWeight weight = on.weight(square);
          return Results{on.run([&](ExecContext& ctx) { return ops::linear_add(ctx, x, weight, residual); })};
        });
        // bf16: gate, up, silu and their product are rounded; their errors meet in a random sum of F terms
        compare("swiglu_mlp", {.reduction = D + F, .roundings = 3}, [&](OpRunner& on) {
          const LinearPack gate_up{on.weight(gate), on.weight(up)};
          const PackedWeight weight = on.weight(down);
          return Results{on.run([&](ExecContext& ctx) { return ops::swiglu_mlp(ctx, x, gate_up, weight, residual); })};
        });
      }
}

TEST_P(DenseOps, ElementwiseProducts) {
  for (const DType dtype : kTypes)
    for (const int64_t T : {0, 1, 37})
      for (const int64_t D : {1, 15, 1031}) {
        for (const float scale : {1.0f, 30.0f, 200.0f}) {
          const Tensor x = random(pool, dtype, {T, D}, 1, scale, 0, 3), y = random(pool, dtype, {T, D}, 2, 1, 0, 4);
          const auto of = [&](const char* op, double roundings, auto function) {
            compare(op, {.roundings = roundings},
                    [&](OpRunner& on) { return Results{on.run([&](ExecContext& ctx) { return function(ctx); })}; });
          };
          of("silu_mul", 2, [&](ExecContext& ctx) { return ops::silu_mul(ctx, x, y); });
          of("sigmoid_mul", 2, [&](ExecContext& ctx) { return ops::sigmoid_mul(ctx, y, x); });
          of("sigmoid", 1, [&](ExecContext& ctx) { return ops::sigmoid(ctx, x); });
          of("add", 1, [&](ExecContext& ctx) { return ops::add(ctx, x, y); });
        }
      }
}

TEST_P(DenseOps, EmbeddingGivesZerosOutsideTheMatrix) {
  for (const DType out : kTypes)
    for (const DType stored : {DType::kF32, DType::kBF16, DType::kF16}) {
      const Tensor weight = random(pool, stored, {41, 33}, 1, 1, 0, 2);
      const std::vector<int32_t> ids = {39, 0, -1, 40, 7, INT32_MAX, INT32_MIN, 7};
      for (const Tensor& rows : {pool.ints(ids), pool.ints({})})
        compare("embedding", {.c = 0, .roundings = 0}, [&](OpRunner& on) {
          PackedWeight packed = on.weight(weight);
          packed.N = 40;  // row 40 is there in memory, so that reading it shows
          const Tensor y = on.run([&](ExecContext& ctx) { return ops::embedding(ctx, rows, packed, out); });
          for (int64_t t = 0; t < rows.size(0); ++t) {
            const bool inside = ids[t] >= 0 && ids[t] < 40;
            const float want = inside ? element(weight, ids[t], 32) : 0;
            EXPECT_EQ(element(y, t, 32), out == DType::kBF16 ? static_cast<float>(bf16(want)) : want)
                << "id " << ids[t];
          }
          return Results{y};
        });
    }
}

TEST_P(DenseOps, GatherAndScatterMoveRowsBitForBit) {
  for (const DType dtype : kTypes) {
    const Tensor x = random(pool, dtype, {9, 13}, 1, 1, 0, 3), values = random(pool, dtype, {3, 13}, 2, 1, 0, 2);
    const Tensor rows = pool.ints({8, 0, 0, 5, 8}), places = pool.ints({7, 0, 3}), none = pool.ints({});
    const Tensor y = tested.run([&](ExecContext& ctx) { return ops::gather_rows(ctx, x, rows); });
    for (int64_t i = 0; i < 5; ++i) {
      const int64_t from = rows.as<int32_t>()[i];
      EXPECT_EQ(row_bytes(y, i, i + 1), row_bytes(x, from, from + 1)) << i;
    }
    EXPECT_EQ(tested.run([&](ExecContext& ctx) { return ops::gather_rows(ctx, x, none); }).numel(), 0);

    Tensor changed = random(pool, dtype, {9, 13}, 1, 1, 0, 3);
    tested.run([&](ExecContext& ctx) {
      ops::scatter_rows(ctx, changed, places, values);
      ops::scatter_rows(ctx, changed, none, values.slice(0, 0, 0));
      return 0;
    });
    for (int64_t t = 0; t < 9; ++t) {
      const int64_t i = t == 7 ? 0 : t == 0 ? 1 : t == 3 ? 2 : -1;
      EXPECT_EQ(row_bytes(changed, t, t + 1), i < 0 ? row_bytes(x, t, t + 1) : row_bytes(values, i, i + 1)) << t;
      EXPECT_TRUE(std::isnan(element(changed, t, -1))) << "what stands beside the row";
    }
  }
}

// Also within one table, and rows of 16 bytes, which may be copied in other units.
TEST_P(DenseOps, CopyMovesListedRowsBitForBit) {
  for (const DType dtype : kTypes)
    for (const int64_t D : {13, 16})
      for (const bool within : {false, true}) {
        const Tensor from = random(pool, dtype, {9, D}, 1, 1, 0, 16), before = random(pool, dtype, {9, D}, 2, 1, 0, 16);
        const Tensor read = pool.ints({8, 0, 0}), written = pool.ints({7, 2, 3}), none = pool.ints({});
        Tensor to = random(pool, dtype, {9, D}, within ? 1 : 2, 1, 0, 16);
        tested.run([&](ExecContext& ctx) {
          ops::copy_rows(ctx, within ? to : from, read, to, written);
          ops::copy_rows(ctx, from, none, to, none);
          return 0;
        });
        for (int64_t t = 0; t < 9; ++t) {
          const int64_t source = t == 7 ? 8 : t == 2 || t == 3 ? 0 : -1;
          const Tensor& kept = within ? from : before;
          EXPECT_EQ(row_bytes(to, t, t + 1),
                    source < 0 ? row_bytes(kept, t, t + 1) : row_bytes(from, source, source + 1))
              << t;
          EXPECT_TRUE(std::isnan(element(to, t, -1))) << "what stands beside the row";
        }
      }
}

// Exact bits: what else is in the batch does not matter.
TEST_P(DenseOps, ARowAloneIsTheRowInTheBatch) {
  for (const DType dtype : kTypes) {
    const int64_t T = 26, D = 67, F = 90;
    const Tensor x = random(pool, dtype, {T, D}, 1, 2, 0, 3), y = random(pool, dtype, {T, D}, 2);
    const LinearPack gate_up{tested.weight(random(pool, DType::kBF16, {F, D}, 3)),
                             tested.weight(random(pool, DType::kF32, {F, D}, 4))};
    const PackedWeight down = tested.weight(random(pool, DType::kF16, {D, F}, 5));
    const auto all = [&](int64_t begin, int64_t end) {
      return tested.run([&](ExecContext& ctx) {
        const Tensor a = x.slice(0, begin, end), b = y.slice(0, begin, end);
        const ops::PackResult parts = ops::linear(ctx, a, gate_up);
        return Results{parts[0],
                       parts[1],
                       ops::swiglu_mlp(ctx, a, gate_up, down, b),
                       ops::silu_mul(ctx, a, b),
                       ops::sigmoid_mul(ctx, a, b),
                       ops::sigmoid(ctx, a),
                       ops::add(ctx, a, b)};
      });
    };
    const Results whole = all(0, T);
    for (int64_t t = 0; t < T; ++t) {
      const Results alone = all(t, t + 1);
      for (size_t i = 0; i < whole.size(); ++i)
        ASSERT_EQ(row_bytes(alone[i]), row_bytes(whole[i], t, t + 1))
            << "result " << i << " row " << t << " on " << name();
    }
  }
}

TEST_P(DenseOps, NumbersMadeByHand) {
  const auto matrix = [&](Shape shape, const std::vector<float>& values) {
    const Tensor x = pool.zeros(DType::kF32, shape);
    std::copy(values.begin(), values.end(), x.as<float>());
    return x;
  };
  const Tensor x = matrix({2, 3}, {1, 2, 3, 0, -1, 4}), w = matrix({2, 3}, {1, 0, -1, 2, 2, 2}),
               r = matrix({2, 2}, {10, 20, 30, 40});
  const PackedWeight weight = tested.weight(w);
  const Tensor y = tested.run([&](ExecContext& ctx) { return ops::linear_add(ctx, x, weight, r); });
  EXPECT_EQ(row_bytes(y), row_bytes(matrix({2, 2}, {10 - 2, 20 + 12, 30 - 4, 40 + 6})));
  const Tensor gate = matrix({1, 3}, {0, std::log(3.0f), -std::log(3.0f)}), up = matrix({1, 3}, {5, 4, 8});
  const Tensor open = tested.run([&](ExecContext& ctx) { return ops::sigmoid_mul(ctx, up, gate); });
  const Tensor silu = tested.run([&](ExecContext& ctx) { return ops::silu_mul(ctx, gate, up); });
  EXPECT_TRUE(close_to(open, matrix({1, 3}, {2.5f, 3, 2}), {}, "sigmoid_mul", name()));  // sigmoid(log 3) = 3/4
  EXPECT_TRUE(close_to(silu, matrix({1, 3}, {0, 3 * std::log(3.0f), -2 * std::log(3.0f)}), {}, "silu_mul", name()));
}

CALANDRA_ON_ALL_BACKENDS(DenseOps);

}  // namespace
}  // namespace calandra

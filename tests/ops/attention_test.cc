// Rotary positions and paged attention on every backend against the reference, in exact bits where the contract says
// so, and against numbers made by hand.
#include "tests/ops/op_setting.h"

namespace calandra {
namespace {

using Results = std::vector<Tensor>;
constexpr DType kTypes[] = {DType::kF32, DType::kBF16};

class AttentionOps : public OpTest {
 protected:
  // Queries, keys and values of token t of a stream are functions of (stream, t).
  struct Heads {
    int H, Hkv, Dh;
    DType dtype;
  };
  Tensor rows_of(const std::vector<SequenceStep>& steps, const Heads& d, int kind, int heads,
                 bool whole_sequence = false) {
    int64_t T = 0;
    for (const SequenceStep& step : steps) T += step.rows() + (whole_sequence ? step.first : 0);
    const Tensor x = random(pool, d.dtype, {T, heads, d.Dh}, 1, 1, 0, 3);
    int64_t row = 0;
    for (const SequenceStep& step : steps)
      for (int t = whole_sequence ? 0 : step.first; t < step.first + step.rows(); ++t, ++row)
        for (int64_t i = 0; i < heads * d.Dh; ++i)
          set_element(x, row, i, 1.5f * noise(step.stream * 4 + kind, t * 8192 + i) + 0.1f);
    return x;
  }
  // Scattered pages; what nobody wrote is NaN.
  KvPages empty_pages(const std::vector<SequenceStep>& steps, const Heads& d, int page, Batch& batch) {
    int most = 1;
    for (const SequenceStep& step : steps) most = std::max(most, (step.first + step.rows() + page - 1) / page);
    const int B = static_cast<int>(steps.size()), count = most * B;
    batch.block_table = pool.zeros(DType::kI32, {B, most});
    for (int i = 0; i < count; ++i)
      batch.block_table.as<int32_t>()[i] = (count - 1 - i) % B * most + (count - 1 - i) / B;
    KvPages pages{pool.zeros(d.dtype, {count, d.Hkv, page, d.Dh}), pool.zeros(d.dtype, {count, d.Hkv, page, d.Dh})};
    fill(pages.k, 0, 0, NAN), fill(pages.v, 0, 0, NAN);
    return pages;
  }
  // Stores all tokens of the sequences, then attends with their last rows.
  Results attend(OpRunner& on, const std::vector<SequenceStep>& steps, const Heads& d, int page,
                 const std::vector<int32_t>& first_key = {}) {
    std::vector<SequenceStep> all = steps;
    for (SequenceStep& step : all) step.segments = {step.first + step.rows()}, step.first = 0, step.active = 1;
    Batch storing = batch_of(pool, all), batch = batch_of(pool, steps);
    KvPages pages = empty_pages(steps, d, page, batch);
    storing.block_table = batch.block_table;
    const Tensor q = rows_of(steps, d, 0, d.H), k = rows_of(steps, d, 1, d.Hkv, true),
                 v = rows_of(steps, d, 2, d.Hkv, true);
    const Tensor first = first_key.empty() ? Tensor() : pool.ints(first_key);
    return on.run([&](ExecContext& ctx) {
      ctx.backend.plan(ctx, batch);
      ops::store_kv(ctx, k, v, pages, storing);
      const Tensor y = ops::paged_attention(ctx, q, pages, batch, 1 / std::sqrt(static_cast<float>(d.Dh)), first);
      return Results{y, pages.k, pages.v};
    });
  }
};

SequenceStep tokens(int stream, int first, int rows, int active = 1) {
  return {.stream = stream, .first = first, .segments = {rows}, .slots = {}, .active = active};
}

TEST_P(AttentionOps, EqualTheReference) {
  for (const DType dtype : kTypes)
    for (const int Dh : {8, 64, 128, 256})
      for (const int group : {1, 2, 8})
        for (const int page : {1, 16}) {
          const Heads d{group == 8 ? 8 : 2 * group, group == 8 ? 1 : 2, Dh, dtype};
          const std::vector<SequenceStep> ragged = {tokens(1, 0, 35), tokens(2, 66, 1), tokens(3, 5, 3, 0),
                                                    tokens(4, 0, 1),  tokens(5, 17, 0), tokens(6, 150, 2)};
          const std::string label = "paged_attention group " + std::to_string(group) + " page " + std::to_string(page);
          compare(label, {.reduction = Dh + 150}, [&](OpRunner& on) { return attend(on, ragged, d, page); });
          compare(label + " first_key", {.reduction = Dh + 150}, [&](OpRunner& on) {
            return attend(on, ragged, d, page, {3, 17, 0, 1, 1, 151});
          });
        }
  const std::vector<SequenceStep> spans = {tokens(1, 1023, 2), tokens(2, 2100, 3), tokens(3, 5000, 1)};
  compare("paged_attention of many keys", {.reduction = 256 + 5000}, [&](OpRunner& on) {
    return attend(on, spans, {8, 2, 256, DType::kBF16}, 16, {0, 1500, 2040});
  });
  compare("paged_attention without rows", {}, [&](OpRunner& on) {
    return attend(on, {tokens(1, 4, 0)}, {2, 1, 64, DType::kF32}, 16);
  });
}

TEST_P(AttentionOps, InactiveRowsAndRowsWithoutKeysGiveZeros) {
  const Tensor y = attend(tested, {tokens(1, 20, 2, 0), tokens(2, 4, 2)}, {2, 1, 64, DType::kBF16}, 16, {0, 5})[0];
  const std::vector<std::byte> zeros(2 * 64 * 2);
  for (const int64_t row : {0, 1, 2}) EXPECT_EQ(row_bytes(y, row, row + 1), zeros) << row;
  EXPECT_NE(row_bytes(y, 3, 4), zeros);
}

// Exact bits: cut anywhere, in any batch, in any order, with any page size.
TEST_P(AttentionOps, ARowIsOneFunctionOfItsQueryAndKeys) {
  for (const Heads d : {Heads{4, 2, 64, DType::kBF16}, {8, 1, 8, DType::kF32}}) {
    const int T = 90;
    const Tensor whole = attend(tested, {tokens(1, 0, T)}, d, 16)[0];
    for (const int cut : {1, 15, 16, 17, 63, 64, 65, 89}) {
      const Tensor head = attend(tested, {tokens(1, 0, cut)}, d, 1)[0],
                   tail = attend(tested, {tokens(1, cut, T - cut)}, d, 5)[0];
      ASSERT_EQ(row_bytes(head), row_bytes(whole, 0, cut)) << "cut at " << cut << " on " << name();
      ASSERT_EQ(row_bytes(tail), row_bytes(whole, cut, T)) << "cut at " << cut << " on " << name();
    }
    const Tensor batch = attend(tested, {tokens(2, 9, 3), tokens(1, 80, 4), tokens(3, 70, 1, 0)}, d, 16)[0],
                 turned = attend(tested, {tokens(3, 70, 1, 0), tokens(1, 80, 4), tokens(2, 9, 3)}, d, 16)[0];
    EXPECT_EQ(row_bytes(batch, 3, 7), row_bytes(whole, 80, 84)) << name();
    EXPECT_EQ(row_bytes(turned, 1, 5), row_bytes(whole, 80, 84)) << name();
    EXPECT_EQ(row_bytes(turned, 5, 8), row_bytes(batch, 0, 3)) << name();
  }
}

TEST_P(AttentionOps, RopeTableAndRopeOfAPartOfTheHead) {
  for (const DType dtype : kTypes)
    for (const int64_t half : {1, 11, 16})
      for (const int64_t T : {0, 1, 23}) {
        ops::RopeFrequencies frequencies{pool.zeros(DType::kF64, {half}), pool.zeros(DType::kI32, {half}), 1.25f};
        for (int64_t i = 0; i < half; ++i) {
          frequencies.inv_freq.as<double>()[i] = std::pow(1e7, -static_cast<double>(i) / static_cast<double>(half));
          frequencies.axis.as<int32_t>()[i] = static_cast<int32_t>(i % 3);
        }
        const Tensor positions = pool.zeros(DType::kI32, {3, T});
        for (int64_t i = 0; i < 3 * T; ++i) positions.as<int32_t>()[i] = static_cast<int32_t>(i * 7919 % 262144);
        const Tensor x = random(pool, dtype, {T, 3, 40}, 1, 2, 0, 6);
        compare("rope_table, rope", {.roundings = 2}, [&](OpRunner& on) {
          return on.run([&](ExecContext& ctx) {
            const Tensor table = ops::rope_table(ctx, positions, frequencies, dtype);
            return Results{table, ops::rope(ctx, x, table), ops::rope(ctx, x, table, ops::RopePairing::kNeighbours)};
          });
        });
      }
}

TEST_P(AttentionOps, QkNormRopeStore) {
  for (const DType dtype : kTypes)
    for (const Heads d : {Heads{4, 2, 64, dtype}, {8, 1, 128, dtype}, {2, 2, 40, dtype}}) {
      const std::vector<SequenceStep> steps = {tokens(1, 14, 5), tokens(2, 3, 2, 0), tokens(3, 0, 40), tokens(4, 2, 0)};
      Batch batch = batch_of(pool, steps);
      const int64_t T = batch.rows(), width = (d.H + 2 * d.Hkv) * d.Dh;
      const Tensor qkv = random(pool, dtype, {T, width}, 1, 3, 0, 3), table = random(pool, dtype, {2, T, 12}, 2),
                   q_norm = random(pool, DType::kF32, {d.Dh}, 3), k_norm = random(pool, DType::kF32, {d.Dh}, 4);
      const Tensor q = qkv.slice(1, 0, d.H * d.Dh).view({T, d.H, d.Dh}),
                   k = qkv.slice(1, d.H * d.Dh, (d.H + d.Hkv) * d.Dh).view({T, d.Hkv, d.Dh}),
                   v = qkv.slice(1, (d.H + d.Hkv) * d.Dh, width).view({T, d.Hkv, d.Dh});
      const ops::QkNorm norm{q_norm, k_norm, 1e-6f, 1.0f};
      const auto fused = [&](OpRunner& on) {
        KvPages pages = empty_pages(steps, d, 16, batch);
        return on.run([&](ExecContext& ctx) {
          return Results{ops::qk_norm_rope_store(ctx, q, k, v, norm, table, pages, batch), pages.k, pages.v};
        });
      };
      compare("qk_norm_rope_store", {.reduction = d.Dh, .roundings = 3}, fused);
      const Tensor none;
      const ops::QkNorm without{none, none, 1e-6f, 0};
      compare("qk_norm_rope_store without norm", {.roundings = 2}, [&](OpRunner& on) {
        KvPages pages = empty_pages(steps, d, 16, batch);
        return on.run([&](ExecContext& ctx) {
          return Results{ops::qk_norm_rope_store(ctx, q, k, v, without, table, pages, batch), pages.k, pages.v};
        });
      });
      // Its definition is the parts, in exact bits.
      KvPages pages = empty_pages(steps, d, 16, batch);
      const Results parts = tested.run([&](ExecContext& ctx) {
        const Tensor rotated = ops::rope(ctx, ops::rms_norm(ctx, q, q_norm, 1e-6f, 1), table);
        ops::store_kv(ctx, ops::rope(ctx, ops::rms_norm(ctx, k, k_norm, 1e-6f, 1), table), v, pages, batch);
        return Results{rotated, pages.k, pages.v};
      });
      const Results whole = fused(tested);
      for (size_t i = 0; i < parts.size(); ++i)
        EXPECT_EQ(row_bytes(whole[i]), row_bytes(parts[i])) << i << " on " << name();
    }
}

// Its definition is the parts, in exact bits. Sequences of few rows and of many, keys of earlier steps before them,
// query heads of a row in two tiles, rows that do not see their own keys.
TEST_P(AttentionOps, MixerIsItsParts) {
  for (const DType dtype : kTypes)
    for (const Heads d : {Heads{4, 2, 64, dtype}, {6, 1, 80, dtype}, {8, 2, 256, dtype}, {2, 2, 40, dtype}})
      for (const int rows : {1, 7, 40}) {
        const std::vector<SequenceStep> steps = {tokens(1, 14, 5), tokens(2, 300, rows), tokens(3, 5, 2, 0),
                                                 tokens(4, 2, 0), tokens(5, 0, 1)};
        Batch batch = batch_of(pool, steps);
        const int64_t T = batch.rows(), HD = d.H * d.Dh, width = 2 * HD + 2 * d.Hkv * d.Dh;
        const Tensor all = random(pool, dtype, {T, width}, 1, 3), table = random(pool, dtype, {2, T, 12}, 2),
                     q_norm = random(pool, DType::kF32, {d.Dh}, 3), k_norm = random(pool, DType::kF32, {d.Dh}, 4), none;
        const auto heads = [&](int64_t begin, int64_t count) {
          return all.slice(1, begin, begin + count * d.Dh).view({T, count, d.Dh});
        };
        const Tensor q = heads(0, d.H), gate = all.slice(1, HD, 2 * HD), k = heads(2 * HD, d.Hkv),
                     v = heads(2 * HD + d.Hkv * d.Dh, d.Hkv);
        const float scale = 1 / std::sqrt(static_cast<float>(d.Dh));
        const auto pages_of_keys = [&] {
          KvPages pages = empty_pages(steps, d, 16, batch);
          fill(pages.k, 5, 1), fill(pages.v, 6, 1);
          return pages;
        };
        for (const bool plain : {false, true}) {
          const ops::QkNorm norm{plain ? none : q_norm, plain ? none : k_norm, 1e-6f, 1.0f};
          const Tensor first_key = plain ? Tensor() : pool.ints({16, 100, 0, 0, 1});
          const auto run = [&](auto op) {
            KvPages pages = pages_of_keys();
            return tested.run([&](ExecContext& ctx) {
              ctx.backend.plan(ctx, batch);
              return Results{op(ctx, pages), pages.k, pages.v};
            });
          };
          const Results whole = run([&](ExecContext& ctx, KvPages& pages) {
            return ops::attention_mixer(ctx, q, k, v, plain ? none : gate, norm, table, pages, batch, scale, first_key);
          });
          const Results parts = run([&](ExecContext& ctx, KvPages& pages) {
            const Tensor rotated = ops::qk_norm_rope_store(ctx, q, k, v, norm, table, pages, batch);
            const Tensor o = ops::paged_attention(ctx, rotated, pages, batch, scale, first_key).view({T, HD});
            return plain ? o : ops::sigmoid_mul(ctx, o, gate);
          });
          for (size_t i = 0; i < parts.size(); ++i)
            EXPECT_EQ(row_bytes(whole[i]), row_bytes(parts[i])) << i << " rows " << rows << " on " << name();
        }
      }
}

// One head of two dims, two keys: scores 0 and log 3, weights 1/4 and 3/4.
TEST_P(AttentionOps, NumbersMadeByHand) {
  Batch batch = batch_of(pool, {tokens(1, 0, 2)});
  batch.block_table = pool.ints({1}).view({1, 1});
  const auto rows = [&](const std::vector<float>& values) {
    const Tensor x = pool.zeros(DType::kF32, {2, 1, 2});
    std::copy(values.begin(), values.end(), x.as<float>());
    return x;
  };
  KvPages pages{pool.zeros(DType::kF32, {2, 1, 2, 2}), pool.zeros(DType::kF32, {2, 1, 2, 2})};
  const Tensor q = rows({5, 5, 2, 0}), k = rows({0, 7, std::log(3.0f), 7}), v = rows({1, 8, 5, 4});
  const Tensor y = tested.run([&](ExecContext& ctx) {
    ops::store_kv(ctx, k, v, pages, batch);
    return ops::paged_attention(ctx, q, pages, batch, 0.5f);
  });
  EXPECT_TRUE(close_to(y, rows({1, 8, 4, 5}), {}, "paged_attention", name()));
  EXPECT_EQ(bytes_of(pages.k[1]), row_bytes(k));
  EXPECT_EQ(bytes_of(pages.v[0]), std::vector<std::byte>(16)) << "another sequence's page";

  // A quarter turn of the pair (0, 1); dim 2 passes.
  const Tensor x = pool.zeros(DType::kF32, {1, 1, 3}), want = pool.zeros(DType::kF32, {1, 1, 3});
  x.as<float>()[0] = 3, x.as<float>()[1] = 4, x.as<float>()[2] = 5;
  want.as<float>()[0] = -4, want.as<float>()[1] = 3, want.as<float>()[2] = 5;
  ops::RopeFrequencies quarter{pool.zeros(DType::kF64, {1}), pool.ints({1}), 1};
  quarter.inv_freq.as<double>()[0] = std::acos(0.0);
  const Tensor positions = pool.ints({0, 5, 0}).view({3, 1});
  const Tensor turned = tested.run(
      [&](ExecContext& ctx) { return ops::rope(ctx, x, ops::rope_table(ctx, positions, quarter, DType::kF32)); });
  EXPECT_TRUE(close_to(turned, want, {}, "rope", name()));

  // Pairs (1, 2), (3, 4), (5, 6) or (1, 4), (2, 5), (3, 6), turned by a quarter, nothing and a half.
  const auto dims = [&](Shape shape, const std::vector<float>& values) {
    const Tensor t = pool.zeros(DType::kF32, shape);
    std::copy(values.begin(), values.end(), t.as<float>());
    return t;
  };
  const Tensor six = dims({1, 1, 6}, {1, 2, 3, 4, 5, 6}), table = dims({2, 1, 3}, {0, 1, -1, 1, 0, 0});
  const auto turn = [&](ops::RopePairing pairing) {
    return tested.run([&](ExecContext& ctx) { return ops::rope(ctx, six, table, pairing); });
  };
  EXPECT_EQ(row_bytes(turn(ops::RopePairing::kNeighbours)), row_bytes(dims({1, 1, 6}, {-2, 1, 3, 4, -5, -6})));
  EXPECT_EQ(row_bytes(turn(ops::RopePairing::kHalves)), row_bytes(dims({1, 1, 6}, {-4, 2, -3, 1, 5, -6})));
}

CALANDRA_ON_ALL_BACKENDS(AttentionOps);

}  // namespace
}  // namespace calandra

// Multi-head latent attention on every backend: the absorbed form against keys and values as they are written, in exact
// bits however a sequence is cut, and against numbers made by hand.
#include "ops/latent_attention.h"

#include "tests/ops/op_setting.h"

namespace calandra {
namespace {

using Results = std::vector<Tensor>;

struct Sizes {
  int H, L, R, Dn, Dv;
  DType dtype;
  DType weight;
};
constexpr DType kF32 = DType::kF32, kBF16 = DType::kBF16;
const Sizes kSizes[] = {{3, 32, 16, 32, 48, kF32, kF32},
                        {3, 32, 16, 32, 48, kBF16, kBF16},
                        {2, 64, 64, 64, 64, kF32, kBF16},
                        {40, 48, 16, 24, 17, kBF16, kF32},
                        {2, 24, 8, 12, 10, kF32, kF32}};
// Those of the releases, with few tokens.
const Sizes kRelease = {64, 512, 64, 128, 128, kBF16, kBF16};
const Sizes kReleaseOfFp8 = {64, 512, 64, 128, 128, kBF16, kF32};  // heads are cut out of blocks

// E matrices of one format as a layer holds them.
GroupedWeight grouped(TensorPool& pool, OpRunner& on, DType dtype, int64_t E, int64_t N, int64_t K, int seed) {
  GroupedWeight all{.E = E, .N = N, .K = K, .dtype = dtype, .packed = {}, .block_k = 0};
  for (int64_t e = 0; e < E; ++e) {
    const StoredMatrix matrix{random(pool, dtype, {N, K}, seed + e, 2 / std::sqrt(static_cast<float>(K)))};
    const int64_t bytes = static_cast<int64_t>(on.backend().packed_bytes(matrix)),
                  stride = (bytes + kWeightAlignment - 1) / kWeightAlignment * kWeightAlignment;
    if (e == 0) all.packed = pool.zeros(DType::kU8, {E, stride});
    on.backend().pack_weight(matrix, all.packed[e].bytes_at(0));
  }
  return all;
}

SequenceStep tokens(int stream, int first, int rows, int active = 1) {
  return {.stream = stream, .first = first, .segments = {rows}, .slots = {}, .active = active};
}

class LatentOps : public OpTest {
 protected:
  // Queries and latents of token t of a stream are functions of (stream, t).
  Tensor rows_of(const std::vector<SequenceStep>& steps, const Sizes& d, int kind, Shape shape, bool whole_sequence) {
    int64_t T = 0, inner = 1, row = 0;
    for (const SequenceStep& step : steps) T += step.rows() + (whole_sequence ? step.first : 0);
    shape[0] = T;
    for (int axis = 1; axis < shape.rank(); ++axis) inner *= shape[axis];
    const Tensor x = random(pool, d.dtype, shape, 1, 1, 0, 3);
    for (const SequenceStep& step : steps)
      for (int t = whole_sequence ? 0 : step.first; t < step.first + step.rows(); ++t, ++row)
        for (int64_t i = 0; i < inner; ++i)
          set_element(x, row, i, 1.5f * noise(step.stream * 8 + kind, t * 16384 + i) + 0.1f);
    return x;
  }
  // Stores all tokens of the sequences, then attends with their last rows. Scattered pages; what nobody wrote is NaN.
  Results attend(OpRunner& on, const std::vector<SequenceStep>& steps, const Sizes& d, int page,
                 const std::vector<int32_t>& first_key = {}) {
    std::vector<SequenceStep> all = steps;
    for (SequenceStep& step : all) step.segments = {step.first + step.rows()}, step.first = 0, step.active = 1;
    Batch storing = batch_of(pool, all), batch = batch_of(pool, steps);
    int most = 1;
    for (const SequenceStep& step : all) most = std::max(most, (step.rows() + page - 1) / page);
    const int B = static_cast<int>(steps.size()), count = most * B;
    batch.block_table = pool.zeros(DType::kI32, {B, most});
    for (int i = 0; i < count; ++i)
      batch.block_table.as<int32_t>()[i] = (count - 1 - i) % B * most + (count - 1 - i) / B;
    storing.block_table = batch.block_table;
    LatentPages pages{pool.zeros(d.dtype, {count, page, d.L}), pool.zeros(d.dtype, {count, page, d.R})};
    fill(pages.latent, 0, 0, NAN), fill(pages.k_pe, 0, 0, NAN);
    const Tensor q_nope = rows_of(steps, d, 0, {0, d.H, d.Dn}, false),
                 q_pe = rows_of(steps, d, 1, {0, d.H, d.R}, false), latent = rows_of(steps, d, 2, {0, d.L}, true),
                 k_pe = rows_of(steps, d, 3, {0, d.R}, true);
    const ops::LatentUpProjection up{grouped(pool, on, d.weight, d.H, d.L, d.Dn, 100),
                                     grouped(pool, on, d.weight, d.H, d.Dv, d.L, 200)};
    const Tensor first = first_key.empty() ? Tensor() : pool.ints(first_key);
    const float scale = 1 / std::sqrt(static_cast<float>(d.Dn + d.R));
    return on.run([&](ExecContext& ctx) {
      ctx.backend.plan(ctx, batch);
      ops::store_latent(ctx, latent, k_pe, pages, storing);
      return Results{ops::latent_attention(ctx, q_nope, q_pe, up, pages, batch, scale, first), pages.latent,
                     pages.k_pe};
    });
  }
};

// Scores reach about 8, and a score's error is one of its weight: sums of Dn, L and R products, then of the keys.
TEST_P(LatentOps, EqualTheReference) {
  for (const Sizes& d : kSizes)
    for (const int page : {1, 16}) {
      const std::vector<SequenceStep> ragged = {tokens(1, 0, 35), tokens(2, 66, 1), tokens(3, 5, 3, 0),
                                                tokens(4, 0, 1),  tokens(5, 17, 0), tokens(6, 150, 2)};
      const Tolerance tolerance{.c = 16, .reduction = d.Dn + d.L + d.R + 150};
      const std::string label = "latent_attention L " + std::to_string(d.L) + " page " + std::to_string(page);
      compare(label, tolerance, [&](OpRunner& on) { return attend(on, ragged, d, page); });
      compare(label + " first_key", tolerance, [&](OpRunner& on) {
        return attend(on, ragged, d, page, {3, 17, 0, 1, 1, 151});
      });
    }
  compare("latent_attention without rows", {},
          [&](OpRunner& on) { return attend(on, {tokens(1, 4, 0)}, kSizes[0], 16); });
  const std::vector<SequenceStep> few = {tokens(1, 0, 3), tokens(2, 20, 1)};
  compare("latent_attention of the releases", {.c = 16, .reduction = kRelease.Dn + kRelease.L + kRelease.R},
          [&](OpRunner& on) { return attend(on, few, kRelease, 16); });
  const std::vector<SequenceStep> many = {tokens(1, 0, 40), tokens(2, 20, 30)};
  for (const auto& steps : {few, many})
    compare("latent_attention of the releases in FP8", {.c = 16, .reduction = kRelease.Dn + kRelease.L + kRelease.R},
            [&](OpRunner& on) { return attend(on, steps, kReleaseOfFp8, 16); });
}

TEST_P(LatentOps, InactiveRowsAndRowsWithoutKeysGiveZeros) {
  const Sizes& d = kSizes[1];
  const Tensor y = attend(tested, {tokens(1, 20, 2, 0), tokens(2, 4, 2)}, d, 16, {0, 5})[0];
  for (int64_t row : {0, 1, 2})
    for (int64_t i = 0; i < d.H * d.Dv; ++i) ASSERT_EQ(element(y, row, i), 0) << "row " << row << " on " << name();
  EXPECT_NE(element(y, 3, 0), 0);
}

TEST_P(LatentOps, InactiveRowsStoreNothing) {
  const Sizes& d = kSizes[1];
  const std::vector<SequenceStep> steps = {tokens(1, 0, 3, 0), tokens(2, 0, 2)};
  Batch batch = batch_of(pool, steps);
  batch.block_table = pool.ints({0, 1}).view({2, 1});
  LatentPages pages{pool.zeros(d.dtype, {2, 4, d.L}), pool.zeros(d.dtype, {2, 4, d.R})};
  fill(pages.latent, 0, 0, NAN), fill(pages.k_pe, 0, 0, NAN);
  const Tensor latent = rows_of(steps, d, 2, {0, d.L}, false), k_pe = rows_of(steps, d, 3, {0, d.R}, false);
  tested.run([&](ExecContext& ctx) {
    ops::store_latent(ctx, latent, k_pe, pages, batch);
    return Results{};
  });
  for (const auto& [page, width] : {std::pair(pages.latent, d.L), {pages.k_pe, d.R}})
    for (int64_t token = 0; token < 4; ++token)
      for (int64_t i = 0; i < width; ++i) {
        EXPECT_TRUE(std::isnan(element(page[0], token, i))) << "token " << token << " on " << name();
        EXPECT_EQ(std::isnan(element(page[1], token, i)), token >= 2) << "token " << token << " on " << name();
      }
}

// Exact bits: cut anywhere, in any batch, in any order, with any page size.
TEST_P(LatentOps, ARowIsOneFunctionOfItsQueryAndKeys) {
  for (const Sizes& d : {kSizes[1], kSizes[3], kSizes[4]}) {
    const int T = 90;
    const Tensor whole = attend(tested, {tokens(1, 0, T)}, d, 16)[0];
    for (const int cut : {1, 16, 63, 64, 65, 89}) {
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

// One head, two keys of the latent (c0, c1): scores 0 and log 3, weights 1/4 and 3/4.
TEST_P(LatentOps, NumbersMadeByHand) {
  Batch batch = batch_of(pool, {tokens(1, 0, 2)});
  batch.block_table = pool.ints({1}).view({1, 1});
  // 16 and more dims, of which the first two are used: also the kernels' sizes.
  for (const int64_t L : {2, 16}) {
    const auto tensor = [&](Shape shape, const std::vector<std::pair<int64_t, float>>& values) {
      const Tensor x = pool.zeros(DType::kF32, shape);
      for (const auto& [i, value] : values) x.as<float>()[i] = value;
      return x;
    };
    const float log3 = std::log(3.0f);
    LatentPages pages{pool.zeros(DType::kF32, {2, 2, L}), pool.zeros(DType::kF32, {2, 2, L})};
    const Tensor latent = tensor({2, L}, {{0, 1}, {1, 8}, {L, 1 + log3}, {L + 1, 4}}),
                 k_pe = tensor({2, L}, {{0, 3}, {L, 3 + log3}});
    // q_nope 1 with W_UK = (c -> c0): score (c0 + k_pe0) / 2. W_UV = (c -> (c1, 2 c1)).
    const Tensor q_nope = tensor({2, 1, 1}, {{0, 9}, {1, 1}}), q_pe = tensor({2, 1, L}, {{0, 5}, {L, 1}});
    GroupedWeight key{.E = 1, .N = L, .K = 1, .dtype = DType::kF32, .packed = {}, .block_k = 0}, value = key;
    value.N = 2, value.K = L;
    key.packed = tested.weight(tensor({L, 1}, {{0, 1}})).packed;
    value.packed = tested.weight(tensor({2, L}, {{1, 1}, {L + 1, 2}})).packed;
    key.packed = key.packed.view({1, key.packed.numel()});
    value.packed = value.packed.view({1, value.packed.numel()});
    const Tensor y = tested.run([&](ExecContext& ctx) {
      ops::store_latent(ctx, latent, k_pe, pages, batch);
      return ops::latent_attention(ctx, q_nope, q_pe, {key, value}, pages, batch, 0.5f);
    });
    EXPECT_TRUE(close_to(y, tensor({2, 1, 2}, {{0, 8}, {1, 16}, {2, 5}, {3, 10}}), {}, "latent_attention", name()));
    EXPECT_EQ(bytes_of(pages.latent[1]), row_bytes(latent));
    EXPECT_EQ(bytes_of(pages.k_pe[1]), row_bytes(k_pe));
    EXPECT_EQ(bytes_of(pages.k_pe[0]), std::vector<std::byte>(pages.k_pe[0].bytes())) << "another sequence's page";
  }
}

CALANDRA_ON_ALL_BACKENDS(LatentOps);

}  // namespace
}  // namespace calandra

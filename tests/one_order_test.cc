// One order of sums: a row has the same bits alone, in any batch, and however its sequence is cut into steps. Every op
// whose kernels a backend may choose by the number of rows, in the sizes at which the cuda backend chooses. On the
// backends that promise it; the cuda backend does when it is deterministic. Not on the reference, which computes row by
// row and slowly.
#include "backends/cpu/experts_for_test.h"
#include "ops/latent_attention.h"
#include "ops/lightning.h"
#include "tests/ops/op_setting.h"

namespace calandra {
namespace {

using Results = std::vector<Tensor>;
using Bytes = std::vector<std::byte>;
constexpr DType kF32 = DType::kF32, kBF16 = DType::kBF16;
constexpr int kRows = 300;
// Around every border between kernels and tiles.
constexpr std::array<std::pair<int, int>, 14> kParts = {{{0, 1},
                                                         {5, 6},
                                                         {299, 300},
                                                         {0, 2},
                                                         {40, 47},
                                                         {0, 8},
                                                         {60, 69},
                                                         {0, 16},
                                                         {50, 66},
                                                         {0, 17},
                                                         {100, 133},
                                                         {30, 95},
                                                         {1, 130},
                                                         {43, 300}}};

std::vector<BackendUnderTest> backends_of_one_order() {
  std::vector<BackendUnderTest> all = backends_under_test();
  std::erase_if(all, [](const BackendUnderTest& backend) { return !backend.one_order || backend.name == "reference"; });
  return all;
}

SequenceStep tokens(int first, int rows) { return {.stream = 1, .first = first, .segments = {rows}, .slots = {}}; }

class OneOrder : public OpTest {
 protected:
  // op(begin, end) gives a tensor of rows.
  template <class F>
  void check(const std::string& label, F op) {
    const Tensor whole = op(0, kRows);
    for (const auto& [begin, end] : kParts)
      EXPECT_TRUE(row_bytes(op(begin, end)) == row_bytes(whole, begin, end))
          << label << ", rows " << begin << " to " << end << " on " << name();
  }
  GroupedWeight experts(const Tensor& source) { return group(tested.backend(), source, storage_.emplace_back()); }
  GroupedWeight experts(const F8Experts& source) {
    return group(tested.backend(), source.matrices, storage_.emplace_back());
  }

 private:
  std::deque<Buffer> storage_;
};

TEST_P(OneOrder, Products) {
  for (const auto& [N, K] : {std::pair<int64_t, int64_t>{136, 1024}, {257, 1000}, {48, 4104}}) {
    const Tensor x = random(pool, kBF16, {kRows, K}, 1), wide = random(pool, kF32, {kRows, K}, 1),
                 residual = random(pool, kBF16, {kRows, N}, 2), w = random(pool, kBF16, {N, K}, 3, 0.05f);
    const F8Experts f8(1, N, K, 128, 128, 7);
    const PackedWeight stored[] = {tested.weight(w), tested.weight(f8.matrices[0]),
                                   tested.weight(random(pool, kF32, {N, K}, 4, 0.05f))};
    LinearPack pack(2);
    pack.part(0) = stored[0], pack.part(1) = stored[1];
    const PackedWeight down = tested.weight(random(pool, kBF16, {K, N}, 5, 0.05f));
    const std::string size = " " + std::to_string(N) + " x " + std::to_string(K);
    const auto run = [&](auto op) {
      return [&, op](int begin, int end) {
        return tested.run([&](ExecContext& ctx) { return op(ctx, x.slice(0, begin, end), begin, end); });
      };
    };
    for (const PackedWeight& weight : stored) {
      const std::string label = std::string(name_of(weight.dtype)) + size;
      check("linear " + label,
            run([&](ExecContext& ctx, const Tensor& rows, int, int) { return ops::linear(ctx, rows, weight, kF32); }));
      check("linear of f32 " + label, run([&](ExecContext& ctx, const Tensor&, int begin, int end) {
              return ops::linear(ctx, wide.slice(0, begin, end), weight, kF32);
            }));
      check("linear_add " + label, run([&](ExecContext& ctx, const Tensor& rows, int begin, int end) {
              return ops::linear_add(ctx, rows, weight, residual.slice(0, begin, end));
            }));
    }
    for (const int part : {0, 1})
      check("linear of a pack" + size, run([&](ExecContext& ctx, const Tensor& rows, int, int) {
              return ops::linear(ctx, rows, pack, kBF16)[static_cast<size_t>(part)];
            }));
    LinearPack gate_up(2);
    gate_up.part(0) = stored[0], gate_up.part(1) = tested.weight(random(pool, kBF16, {N, K}, 6, 0.05f));
    check("swiglu_mlp" + size, run([&](ExecContext& ctx, const Tensor& rows, int, int) {
            return ops::swiglu_mlp(ctx, rows, gate_up, down, rows);
          }));
  }
}

TEST_P(OneOrder, Experts) {
  constexpr int64_t E = 12, D = 256, F = 136, kChoices = 3;
  const Tensor x = random(pool, kBF16, {kRows, D}, 1), each = random(pool, kBF16, {kRows, kChoices, D}, 2),
               chosen = pool.zeros(DType::kI32, {kRows, kChoices});
  for (int i = 0; i < kRows * kChoices; ++i) chosen.as<int32_t>()[i] = i % 3 == 0 ? 5 : i % 11 == 0 ? -1 : 2 + i % 9;
  const F8Experts f8_gate(E, F, D, 128, 128, 7), f8_up(E, F, D, 128, 128, 8), f8_down(E, D, F, 128, 128, 9);
  for (const bool f8 : {false, true}) {
    ops::SparseMoeWeights weights;
    weights.gate = f8 ? experts(f8_gate) : experts(random(pool, kBF16, {E, F, D}, 3, 0.1f));
    weights.up = f8 ? experts(f8_up) : experts(random(pool, kBF16, {E, F, D}, 4, 0.1f));
    weights.down = f8 ? experts(f8_down) : experts(random(pool, kBF16, {E, D, F}, 5, 0.1f));
    weights.router = tested.weight(random(pool, f8 ? kF32 : kBF16, {E, D}, 6, 0.2f));
    weights.shared_gate_up.part(0) = tested.weight(random(pool, kBF16, {F, D}, 7, 0.1f));
    weights.shared_gate_up.part(1) = tested.weight(random(pool, kBF16, {F, D}, 8, 0.1f));
    weights.shared_down = tested.weight(random(pool, kBF16, {D, F}, 9, 0.1f));
    if (!f8) weights.shared_gate = tested.weight(random(pool, kBF16, {1, D}, 10, 0.1f));
    for (const Tensor& input : {x, each})
      check("grouped_linear", [&](int begin, int end) {
        return tested.run([&](ExecContext& ctx) {
          return ops::grouped_linear(ctx, input.slice(0, begin, end), weights.gate, chosen.slice(0, begin, end));
        });
      });
    check("sparse_moe", [&](int begin, int end) {
      return tested.run([&](ExecContext& ctx) {
        const Tensor rows = x.slice(0, begin, end);
        return ops::sparse_moe(ctx, rows, weights, {.top_k = 4}, rows);
      });
    });
  }
}

// Rows of a sequence behind `before` tokens, and another sequence beside them. Borders of tiles and ranges of keys are
// inside; behind 1,900 tokens those of spans of ranges, too.
class OneOrderOfKeys : public OneOrder {
 protected:
  static constexpr int kBefores[] = {215, 1900};
  int before = 0;

  int all() const { return before + kRows; }
  int pages() const { return (all() + 15) / 16; }

  Batch batch_of_rows(const std::vector<std::pair<int, int>>& parts) {
    std::vector<SequenceStep> steps;
    for (const auto& [begin, end] : parts) steps.push_back(tokens(before + begin, end - begin));
    Batch batch = batch_of(pool, steps);
    batch.block_table = pool.zeros(DType::kI32, {std::ssize(steps), pages()});
    for (int64_t i = 0; i < batch.block_table.numel(); ++i)  // all read the same keys
      batch.block_table.as<int32_t>()[i] = pages() - 1 - static_cast<int32_t>(i % pages());
    return batch;
  }
  // attend(batch, rows): `rows` are taken of the inputs for the batch.
  template <class F>
  void check_sequence(const std::string& label, F attend) {
    const auto some = [&](const std::vector<std::pair<int, int>>& parts) {
      std::vector<int32_t> rows;
      for (const auto& [begin, end] : parts)
        for (int r = begin; r < end; ++r) rows.push_back(r);
      return attend(batch_of_rows(parts), pool.ints(rows));
    };
    check(label, [&](int begin, int end) { return some({{begin, end}}); });
    const Tensor whole = some({{0, kRows}}), beside = some({{30, 95}, {7, 8}, {100, 116}, {250, 267}});
    int64_t at = 0;
    for (const auto& [begin, end] : {std::pair<int, int>{30, 95}, {7, 8}, {100, 116}, {250, 267}}) {
      EXPECT_TRUE(row_bytes(beside, at, at + end - begin) == row_bytes(whole, begin, end))
          << label << " beside others, rows " << begin << " to " << end << " on " << name();
      at += end - begin;
    }
  }
};

TEST_P(OneOrderOfKeys, PagedAttention) {
  for (const auto& [H, Hkv, Dh] : {std::array<int64_t, 3>{4, 2, 64}, {3, 1, 80}, {8, 2, 256}})
    for (const auto& [dtype, tokens_before] :
         {std::pair(kBF16, kBefores[0]), {kF32, kBefores[0]}, {kBF16, kBefores[1]}}) {
      before = tokens_before;
      const Tensor q = random(pool, dtype, {kRows, H, Dh}, 1), k = random(pool, dtype, {all(), Hkv, Dh}, 2, 1, 0.4f),
                   v = random(pool, dtype, {all(), Hkv, Dh}, 3);
      KvPages kv{pool.zeros(dtype, {pages(), Hkv, 16, Dh}), pool.zeros(dtype, {pages(), Hkv, 16, Dh})};
      Batch storing = batch_of(pool, {tokens(0, all())});
      storing.block_table = batch_of_rows({{0, 1}}).block_table;
      tested.run([&](ExecContext& ctx) {
        ops::store_kv(ctx, k, v, kv, storing);
        return 0;
      });
      for (const bool first : {false, true})
        check_sequence("paged_attention", [&](const Batch& batch, const Tensor& rows) {
          const Tensor first_key =
              first ? pool.ints(std::vector<int32_t>(static_cast<size_t>(batch.sequences()), 70)) : Tensor();
          return tested.run([&](ExecContext& ctx) {
            ctx.backend.plan(ctx, batch);
            const Tensor own = ops::gather_rows(ctx, q.view({kRows, H * Dh}), rows).view({rows.size(0), H, Dh});
            return ops::paged_attention(ctx, own, kv, batch, 0.3f, first_key);
          });
        });
    }
}

TEST_P(OneOrderOfKeys, LatentAttention) {
  constexpr int64_t H = 3, L = 512, R = 64, Dn = 128, Dv = 64;
  before = kBefores[0];
  const Tensor q = random(pool, kBF16, {kRows, H * (Dn + R)}, 1), latent = random(pool, kBF16, {all(), L}, 2, 1, 0.2f),
               k_pe = random(pool, kBF16, {all(), R}, 3);
  LatentPages store{pool.zeros(kBF16, {pages(), 16, L}), pool.zeros(kBF16, {pages(), 16, R})};
  Batch storing = batch_of(pool, {tokens(0, all())});
  storing.block_table = batch_of_rows({{0, 1}}).block_table;
  tested.run([&](ExecContext& ctx) {
    ops::store_latent(ctx, latent, k_pe, store, storing);
    return 0;
  });
  for (const DType heads : {kBF16, kF32}) {  // f32: of FP8 checkpoints
    const ops::LatentUpProjection up{experts(random(pool, heads, {H, L, Dn}, 4, 0.1f)),
                                     experts(random(pool, heads, {H, Dv, L}, 5, 0.1f))};
    check_sequence("latent_attention", [&](const Batch& batch, const Tensor& rows) {
      return tested.run([&](ExecContext& ctx) {
        ctx.backend.plan(ctx, batch);
        const Tensor own = ops::gather_rows(ctx, q, rows);
        const int64_t T = rows.size(0);
        return ops::latent_attention(ctx, own.slice(1, 0, H * Dn).view({T, H, Dn}),
                                     own.slice(1, H * Dn, own.size(1)).view({T, H, R}), up, store, batch, 0.1f, {});
      });
    });
  }
}

// A picture's rows do not depend on the pictures beside it.
TEST_P(OneOrder, SegmentAttention) {
  constexpr int64_t H = 2, Dh = 72;
  const Tensor q = random(pool, kBF16, {kRows, H, Dh}, 1), k = random(pool, kBF16, {kRows, H, Dh}, 2),
               v = random(pool, kBF16, {kRows, H, Dh}, 3);
  const auto attend = [&](int begin, int end, const std::vector<int32_t>& starts) {
    return tested.run([&](ExecContext& ctx) {
      return ops::segment_attention(ctx, q.slice(0, begin, end), k.slice(0, begin, end), v.slice(0, begin, end),
                                    pool.ints(starts), 0.2f);
    });
  };
  const std::vector<int32_t> starts = {0, 4, 68, 85, 300};
  const Tensor whole = attend(0, kRows, starts);
  for (size_t i = 0; i + 1 < starts.size(); ++i)
    EXPECT_TRUE(row_bytes(attend(starts[i], starts[i + 1], {0, starts[i + 1] - starts[i]})) ==
                row_bytes(whole, starts[i], starts[i + 1]))
        << "segment_attention, segment " << i << " on " << name();
}

// Chunks of a sequence through the slots, rows and the state that is left; the last is beside another sequence.
class OneOrderOfTokens : public OneOrder {
 protected:
  // run(batch, begin, end): rows of the step's first sequence are tokens [begin, end), a second one has the first rows.
  // state(): of slot 0, once all are folded.
  template <class Run, class State>
  void check_chunks(const std::string& label, Run run, State state) {
    Bytes whole, whole_state;
    for (const int chunk : {kRows, 1, 7, 16, 17, 64, 100}) {
      for (const bool beside : {false, true}) {
        Bytes all;
        for (int begin = 0; begin < kRows; begin += chunk) {
          const int end = std::min(kRows, begin + chunk);
          std::vector<SequenceStep> steps = {
              {.stream = 1, .first = begin, .segments = {end - begin}, .slots = {begin == 0 ? -1 : 0, 0}}};
          if (beside) steps.push_back({.stream = 2, .first = 0, .segments = {20}, .slots = {-1, 1}});
          const Tensor y = run(batch_of(pool, steps), begin, end);
          const Bytes own = row_bytes(y, 0, end - begin);
          all.insert(all.end(), own.begin(), own.end());
        }
        if (whole.empty()) whole = all, whole_state = state();
        EXPECT_TRUE(all == whole) << label << ", chunks of " << chunk << (beside ? " beside another" : "") << " on "
                                  << name();
        EXPECT_TRUE(state() == whole_state) << label << ", state after chunks of " << chunk << " on " << name();
      }
    }
  }
  // Rows [begin, end) of x, and rows [0, others) behind them.
  Tensor rows_of(const Tensor& x, int begin, int end, int64_t others) {
    const Tensor y = pool.zeros(x.dtype(), {end - begin + others, x.size(1)});
    const auto copy = [&](int64_t to, int64_t from, int64_t count) {
      if (count > 0) std::memcpy(y[to].data(), x[from].data(), static_cast<size_t>(x.slice(0, 0, count).bytes()));
    };
    copy(0, begin, end - begin);
    copy(end - begin, 0, others);
    return y;
  }
};

TEST_P(OneOrderOfTokens, GatedDeltaMixer) {
  constexpr int64_t kHk = 1, kHv = 2, kD = 128, kC = 2 * kHk * kD + kHv * kD;
  ops::GatedDeltaWeights weights;
  weights.conv1d = random(pool, kF32, {kC, 4}, 1);
  weights.A_log = random(pool, kF32, {kHv}, 2);
  weights.dt_bias = random(pool, kF32, {kHv}, 3);
  weights.norm = random(pool, kF32, {kD}, 4);
  const Tensor qkv = random(pool, kBF16, {kRows, kC}, 5), z = random(pool, kBF16, {kRows, kHv * kD}, 6),
               b = random(pool, kBF16, {kRows, kHv}, 7), a = random(pool, kBF16, {kRows, kHv}, 8),
               accepted = pool.ints({0, 0});
  ConvState conv{pool.zeros(kBF16, {2, 3, kC}), pool.zeros(kBF16, {2, 1, kC})};
  DeltaState delta{pool.zeros(kF32, {2, kHv, kD, kD}), pool.zeros(kF32, {2, 1, kHk, kD}),
                   pool.zeros(kF32, {2, 1, kHv, kD}), pool.zeros(kF32, {2, 1, kHv}), pool.zeros(kF32, {2, 1, kHv})};
  check_chunks(
      "gated_delta_mixer",
      [&](const Batch& batch, int begin, int end) {
        const auto own = [&](const Tensor& x) { return rows_of(x, begin, end, batch.rows() - (end - begin)); };
        const Tensor in[] = {own(qkv), own(z), own(b), own(a)};
        return tested.run([&](ExecContext& ctx) {
          ctx.backend.plan(ctx, batch);
          return ops::gated_delta_mixer(ctx, in[0], in[1], in[2], in[3], weights, conv, delta, accepted, batch);
        });
      },
      [&] {
        Bytes all = row_bytes(delta.S, 0, 1);
        const Bytes window = row_bytes(conv.window, 0, 1);
        all.insert(all.end(), window.begin(), window.end());
        return all;
      });
}

TEST_P(OneOrderOfTokens, LightningMixer) {
  constexpr int64_t kH = 2, kD = 128;
  ops::LightningWeights weights;
  weights.q_norm = random(pool, kF32, {kD}, 4);
  weights.k_norm = random(pool, kF32, {kD}, 5);
  weights.g_norm = random(pool, kF32, {kH * kD}, 6);
  weights.slope = random(pool, kF32, {kH}, 7, 0.1f, 0.2f);
  weights.norm_groups = 2;
  weights.rope = false;
  const Tensor qkv = random(pool, kF32, {kRows, 3 * kH * kD}, 1), gate = random(pool, kF32, {kRows, kH * kD}, 2),
               accepted = pool.ints({0, 0});
  LightningState state{pool.zeros(kF32, {2, kH, kD, kD}), pool.zeros(kF32, {2, 1, kH, kD}),
                       pool.zeros(kF32, {2, 1, kH, kD})};
  check_chunks(
      "lightning_mixer",
      [&](const Batch& batch, int begin, int end) {
        const int64_t others = batch.rows() - (end - begin);
        const Tensor x = rows_of(qkv, begin, end, others), g = rows_of(gate, begin, end, others),
                     table = pool.zeros(kF32, {2, batch.rows(), 0});
        return tested.run([&](ExecContext& ctx) {
          ctx.backend.plan(ctx, batch);
          return ops::lightning_mixer(ctx, x, g, weights, table, state, accepted, batch, kBF16);
        });
      },
      [&] { return row_bytes(state.S, 0, 1); });
}

#define CALANDRA_OF_ONE_ORDER(suite)                                               \
  INSTANTIATE_TEST_SUITE_P(All, suite, testing::ValuesIn(backends_of_one_order()), \
                           [](const testing::TestParamInfo<BackendUnderTest>& tested) { return tested.param.name; })
CALANDRA_OF_ONE_ORDER(OneOrder);
CALANDRA_OF_ONE_ORDER(OneOrderOfKeys);
CALANDRA_OF_ONE_ORDER(OneOrderOfTokens);

}  // namespace
}  // namespace calandra

// The kernels that do several ops at once on a device give the bits of the ops one by one: a context with taps takes
// the default body of a composite. Sizes are those of releases, rows 1 to 16 and on both sides of the kernels' borders.
// Skipped without a device.
#include "backends/cpu/experts_for_test.h"
#include "tests/cuda_fixture.h"

namespace calandra {
namespace {

using Results = std::vector<Tensor>;

class NoTaps final : public Taps {
 public:
  void tap(int, const char*, const Tensor&) override {}
};

class CudaParts : public CudaTest {
 protected:
  // op(ctx) gives what it computed and the state that it left; it must begin from the same state each time.
  template <class F>
  void equal(const std::string& label, F op) {
    const Results fused = device->run([&](ExecContext& ctx) { return op(ctx); });
    const Results parts = device->run([&](ExecContext& ctx) {
      ctx.taps = &no_taps;
      return op(ctx);
    });
    ASSERT_EQ(fused.size(), parts.size());
    for (size_t i = 0; i < parts.size(); ++i)
      EXPECT_EQ(row_bytes(fused[i]), row_bytes(parts[i])) << label << ", result " << i;
  }
  // fp8: in blocks of 128 x 128.
  PackedWeight matrix(int64_t N, int64_t K, uint64_t seed, bool fp8) {
    if (!fp8) return device->weight(random(pool, DType::kBF16, {N, K}, seed, 0.05f));
    return device->weight(f8.emplace_back(1, N, K, 128, 128, static_cast<unsigned>(seed)).matrices[0]);
  }
  GroupedWeight experts(int64_t E, int64_t N, int64_t K, uint64_t seed, bool fp8) {
    Buffer& memory = storage.emplace_back();
    if (!fp8) return group(device->backend(), random(pool, DType::kBF16, {E, N, K}, seed, 0.05f), memory);
    return group(device->backend(), f8.emplace_back(E, N, K, 128, 128, static_cast<unsigned>(seed)).matrices, memory);
  }
  Tensor rows(int64_t T, int64_t D, uint64_t seed) { return random(pool, DType::kBF16, {T, D}, seed); }

  void sparse_moe(std::initializer_list<int64_t> row_counts);

  NoTaps no_taps;
  std::deque<F8Experts> f8;
  std::deque<Buffer> storage;
};

TEST_F(CudaParts, SwigluMlpAndLinearAdd) {
  for (const bool fp8 : {false, true})
    for (const auto& [D, F] : {std::pair<int64_t, int64_t>{1024, 3584}, {2048, 520}, {256, 2052}, {256, 2700}}) {
      const LinearPack gate_up{matrix(F, D, 1, fp8), matrix(F, D, 2, fp8)};
      const PackedWeight down = matrix(D, F, 3, fp8);
      for (const int64_t T : {1, 2, 7, 8, 9, 16, 17, 33, 65}) {
        const Tensor x = rows(T, D, 4), residual = rows(T, D, 5), h = rows(T, F, 6);
        equal("swiglu_mlp rows " + std::to_string(T),
              [&](ExecContext& ctx) { return Results{ops::swiglu_mlp(ctx, x, gate_up, down, residual)}; });
        const Results both = device->run([&](ExecContext& ctx) {
          return Results{ops::linear_add(ctx, h, down, residual),
                         ops::add(ctx, residual, ops::linear(ctx, h, down, DType::kBF16))};
        });
        EXPECT_EQ(row_bytes(both[0]), row_bytes(both[1])) << "linear_add rows " << T;
      }
    }
}

void CudaParts::sparse_moe(std::initializer_list<int64_t> row_counts) {
  const struct { int64_t E, D, F, Fs, k; } sizes[] = {{32, 512, 128, 128, 8}, {16, 1024, 200, 0, 4}};
  for (const bool fp8 : {false, true})
    for (const auto& s : sizes) {
      ops::SparseMoeWeights weights;
      weights.router = matrix(s.E, s.D, 1, false);
      weights.gate = experts(s.E, s.F, s.D, 2, fp8);
      weights.up = experts(s.E, s.F, s.D, 3, fp8);
      weights.down = experts(s.E, s.D, s.F, 4, fp8);
      if (s.Fs > 0) {
        weights.shared_gate_up = {matrix(s.Fs, s.D, 5, fp8), matrix(s.Fs, s.D, 6, fp8)};
        weights.shared_down = matrix(s.D, s.Fs, 7, fp8);
        weights.shared_gate = matrix(1, s.D, 8, false);
      }
      for (const int64_t T : row_counts) {
        const Tensor x = rows(T, s.D, 9), residual = rows(T, s.D, 10);
        equal("sparse_moe rows " + std::to_string(T),
              [&](ExecContext& ctx) { return Results{ops::sparse_moe(ctx, x, weights, {.top_k = s.k}, residual)}; });
      }
    }
}

TEST_F(CudaParts, SparseMoeOfFewRows) { sparse_moe({1, 3, 4, 5, 8, 9, 16, 17}); }
TEST_F(CudaParts, SparseMoeOfManyRows) { sparse_moe({33, 300}); }

TEST_F(CudaParts, AddRmsNorm) {
  for (const int64_t D : {255, 256, 1024, 2050, 5120})
    for (const int64_t T : {1, 5}) {
      const Tensor x = rows(T, D, 1), y = rows(T, D, 2), w = random(pool, DType::kF32, {D}, 3);
      const Results got = device->run([&](ExecContext& ctx) {
        const auto [sum, norm] = ops::add_rms_norm(ctx, x, y, w, 1e-6f, 1);
        const Tensor plain = ops::add(ctx, x, y);
        return Results{sum, norm, plain, ops::rms_norm(ctx, plain, w, 1e-6f, 1)};
      });
      EXPECT_EQ(row_bytes(got[0]), row_bytes(got[2])) << D;
      EXPECT_EQ(row_bytes(got[1]), row_bytes(got[3])) << D;
    }
}

TEST_F(CudaParts, QkNormRopeStore) {
  constexpr int64_t kH = 8, kHkv = 2, kD = 256, kPages = 6;
  Batch batch = batch_of(pool, {{.stream = 1, .first = 14, .segments = {5}, .slots = {}},
                                {.stream = 2, .first = 3, .segments = {2}, .slots = {}, .active = 0}});
  batch.block_table = pool.ints({3, 1, 0, 5}).view({2, 2});
  const int64_t T = batch.rows();
  const Tensor q = rows(T, kH * kD, 1).view({T, kH, kD}), k = rows(T, kHkv * kD, 2).view({T, kHkv, kD}),
               v = rows(T, kHkv * kD, 3).view({T, kHkv, kD}), w = random(pool, DType::kF32, {kD}, 4),
               table = random(pool, DType::kBF16, {2, T, 32}, 5);
  equal("qk_norm_rope_store", [&](ExecContext& ctx) {
    KvPages pages{pool.zeros(DType::kBF16, {kPages, kHkv, 16, kD}), pool.zeros(DType::kBF16, {kPages, kHkv, 16, kD})};
    const Tensor out = ops::qk_norm_rope_store(ctx, q, k, v, {w, w, 1e-6f, 1}, table, pages, batch);
    return Results{out, pages.k, pages.v};
  });
}

// Keys of earlier steps on both sides of ranges and tiles, the step's own rows across them, rows whose query heads lie
// in two tiles (6 a key head), an idle sequence, keys that no row sees; more rows than the fused form.
TEST_F(CudaParts, AttentionMixer) {
  for (const auto& [H, Hkv, D] : {std::array<int64_t, 3>{8, 2, 256}, {12, 2, 256}, {4, 4, 64}})
    for (const int rows_of_first : {1, 16, 17}) {
      const std::vector<SequenceStep> steps = {{.stream = 1, .first = 250, .segments = {rows_of_first}, .slots = {}},
                                               {.stream = 2, .first = 703, .segments = {1}, .slots = {}},
                                               {.stream = 3, .first = 40, .segments = {2}, .slots = {}, .active = 0},
                                               {.stream = 4, .first = 0, .segments = {3}, .slots = {}},
                                               {.stream = 5, .first = 60, .segments = {5}, .slots = {}}};
      Batch batch = batch_of(pool, steps);
      constexpr int kPages = 44;  // of a sequence
      const int B = static_cast<int>(steps.size());
      batch.block_table = pool.zeros(DType::kI32, {B, kPages});
      int32_t used = 0;
      for (int b = 0; b < B; ++b)
        for (int i = 0; i * 16 < steps[b].first + steps[b].rows(); ++i)
          batch.block_table.as<int32_t>()[b * kPages + i] = used++;
      const int64_t T = batch.rows(), width = 2 * H * D + 2 * Hkv * D;
      const Tensor all = rows(T, width, 1), q_norm = random(pool, DType::kF32, {D}, 2),
                   k_norm = random(pool, DType::kF32, {D}, 3), table = random(pool, DType::kBF16, {2, T, D / 8}, 4),
                   first_key = pool.ints({70, 0, 0, 2, 62});
      const auto heads = [&](int64_t begin, int64_t count) {
        return all.slice(1, begin, begin + count * D).view({T, count, D});
      };
      const Tensor q = heads(0, H), gate = all.slice(1, H * D, 2 * H * D), k = heads(2 * H * D, Hkv),
                   v = heads(2 * H * D + Hkv * D, Hkv);
      const Shape of_pages{used, Hkv, 16, D};
      for (const bool gated : {false, true})
        equal("attention_mixer rows " + std::to_string(rows_of_first), [&](ExecContext& ctx) {
          KvPages pages{random(pool, DType::kBF16, of_pages, 5), random(pool, DType::kBF16, of_pages, 6)};
          const Tensor out =
              ops::attention_mixer(ctx, q, k, v, gated ? gate : Tensor(), {q_norm, k_norm, 1e-6f, 1}, table, pages,
                                   batch, 1 / std::sqrt(static_cast<float>(D)), gated ? first_key : Tensor());
          return Results{out, pages.k, pages.v};
        });
    }
}

// Slots with accepted pending inputs, drafts, segments, an idle sequence, and one of more rows than the fused form.
TEST_F(CudaParts, GatedDeltaMixer) {
  constexpr int64_t kHk = 2, kHv = 4, kD = 128, kC = 2 * kHk * kD + kHv * kD, kSlots = 6, kM = 3;
  ops::GatedDeltaWeights weights;
  weights.conv1d = random(pool, DType::kF32, {kC, 4}, 1);
  weights.A_log = random(pool, DType::kF32, {kHv}, 2);
  weights.dt_bias = random(pool, DType::kF32, {kHv}, 3);
  weights.norm = random(pool, DType::kF32, {kD}, 4);
  const Tensor accepted = pool.ints({2, 0, 1, 0, 0, 0});
  for (const int last : {1, 16, 17}) {
    const Batch batch = batch_of(pool, {{.stream = 1, .first = 7, .segments = {1}, .slots = {0, 0}},
                                        {.stream = 2, .first = 4, .segments = {2, 4}, .drafts = 3, .slots = {2, 1, 2}},
                                        {.stream = 3, .first = 4, .segments = {1}, .slots = {3, 3}, .active = 0},
                                        {.stream = 4, .first = 0, .segments = {last}, .slots = {-1, 4}}});
    const int64_t T = batch.rows();
    const Tensor qkv = rows(T, kC, 5), z = rows(T, kHv * kD, 6), b = rows(T, kHv, 7), a = rows(T, kHv, 8);
    equal("gated_delta_mixer rows " + std::to_string(last), [&](ExecContext& ctx) {
      ConvState conv{rows(kSlots, 3 * kC, 9).view({kSlots, 3, kC}), rows(kSlots, kM * kC, 10).view({kSlots, kM, kC})};
      DeltaState delta{random(pool, DType::kF32, {kSlots, kHv, kD, kD}, 11),
                       random(pool, DType::kF32, {kSlots, kM, kHk, kD}, 12, 0.1f),
                       random(pool, DType::kF32, {kSlots, kM, kHv, kD}, 13),
                       random(pool, DType::kF32, {kSlots, kM, kHv}, 14, 0.2f, -0.2f),
                       random(pool, DType::kF32, {kSlots, kM, kHv}, 15, 0.5f, 0.5f)};
      ctx.backend.plan(ctx, batch);
      const Tensor out = ops::gated_delta_mixer(ctx, qkv, z, b, a, weights, conv, delta, accepted, batch);
      return Results{out,
                     conv.window,
                     conv.pending,
                     delta.S,
                     delta.pending_k,
                     delta.pending_v,
                     delta.pending_g,
                     delta.pending_beta};
    });
  }
}

TEST_F(CudaParts, LightningMixer) {
  constexpr int64_t kH = 4, kD = 128, kT = 5;
  const Tensor accepted = pool.ints({0}), qkv = random(pool, DType::kF32, {kT, 3 * kH * kD}, 1),
               gate = random(pool, DType::kF32, {kT, kH * kD}, 2), table = random(pool, DType::kF32, {2, kT, 32}, 3);
  const Batch batch = batch_of(pool, {{.stream = 1, .first = 0, .segments = {kT}, .slots = {-1, 0}}});
  ops::LightningWeights weights;
  weights.q_norm = random(pool, DType::kF32, {kD}, 4);
  weights.k_norm = random(pool, DType::kF32, {kD}, 5);
  weights.g_norm = random(pool, DType::kF32, {kH * kD}, 6);
  weights.slope = random(pool, DType::kF32, {kH}, 7, 0.1f, 0.2f);
  weights.norm_groups = 2;
  for (const bool silu : {false, true}) {
    weights.silu = silu;
    equal("lightning_mixer", [&](ExecContext& ctx) {
      LightningState state{pool.zeros(DType::kF32, {1, kH, kD, kD}), pool.zeros(DType::kF32, {1, 1, kH, kD}),
                           pool.zeros(DType::kF32, {1, 1, kH, kD})};
      return Results{ops::lightning_mixer(ctx, qkv, gate, weights, table, state, accepted, batch, DType::kBF16),
                     state.S};
    });
  }
}

}  // namespace
}  // namespace calandra

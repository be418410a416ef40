// Lightning attention and the mixer around it on every backend: against the reference, in exact bits however a sequence
// is cut into steps, segments and drafts, and against numbers made by hand.
#include "ops/lightning.h"

#include "tests/ops/op_setting.h"

namespace calandra {
namespace {

using Results = std::vector<Tensor>;

struct Dims {
  int H, D, groups, rope;  // rope: rotated dims
  DType out;
  bool norm = true, silu = false;
};
const Dims kDims[] = {{3, 64, 1, 32, DType::kBF16},
                      {4, 32, 2, 32, DType::kF32},
                      {2, 24, 1, 12, DType::kF32, true, true},
                      {2, 16, 2, 0, DType::kBF16, false}};
constexpr int kPending = 4, kSlots = 6;

// The slots of one model layer: the op and the mixer, each with its own state, and the counts.
class Slots {
 public:
  Slots(OpRunner& runner, const Dims& dims) : on(runner), d(dims) {
    if (d.norm) {
      weights.q_norm = random(pool, DType::kF32, {d.D}, 1, 0.5f, 1);
      weights.k_norm = random(pool, DType::kF32, {d.D}, 2, 0.5f, 1);
    }
    weights.g_norm = random(pool, DType::kF32, {d.H * d.D}, 3, 0.5f, 1);
    weights.slope = random(pool, DType::kF32, {d.H}, 4);
    for (int h = 0; h < d.H; ++h) weights.slope.as<float>()[h] = std::exp2(-2.0f * static_cast<float>(h) - 0.3f);
    weights.norm_groups = d.groups;
    weights.silu = d.silu;
    weights.rope = d.rope > 0;
    for (LightningState* x : {&op, &mixer})
      *x = {pool.zeros(DType::kF32, {kSlots, d.H, d.D, d.D}), pool.zeros(DType::kF32, {kSlots, kPending, d.H, d.D}),
            pool.zeros(DType::kF32, {kSlots, kPending, d.H, d.D})};
    counts = {pool.zeros(DType::kI32, {kSlots}), pool.zeros(DType::kI32, {kSlots}),
              pool.zeros(DType::kF32, {kSlots, 1 + kPending, 1})};
    for (const Tensor& x : all()) fill(x, 5, 0, NAN);  // nobody may read what was not written
  }

  Results all() const { return {op.S, op.pending_k, op.pending_v, mixer.S, mixer.pending_k, mixer.pending_v}; }
  // What a slot means once nothing is pending.
  std::vector<std::byte> folded_slot(int slot) const { return bytes({op.S, mixer.S}, slot); }
  std::vector<std::byte> slot(int index) const { return bytes(all(), index); }
  void accept(int index, int count) { counts.accepted.as<int32_t>()[index] = count; }

  // One step of op and mixer; their rows are functions of (stream, token).
  Results step(const std::vector<SequenceStep>& steps) {
    const Batch batch = batch_of(pool, steps);
    const int64_t T = batch.rows(), HD = d.H * d.D;
    const Tensor x = random(pool, DType::kF32, {T, 4 * HD}, 0, 1, 0, 3);
    const Tensor table = pool.zeros(DType::kF32, {2, T, d.rope / 2});
    int64_t row = 0;
    for (const SequenceStep& s : steps)
      for (int t = s.first; t < s.first + s.rows(); ++t, ++row) {
        for (int i = 0; i < 4 * HD; ++i) set_element(x, row, i, 1.5f * noise(s.stream + 7, t * 65536 + i));
        for (int i = 0; i < d.rope / 2; ++i) {
          const double angle = t * std::pow(100.0, -2.0 * i / d.rope);
          table[0].as<float>()[row * (d.rope / 2) + i] = static_cast<float>(std::cos(angle));
          table[1].as<float>()[row * (d.rope / 2) + i] = static_cast<float>(std::sin(angle));
        }
      }
    const auto part = [&](int i) { return x.slice(1, i * HD, (i + 1) * HD).view({T, d.H, d.D}); };
    const Tensor hidden = pool.zeros(DType::kF32, {T, 1});
    return on.run([&](ExecContext& ctx) {
      ctx.backend.plan(ctx, batch);
      const Results y = {ops::lightning_attention(ctx, part(0), part(1), part(2), weights.slope, op, counts.accepted,
                                                  batch, DType::kF32),
                         ops::lightning_mixer(ctx, x.slice(1, 0, 3 * HD), x.slice(1, 3 * HD, 4 * HD), weights, table,
                                              mixer, counts.accepted, batch, d.out)};
      Tensor ring;
      ops::commit_slots(ctx, hidden, counts, ring, batch);
      return y;
    });
  }

  OpRunner& on;
  const Dims d;
  TensorPool pool;
  ops::LightningWeights weights;
  LightningState op, mixer;
  SlotCounts counts;

 private:
  static std::vector<std::byte> bytes(const Results& states, int slot) {
    std::vector<std::byte> all;
    for (const Tensor& x : states) {
      const auto part = row_bytes(x, slot, slot + 1);
      all.insert(all.end(), part.begin(), part.end());
    }
    return all;
  }
};

std::vector<std::byte> rows(const Results& y, int64_t begin, int64_t end) {
  std::vector<std::byte> all;
  for (const Tensor& x : y) {
    const auto part = row_bytes(x, begin, end);
    all.insert(all.end(), part.begin(), part.end());
  }
  return all;
}

class LightningOps : public OpTest {};

// Sums of up to 40 tokens and Dk key dims; the mixer norms them, which makes the error of a small row larger.
TEST_P(LightningOps, EqualTheReference) {
  for (const Dims& d : kDims) {
    Slots got(tested, d), want(reference, d);
    const auto both = [&](const std::vector<SequenceStep>& steps) {
      const Results a = got.step(steps), b = want.step(steps);
      EXPECT_TRUE(close_to(a[0], b[0], {.c = 16, .reduction = 40 + d.D}, "lightning_attention", name()));
      EXPECT_TRUE(close_to(a[1], b[1], {.c = 64, .reduction = 40 + d.D}, "lightning_mixer", name()));
      const Results x = got.all(), y = want.all();
      for (size_t i = 0; i < x.size(); ++i)
        EXPECT_TRUE(close_to(x[i], y[i], {.c = 16, .reduction = 40 + d.D}, "state " + std::to_string(i), name()));
    };
    both({{.stream = 1, .first = 0, .segments = {23}, .drafts = 3, .slots = {-1, 0}},
          {.stream = 2, .first = 0, .segments = {37}, .drafts = 4, .slots = {-1, 1}}});
    for (Slots* slots : {&got, &want}) slots->accept(0, 2), slots->accept(1, 4);
    both({{.stream = 1, .first = 22, .segments = {5, 1, 4}, .drafts = 3, .slots = {0, 2, 4, 0}},
          {.stream = 2, .first = 37, .segments = {2}, .drafts = 2, .slots = {1, 1}},
          {.stream = 9, .first = 7, .segments = {2}, .slots = {2, 2}, .active = 0},
          {.stream = 7, .first = 7, .segments = {0}, .slots = {3, 3}},
          {.stream = 8, .first = 0, .segments = {1}, .drafts = 1, .slots = {-1, 5}}});
    both({});
  }
}

TEST_P(LightningOps, CutAnywhereIntoSegmentsOrStepsGivesTheSameBits) {
  const int T = 37;  // more than two sweeps of the cpu kernel
  for (const Dims& d : kDims) {
    Slots whole(tested, d);
    const Results want = whole.step({{.stream = 1, .first = 0, .segments = {T}, .slots = {-1, 0}}});
    for (const int cut : {1, 2, 15, 16, 17, 31, 32, 36}) {
      Slots segments(tested, d), steps(tested, d);
      const Results one = segments.step({{.stream = 1, .first = 0, .segments = {cut, T - cut}, .slots = {-1, 1, 0}}});
      EXPECT_EQ(rows(one, 0, T), rows(want, 0, T)) << "segments at " << cut;
      EXPECT_EQ(segments.folded_slot(0), whole.folded_slot(0)) << "segments at " << cut;
      const Results a = steps.step({{.stream = 1, .first = 0, .segments = {cut}, .slots = {-1, 1}}});
      EXPECT_EQ(steps.folded_slot(1), segments.folded_slot(1)) << "the state kept at the cut " << cut;
      const Results b = steps.step({{.stream = 1, .first = cut, .segments = {T - cut}, .slots = {1, 0}}});
      EXPECT_EQ(rows(a, 0, cut), rows(want, 0, cut)) << "step to " << cut;
      EXPECT_EQ(rows(b, 0, T - cut), rows(want, cut, T)) << "step from " << cut;
      EXPECT_EQ(steps.folded_slot(0), whole.folded_slot(0)) << "steps at " << cut;
    }
    Slots ones(tested, d);
    const Results y =
        ones.step({{.stream = 1, .first = 0, .segments = {1, 0, 1, 1, 5, 0, 29}, .slots = {-1, 0, 2, 1, 1, 3, 2, 0}}});
    EXPECT_EQ(rows(y, 0, T), rows(want, 0, T));
    EXPECT_EQ(ones.folded_slot(0), whole.folded_slot(0));
  }
}

TEST_P(LightningOps, VerifyEqualsDecode) {
  for (const Dims& d : kDims)
    for (const int prompt : {1, 14, 16})
      for (int accepted = 0; accepted <= kPending; ++accepted) {
        Slots decode(tested, d), verify(tested, d);
        for (Slots* slots : {&decode, &verify})
          slots->step({{.stream = 1, .first = 0, .segments = {prompt}, .slots = {-1, 0}}});
        const int end = prompt + 1 + accepted;  // tokens kept of those verified
        std::vector<std::vector<std::byte>> want;
        for (int t = prompt; t <= end; ++t)
          want.push_back(rows(decode.step({{.stream = 1, .first = t, .segments = {1}, .slots = {0, 0}}}), 0, 1));
        const Results y = verify.step(
            {{.stream = 1, .first = prompt, .segments = {1 + kPending}, .drafts = kPending, .slots = {0, 1}}});
        for (int i = 0; i <= accepted; ++i) EXPECT_EQ(rows(y, i, i + 1), want[i]) << "draft " << i;
        verify.accept(1, accepted);
        const Results next = verify.step({{.stream = 1, .first = end, .segments = {1}, .slots = {1, 2}}});
        EXPECT_EQ(rows(next, 0, 1), want.back()) << accepted << " accepted on " << name();
        EXPECT_EQ(verify.folded_slot(2), decode.folded_slot(0)) << accepted << " accepted on " << name();
      }
}

// The same state whether drafts were rejected or never run, at every length of the prefill they end.
TEST_P(LightningOps, RejectedDraftsLeaveNoTrace) {
  for (const Dims& d : kDims)
    for (const int certain : {1, 12, 13, 16, 30}) {
      Slots plain(tested, d), drafted(tested, d);
      plain.step({{.stream = 1, .first = 0, .segments = {certain}, .slots = {-1, 0}}});
      drafted.step({{.stream = 1, .first = 0, .segments = {certain + 4}, .drafts = 4, .slots = {-1, 0}}});
      EXPECT_EQ(drafted.folded_slot(0), plain.folded_slot(0)) << certain << " on " << name();
      const std::vector<SequenceStep> next = {{.stream = 2, .first = certain, .segments = {3}, .slots = {0, 0}}};
      EXPECT_EQ(rows(drafted.step(next), 0, 3), rows(plain.step(next), 0, 3)) << certain << " on " << name();
      EXPECT_EQ(drafted.folded_slot(0), plain.folded_slot(0)) << certain << " on " << name();
    }
}

TEST_P(LightningOps, SourcesAreReadOnlyAndMayBeShared) {
  for (const Dims& d : kDims) {
    Slots shared(tested, d);
    shared.step({{.stream = 1, .first = 0, .segments = {9}, .drafts = 3, .slots = {-1, 0}}});
    shared.accept(0, 2);
    const auto kept = shared.slot(0);
    const std::vector<SequenceStep> both = {{.stream = 1, .first = 8, .segments = {3}, .drafts = 1, .slots = {0, 1}},
                                            {.stream = 2, .first = 8, .segments = {4}, .slots = {0, 2}}};
    const Results y = shared.step(both);
    EXPECT_EQ(shared.slot(0), kept) << name();
    Slots turned(tested, d);  // in the other order
    turned.step({{.stream = 1, .first = 0, .segments = {9}, .drafts = 3, .slots = {-1, 0}}});
    turned.accept(0, 2);
    const Results z = turned.step({both[1], both[0]});
    EXPECT_EQ(rows(z, 0, 4), rows(y, 3, 7));
    EXPECT_EQ(rows(z, 4, 7), rows(y, 0, 3));
    for (const int slot : {0, 1, 2}) EXPECT_EQ(turned.slot(slot), shared.slot(slot)) << "slot " << slot;
    const Results alone = turned.step({{.stream = 1, .first = 8, .segments = {3}, .drafts = 1, .slots = {0, 3}}});
    EXPECT_EQ(rows(alone, 0, 3), rows(y, 0, 3));
    EXPECT_EQ(turned.slot(3), shared.slot(1));
  }
}

TEST_P(LightningOps, IdleSequencesKeepTheirSlots) {
  for (const Dims& d : kDims) {
    Slots slots(tested, d);
    slots.step({{.stream = 1, .first = 0, .segments = {5}, .drafts = 2, .slots = {-1, 0}},
                {.stream = 2, .first = 0, .segments = {4}, .slots = {-1, 1}}});
    slots.accept(0, 1);
    const auto first = slots.slot(0), second = slots.slot(1), never = slots.slot(4);
    const Results y = slots.step({{.stream = 1, .first = 4, .segments = {2, 1}, .slots = {0, 4, 0}, .active = 0},
                                  {.stream = 3, .first = 0, .segments = {2}, .slots = {-1, 2}},
                                  {.stream = 2, .first = 4, .segments = {0}, .slots = {1, 1}}});
    EXPECT_EQ(slots.slot(0), first) << "inactive";
    EXPECT_EQ(slots.slot(4), never) << "inactive";
    EXPECT_EQ(slots.slot(1), second) << "without rows";
    slots.step({{.stream = 1, .first = 4, .segments = {3}, .drafts = 2, .slots = {0, 0}, .active = 0}});
    EXPECT_EQ(slots.slot(0), first) << "inactive, in place: its pending are not folded, its drafts not kept";
    for (const Tensor& x : y)
      for (int64_t r = 0; r < 3; ++r)
        for (int64_t i = 0; i < x.numel() / x.size(0); ++i)
          ASSERT_EQ(element(x, r, i), 0) << "row " << r << " on " << name();
  }
}

// Slots hold NaN at first, and counts of their last owner.
TEST_P(LightningOps, ASequenceThatBeginsReadsNothingOfItsSlot) {
  for (const Dims& d : kDims) {
    Slots clean(tested, d), stale(tested, d);
    for (int slot = 0; slot < kSlots; ++slot) stale.accept(slot, 3);
    const std::vector<SequenceStep> step = {{.stream = 1, .first = 0, .segments = {3, 4, 2}, .slots = {-1, 0, 1, 2}}};
    const Results y = stale.step(step);
    EXPECT_EQ(rows(y, 0, 9), rows(clean.step(step), 0, 9)) << name();
    for (const int slot : {0, 1, 2}) EXPECT_EQ(stale.slot(slot), clean.slot(slot)) << "slot " << slot;
    for (int64_t i = 0; i < y[1].numel(); ++i) ASSERT_TRUE(std::isfinite(element(y[1].view({1, y[1].numel()}), 0, i)));
  }
}

// The recurrence (ops/lightning.h) by hand: D = 2, slope 0.5; q is given times sqrt(D), which the op divides away.
TEST_P(LightningOps, NumbersMadeByHand) {
  const auto tensor = [&](Shape shape, const std::vector<float>& values, float scale = 1) {
    const Tensor x = pool.zeros(DType::kF32, shape);
    for (size_t i = 0; i < values.size(); ++i) x.as<float>()[i] = scale * values[i];
    return x;
  };
  for (const int64_t D : {2, 16}) {  // 16: the same in the first dims of the cpu kernel
    const auto wide = [&](const std::vector<float>& values, float scale = 1) {
      const Tensor x = pool.zeros(DType::kF32, {3, 1, D});
      for (int t = 0; t < 3; ++t)
        for (int i = 0; i < 2; ++i) x.as<float>()[t * D + i] = scale * values[t * 2 + i];
      return x;
    };
    const Tensor q = wide({1, 0, 0, 1, 1, 1}, std::sqrt(static_cast<float>(D))), k = wide({1, 2, 0, 1, 1, 0}),
                 v = wide({1, 1, 2, 0, 0, 3}), slope = tensor({1}, {0.5f});
    LightningState state{pool.zeros(DType::kF32, {1, 1, D, D}), pool.zeros(DType::kF32, {1, 1, 1, D}),
                         pool.zeros(DType::kF32, {1, 1, 1, D})};
    fill(state.S, 0, 0, NAN);
    const Tensor accepted = pool.ints({0});
    const Batch batch = batch_of(pool, {{.stream = 1, .first = 0, .segments = {3}, .slots = {-1, 0}}});
    const Tensor y = tested.run([&](ExecContext& ctx) {
      return ops::lightning_attention(ctx, q, k, v, slope, state, accepted, batch, DType::kF32);
    });
    const Tensor want = wide({1, 1, 3.2130613f, 1.2130613f, 2.3166996f, 4.1036383f});
    EXPECT_TRUE(close_to(y, want, {.c = 8}, "lightning_attention", name()));
    const Tensor S = pool.zeros(DType::kF32, {D, D});
    S.as<float>()[0] = 0.3678794f, S.as<float>()[1] = 3.3678794f;
    S.as<float>()[D] = 1.9488202f, S.as<float>()[D + 1] = 0.7357589f;
    EXPECT_TRUE(close_to(state.S[0][0], S, {.c = 8}, "state", name()));
  }
}

// A decay that leaves nothing: the output is that of the token alone, and no denormal number slows or spoils it.
TEST_P(LightningOps, AFastDecayForgetsEverything) {
  const int64_t D = 16, T = 300;
  const Tensor q = random(pool, DType::kF32, {T, 1, D}, 1), k = random(pool, DType::kF32, {T, 1, D}, 2),
               v = random(pool, DType::kF32, {T, 1, D}, 3), slope = pool.zeros(DType::kF32, {1});
  slope.as<float>()[0] = 30;  // e^-30
  LightningState state{pool.zeros(DType::kF32, {1, 1, D, D}), pool.zeros(DType::kF32, {1, 0, 1, D}),
                       pool.zeros(DType::kF32, {1, 0, 1, D})};
  for (int64_t t = 1; t < T; ++t)
    for (int64_t i = 0; i < D; ++i) k[t].as<float>()[i] = 0;
  const Tensor accepted = pool.ints({0});
  const Batch batch = batch_of(pool, {{.stream = 1, .first = 0, .segments = {static_cast<int>(T)}, .slots = {-1, 0}}});
  const Tensor y = tested.run([&](ExecContext& ctx) {
    return ops::lightning_attention(ctx, q, k, v, slope, state, accepted, batch, DType::kF32);
  });
  for (int64_t i = 0; i < D; ++i) {
    EXPECT_NE(element(y, 0, i), 0);
    EXPECT_EQ(element(y, T - 1, i), 0);
  }
  for (int64_t i = 0; i < D * D; ++i) EXPECT_EQ(state.S.as<float>()[i], 0);
}

CALANDRA_ON_ALL_BACKENDS(LightningOps);

}  // namespace
}  // namespace calandra

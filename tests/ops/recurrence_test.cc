// Recurrences on every backend: against the reference, in exact bits however a sequence is cut into steps, segments and
// drafts, and against numbers made by hand.
#include "tests/ops/op_setting.h"

namespace calandra {
namespace {

using Results = std::vector<Tensor>;

struct Dims {
  int Hk, Hv, Dk, Dv, W;
  DType dtype;
  int channels() const { return 2 * Hk * Dk + Hv * Dv; }
};
const Dims kDims[] = {{2, 4, 16, 32, 4, DType::kBF16}, {1, 3, 24, 8, 3, DType::kF32}, {1, 2, 32, 16, 4, DType::kF32}};
constexpr int kPending = 4, kSlots = 6, kHidden = 5;

// The slots of one model layer: convolution, delta rule and mixer, each with its own state, and the counts.
class Slots {
 public:
  Slots(OpRunner& runner, const Dims& dims) : on(runner), d(dims) {
    weights.conv1d = random(pool, DType::kF32, {d.channels(), d.W}, 1, 0.6f);
    weights.A_log = random(pool, DType::kF32, {d.Hv}, 2);
    weights.dt_bias = random(pool, DType::kF32, {d.Hv}, 3, 2, -2);
    weights.norm = random(pool, DType::kF32, {d.Dv}, 4, 0.5f, 1);
    for (ConvState* x : {&conv, &mixer_conv})
      *x = {pool.zeros(d.dtype, {kSlots, d.W - 1, d.channels()}),
            pool.zeros(d.dtype, {kSlots, kPending, d.channels()})};
    for (DeltaState* x : {&delta, &mixer_delta}) {
      *x = {pool.zeros(DType::kF32, {kSlots, d.Hv, d.Dk, d.Dv}),
            pool.zeros(DType::kF32, {kSlots, kPending, d.Hk, d.Dk}),
            pool.zeros(DType::kF32, {kSlots, kPending, d.Hv, d.Dv}), pool.zeros(DType::kF32, {kSlots, kPending, d.Hv}),
            pool.zeros(DType::kF32, {kSlots, kPending, d.Hv})};
    }
    counts = {pool.zeros(DType::kI32, {kSlots}), pool.zeros(DType::kI32, {kSlots}),
              pool.zeros(d.dtype, {kSlots, 1 + kPending, kHidden})};
    for (const Tensor& x : all())
      if (x.dtype() != DType::kI32) fill(x, 5, 0, NAN);  // nobody may read what was not written
  }

  // What a slot means once nothing is pending.
  Results folded() const {
    return {conv.window, mixer_conv.window, delta.S, mixer_delta.S, counts.N, counts.hidden.slice(1, 0, 1)};
  }
  Results all() const {
    return {
        conv.window,           conv.pending,          mixer_conv.window,     mixer_conv.pending,       delta.S,
        delta.pending_k,       delta.pending_v,       delta.pending_g,       delta.pending_beta,       mixer_delta.S,
        mixer_delta.pending_k, mixer_delta.pending_v, mixer_delta.pending_g, mixer_delta.pending_beta, counts.N,
        counts.accepted,       counts.hidden};
  }
  static std::vector<std::byte> bytes(const Results& states, int slot) {
    std::vector<std::byte> all;
    for (const Tensor& x : states) {
      const auto part = row_bytes(x, slot, slot + 1);
      all.insert(all.end(), part.begin(), part.end());
    }
    return all;
  }
  std::vector<std::byte> slot(int index) const { return bytes(all(), index); }
  std::vector<std::byte> folded_slot(int index) const { return bytes(folded(), index); }
  void accept(int index, int count) { counts.accepted.as<int32_t>()[index] = count; }

  // One step of all ops; their rows, which are functions of (stream, token): convolution, delta rule, mixer.
  Results step(const std::vector<SequenceStep>& steps) {
    const Batch batch = batch_of(pool, steps);
    const int C = d.channels(), values = d.Hv * d.Dv;
    const Tensor x = input(steps, d.dtype, 0, C + values + 2 * d.Hv), qkv = x.slice(1, 0, C),
                 z = x.slice(1, C, C + values), b = x.slice(1, C + values, C + values + d.Hv),
                 a = x.slice(1, C + values + d.Hv, x.size(1));
    const int64_t T = x.size(0);
    const Tensor q = x.slice(1, 0, d.Hk * d.Dk).view({T, d.Hk, d.Dk}),
                 k = x.slice(1, d.Hk * d.Dk, 2 * d.Hk * d.Dk).view({T, d.Hk, d.Dk}),
                 v = x.slice(1, 2 * d.Hk * d.Dk, C).view({T, d.Hv, d.Dv});
    const Tensor hidden = input(steps, d.dtype, 1, kHidden);
    return on.run([&](ExecContext& ctx) {
      ctx.backend.plan(ctx, batch);
      const Tensor g = ops::log_decay(ctx, a, weights.A_log, weights.dt_bias), beta = ops::sigmoid(ctx, b);
      const Results y = {
          ops::causal_conv1d_silu(ctx, qkv, weights.conv1d, conv, counts.accepted, batch),
          ops::gated_delta_rule(ctx, q, k, v, g, beta, delta, counts.accepted, batch),
          ops::gated_delta_mixer(ctx, qkv, z, b, a, weights, mixer_conv, mixer_delta, counts.accepted, batch)};
      Tensor ring;
      ops::commit_slots(ctx, hidden, counts, ring, batch);
      return y;
    });
  }

  OpRunner& on;
  const Dims d;
  TensorPool pool;
  ops::GatedDeltaWeights weights;
  ConvState conv, mixer_conv;
  DeltaState delta, mixer_delta;
  SlotCounts counts;

 private:
  Tensor input(const std::vector<SequenceStep>& steps, DType dtype, int kind, int width) {
    int64_t T = 0, row = 0;
    for (const SequenceStep& s : steps) T += s.rows();
    const Tensor x = random(pool, dtype, {T, width}, 0, 1, 0, 3);
    for (const SequenceStep& s : steps)
      for (int t = s.first; t < s.first + s.rows(); ++t, ++row)
        for (int i = 0; i < width; ++i) set_element(x, row, i, 1.5f * noise(s.stream * 2 + kind + 7, t * 65536 + i));
    return x;
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

class RecurrenceOps : public OpTest {};

// Accepted pending, segments, drafts, a kept source, new, inactive and empty sequences.
TEST_P(RecurrenceOps, EqualTheReference) {
  for (const Dims& d : kDims) {
    Slots got(tested, d), want(reference, d);
    const auto both = [&](const std::vector<SequenceStep>& steps) {
      const Results a = got.step(steps), b = want.step(steps);
      const char* names[] = {"causal_conv1d_silu", "gated_delta_rule", "gated_delta_mixer"};
      // The mixer norms a sum of rounded numbers, which a head of small outputs makes larger.
      const Tolerance tolerances[] = {
          {.reduction = d.W}, {.c = 16, .reduction = 40 + d.Dk}, {.c = 64, .reduction = 40 + d.Dk, .roundings = 6}};
      for (int i = 0; i < 3; ++i) EXPECT_TRUE(close_to(a[i], b[i], tolerances[i], names[i], name()));
      // The mixer's f32 state is made of numbers that were rounded to bf16: 2^16 eps(f32) is one such rounding.
      const Results x = got.all(), y = want.all();
      for (size_t i = 0; i < x.size(); ++i)
        EXPECT_TRUE(close_to(x[i], y[i],
                             {.c = 16, .reduction = 40 + d.Dk, .roundings = d.dtype == DType::kBF16 ? 65536.0 : 1},
                             "state " + std::to_string(i), name()));
    };
    both({{.stream = 1, .first = 0, .segments = {23}, .drafts = 3, .slots = {-1, 0}},
          {.stream = 2, .first = 0, .segments = {33}, .drafts = 4, .slots = {-1, 1}}});
    for (Slots* slots : {&got, &want}) slots->accept(0, 2), slots->accept(1, 4);
    both({{.stream = 1, .first = 22, .segments = {5, 1, 4}, .drafts = 3, .slots = {0, 2, 4, 0}},
          {.stream = 2, .first = 33, .segments = {2}, .drafts = 2, .slots = {1, 1}},
          {.stream = 9, .first = 7, .segments = {2}, .slots = {2, 2}, .active = 0},
          {.stream = 7, .first = 7, .segments = {0}, .slots = {3, 3}},
          {.stream = 8, .first = 0, .segments = {1}, .drafts = 1, .slots = {-1, 5}}});
    both({});
  }
}

TEST_P(RecurrenceOps, LogDecayAndL2Norm) {
  for (const DType dtype : {DType::kF32, DType::kBF16})
    for (const int64_t T : {0, 1, 19})
      for (const float scale : {1e-3f, 1.0f, 40.0f}) {
        const Tensor a = random(pool, dtype, {T, 5}, 1, scale, 0, 3), A_log = random(pool, DType::kF32, {5}, 2),
                     dt_bias = random(pool, DType::kF32, {5}, 3), x = random(pool, dtype, {T, 2, 40}, 4, scale, 0, 5);
        compare("log_decay, l2_norm", {.reduction = 40}, [&](OpRunner& on) {
          return on.run([&](ExecContext& ctx) {
            return Results{ops::log_decay(ctx, a, A_log, dt_bias), ops::l2_norm(ctx, x)};
          });
        });
      }
}

// Also segments shorter than the window.
TEST_P(RecurrenceOps, CutAnywhereIntoSegmentsOrStepsGivesTheSameBits) {
  const int T = 11;
  for (const Dims& d : kDims) {
    Slots whole(tested, d);
    const Results want = whole.step({{.stream = 1, .first = 0, .segments = {T}, .slots = {-1, 0}}});
    for (int cut = 1; cut < T; ++cut) {
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
    const Results y = ones.step({{.stream = 1,
                                  .first = 0,
                                  .segments = std::vector<int>(T, 1),
                                  .slots = {-1, 0, 0, 1, 1, 0, 0, 0, 2, 2, 2, 0}}});
    EXPECT_EQ(rows(y, 0, T), rows(want, 0, T));
    EXPECT_EQ(ones.folded_slot(0), whole.folded_slot(0));
  }
}

TEST_P(RecurrenceOps, VerifyEqualsDecode) {
  for (const Dims& d : kDims)
    for (const int prompt : {1, 2, 6})
      for (int accepted = 0; accepted <= kPending; ++accepted) {
        Slots decode(tested, d), verify(tested, d);
        for (Slots* slots : {&decode, &verify})
          slots->step({{.stream = 1, .first = 0, .segments = {prompt}, .slots = {-1, 0}}});
        const int end = prompt + 1 + accepted;  // tokens kept of those verified
        std::vector<std::vector<std::byte>> want;
        for (int t = prompt; t < prompt + 6; ++t) {
          want.push_back(rows(decode.step({{.stream = 1, .first = t, .segments = {1}, .slots = {0, 0}}}), 0, 1));
          if (t == end) break;
        }
        const Results y = verify.step(
            {{.stream = 1, .first = prompt, .segments = {1 + kPending}, .drafts = kPending, .slots = {0, 1}}});
        for (int i = 0; i <= accepted; ++i) EXPECT_EQ(rows(y, i, i + 1), want[i]) << "draft " << i;
        verify.accept(1, accepted);
        const Results next = verify.step({{.stream = 1, .first = end, .segments = {1}, .slots = {1, 2}}});
        EXPECT_EQ(rows(next, 0, 1), want.back()) << accepted << " accepted on " << name();
        EXPECT_EQ(verify.folded_slot(2), decode.folded_slot(0)) << accepted << " accepted on " << name();
        EXPECT_EQ(verify.counts.accepted.as<int32_t>()[2], 0);
        EXPECT_EQ(verify.counts.N.as<int32_t>()[2], end + 1);
      }
}

TEST_P(RecurrenceOps, SourcesAreReadOnlyAndMayBeShared) {
  for (const Dims& d : kDims) {
    Slots shared(tested, d);
    shared.step({{.stream = 1, .first = 0, .segments = {9}, .drafts = 3, .slots = {-1, 0}}});
    shared.accept(0, 2);
    const auto kept = shared.slot(0);
    const std::vector<SequenceStep> both = {{.stream = 1, .first = 8, .segments = {3}, .drafts = 1, .slots = {0, 1}},
                                            {.stream = 2, .first = 8, .segments = {4}, .slots = {0, 2}}};
    const Results y = shared.step(both);
    EXPECT_EQ(shared.slot(0), kept) << name();
    // Each alone gives the same, and in the other order.
    Slots turned(tested, d);
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

TEST_P(RecurrenceOps, IdleSequencesKeepTheirSlots) {
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

TEST_P(RecurrenceOps, StaleCountsOfRecycledSlotsAreIgnored) {
  for (const Dims& d : kDims) {
    Slots clean(tested, d), stale(tested, d);
    for (int slot = 0; slot < kSlots; ++slot) stale.accept(slot, 3);
    const std::vector<SequenceStep> step = {{.stream = 1, .first = 0, .segments = {3, 4, 2}, .slots = {-1, 0, 1, 2}}};
    EXPECT_EQ(rows(stale.step(step), 0, 9), rows(clean.step(step), 0, 9)) << name();
    for (const int slot : {0, 1, 2}) EXPECT_EQ(stale.slot(slot), clean.slot(slot)) << "slot " << slot;
  }
}

// Counts and hidden rows of the slots, by hand.
TEST_P(RecurrenceOps, CommitSlotsByHand) {
  Slots slots(tested, kDims[2]);
  const auto counts = [&](int slot) {
    return std::pair{slots.counts.N.as<int32_t>()[slot], slots.counts.accepted.as<int32_t>()[slot]};
  };
  const auto hidden_is = [&](int slot, int row, int token) {
    for (int i = 0; i < kHidden; ++i)
      if (element(slots.counts.hidden[slot], row, i) != 1.5f * noise(1 * 2 + 1 + 7, token * 65536 + i)) return false;
    return true;
  };
  slots.step({{.stream = 1, .first = 0, .segments = {3, 4}, .drafts = 2, .slots = {-1, 0, 1}}});
  EXPECT_EQ(counts(0), std::pair(3, 0));
  EXPECT_EQ(counts(1), std::pair(5, 0));
  EXPECT_TRUE(hidden_is(0, 0, 2) && hidden_is(1, 0, 4) && hidden_is(1, 1, 5) && hidden_is(1, 2, 6));
  slots.accept(1, 1);
  slots.step({{.stream = 1, .first = 6, .segments = {2}, .drafts = 2, .slots = {1, 2}}});  // drafts only
  EXPECT_EQ(counts(1), std::pair(5, 1));
  EXPECT_EQ(counts(2), std::pair(6, 0));
  EXPECT_TRUE(hidden_is(2, 0, 5) && hidden_is(2, 1, 6) && hidden_is(2, 2, 7));
}

// A prompt longer than the ring, a sequence that goes round it with drafts, one that is inactive and one without rows;
// what stands beside the rings is let be.
TEST_P(RecurrenceOps, RingsHaveTheLastRowOfEveryToken) {
  constexpr int R = 5, kLanes = 6;
  for (const DType dtype : {DType::kF32, DType::kBF16})
    for (const int64_t D : {13, 16}) {
      Batch batch = batch_of(pool, {{.stream = 1, .first = 3, .segments = {4, 8}, .slots = {-1, 0, 1}},
                                    {.stream = 2, .first = 8, .segments = {4}, .drafts = 3, .slots = {2, 2}},
                                    {.stream = 3, .first = 2, .segments = {2}, .slots = {3, 3}, .active = 0},
                                    {.stream = 4, .first = 4, .segments = {0}, .slots = {4, 4}}});
      batch.lane = pool.ints({2, 0, 5, 3});
      const Tensor hidden = random(pool, dtype, {18, D}, 1, 1, 0, 16),
                   memory = random(pool, dtype, {kLanes, R + 1, D}, 2),
                   before = random(pool, dtype, {kLanes, R + 1, D}, 2);
      Tensor ring = memory.slice(1, 0, R);
      SlotCounts counts{pool.ints({0, 0, 0, 0, 0}), pool.ints({0, 0, 0, 0, 0}), pool.zeros(dtype, {5, 4, D})};
      tested.run([&](ExecContext& ctx) {
        ops::commit_slots(ctx, hidden, counts, ring, batch);
        return 0;
      });
      for (int lane = 0; lane < kLanes; ++lane)
        for (int place = 0; place <= R; ++place) {
          int row = -1;  // of hidden
          for (int token = 10; lane == 2 && token < 15; ++token)
            if (token % R == place) row = token - 3;
          for (int token = 8; lane == 0 && token < 12; ++token)
            if (token % R == place) row = 12 + token - 8;
          if (place == R) row = -1;
          EXPECT_EQ(row_bytes(memory[lane], place, place + 1),
                    row < 0 ? row_bytes(before[lane], place, place + 1) : row_bytes(hidden, row, row + 1))
              << "lane " << lane << " place " << place << " on " << name();
        }
    }
}

// Dk = Dv = 2, one head; keys and queries are unit vectors, decay 1/2, beta 1/2.
TEST_P(RecurrenceOps, DeltaRuleByHand) {
  const auto tensor = [&](Shape shape, const std::vector<float>& values) {
    const Tensor x = pool.zeros(DType::kF32, shape);
    std::copy(values.begin(), values.end(), x.as<float>());
    return x;
  };
  const Tensor k = tensor({2, 1, 2}, {1, 0, 1, 0}), q = tensor({2, 1, 2}, {1, 0, 0, 1}),
               v = tensor({2, 1, 2}, {4, 8, 2, 2}), g = tensor({2, 1}, {std::log(0.5f), std::log(0.5f)}),
               beta = tensor({2, 1}, {0.5f, 0.5f});
  DeltaState state{tensor({1, 1, 2, 2}, {0, 4, 6, 8}), tensor({1, 1, 1, 2}, {0, 0}), tensor({1, 1, 1, 2}, {0, 0}),
                   tensor({1, 1, 1}, {0}), tensor({1, 1, 1}, {0})};
  const Tensor accepted = pool.ints({0});
  const Batch batch = batch_of(pool, {{.stream = 1, .first = 5, .segments = {2}, .slots = {0, 0}}});
  const Tensor y = tested.run(
      [&](ExecContext& ctx) { return ops::gated_delta_rule(ctx, q, k, v, g, beta, state, accepted, batch); });
  // S = (0 2; 3 4), read (0 2), change (4 6) / 2, S = (2 5; 3 4): y = (2 5) / sqrt 2
  // S = (1 2.5; 1.5 2), read (1 2.5), change (1 -0.5) / 2, S = (1.5 2.25; 1.5 2): y = (1.5 2) / sqrt 2
  const float r = std::sqrt(0.5f);
  EXPECT_TRUE(close_to(y, tensor({2, 1, 2}, {2 * r, 5 * r, 1.5f * r, 2 * r}), {.c = 20}, "gated_delta_rule", name()));
  EXPECT_TRUE(close_to(state.S, tensor({1, 1, 2, 2}, {1.5f, 2.25f, 1.5f, 2}), {.c = 20}, "gated_delta_rule", name()));
}

TEST_P(RecurrenceOps, ConvolutionByHand) {
  const auto silu = [](float x) { return x / (1 + std::exp(-x)); };
  const Tensor x = random(pool, DType::kF32, {2, 1}, 0), weight = random(pool, DType::kF32, {1, 3}, 0);
  x.as<float>()[0] = 1, x.as<float>()[1] = 2;
  for (const int i : {0, 1, 2}) weight.as<float>()[i] = std::vector<float>{100, 10, 1}[i] / 64;
  ConvState state{pool.zeros(DType::kF32, {2, 2, 1}), pool.zeros(DType::kF32, {2, 2, 1})};
  state.window.as<float>()[0] = 5, state.window.as<float>()[1] = 6;
  state.pending.as<float>()[0] = 7, state.pending.as<float>()[1] = 8;
  const Tensor accepted = pool.ints({1, 0}), want = pool.zeros(DType::kF32, {2, 1});
  const Batch batch = batch_of(pool, {{.stream = 1, .first = 3, .segments = {2}, .drafts = 1, .slots = {0, 1}}});
  const Tensor y =
      tested.run([&](ExecContext& ctx) { return ops::causal_conv1d_silu(ctx, x, weight, state, accepted, batch); });
  want.as<float>()[0] = silu(671.0f / 64), want.as<float>()[1] = silu(712.0f / 64);  // 5 6 7 | 1 | 2, the draft
  EXPECT_TRUE(close_to(y, want, {}, "causal_conv1d_silu", name()));
  EXPECT_EQ(element(state.window[1], 0, 0), 7);
  EXPECT_EQ(element(state.window[1], 1, 0), 1);
  EXPECT_EQ(element(state.pending[1], 0, 0), 2);
}

CALANDRA_ON_ALL_BACKENDS(RecurrenceOps);

}  // namespace
}  // namespace calandra

// Mixture-of-experts ops on every backend against the reference, against numbers made by hand, and properties.
#include <algorithm>
#include <numeric>
#include <set>

#include "backends/cpu/experts_for_test.h"
#include "tests/ops/op_setting.h"

namespace calandra {
namespace {

using ops::RouterOptions;
using ops::RouterScore;
using ops::Routing;
using Results = std::vector<Tensor>;
constexpr DType kTypes[] = {DType::kF32, DType::kBF16};
constexpr RouterScore kScores[] = {RouterScore::kSoftmax, RouterScore::kSigmoid};

class MoeOps : public OpTest {
 protected:
  Tensor matrix(Shape shape, const std::vector<float>& values) {
    const Tensor x = pool.zeros(DType::kF32, shape);
    std::copy(values.begin(), values.end(), x.as<float>());
    return x;
  }
  Tensor vector(const std::vector<float>& values) { return matrix({static_cast<int64_t>(values.size())}, values); }
  Tensor choices(Shape shape, const std::vector<int32_t>& values) { return pool.ints(values).view(shape); }
  GroupedWeight experts(OpRunner& on, const Tensor& source) {
    storage_.emplace_back();
    return group(on.backend(), source, storage_.back());
  }
  Routing route(const Tensor& logits, const Tensor& bias, const RouterOptions& options) {
    return tested.run([&](ExecContext& ctx) { return ops::route(ctx, logits, bias, options); });
  }
  // Of row t.
  std::vector<int32_t> chosen(const Routing& routing, int64_t t = 0) {
    const int32_t* row = routing.experts.as<int32_t>() + t * routing.experts.size(1);
    return {row, row + routing.experts.size(1)};
  }
  std::vector<float> weights(const Routing& routing, int64_t t = 0) {
    const float* row = routing.weights.as<float>() + t * routing.weights.size(1);
    return {row, row + routing.weights.size(1)};
  }

  // The weights of a mixture on one backend. Sources are made once.
  struct Mixture {
    int64_t E, D, F, Fs;
    bool shared_gate, bias;
    DType stored = DType::kBF16;
  };
  ops::SparseMoeWeights mixture(OpRunner& on, const Mixture& m) {
    const float in = 1.5f / std::sqrt(static_cast<float>(m.D)), inner = 1.5f / std::sqrt(static_cast<float>(m.F));
    ops::SparseMoeWeights w;
    w.router = on.weight(random(pool, DType::kF32, {m.E, m.D}, 101, 3 * in));
    if (m.bias) w.bias = random(pool, DType::kF32, {m.E}, 102, 0.2f);
    w.gate = experts(on, random(pool, m.stored, {m.E, m.F, m.D}, 103, in));
    w.up = experts(on, random(pool, m.stored, {m.E, m.F, m.D}, 104, in));
    w.down = experts(on, random(pool, m.stored, {m.E, m.D, m.F}, 105, inner));
    if (m.Fs > 0) {
      w.shared_gate_up.part(0) = on.weight(random(pool, m.stored, {m.Fs, m.D}, 106, in));
      w.shared_gate_up.part(1) = on.weight(random(pool, m.stored, {m.Fs, m.D}, 107, in));
      w.shared_down = on.weight(random(pool, m.stored, {m.D, m.Fs}, 108, inner));
    }
    if (m.shared_gate) w.shared_gate = on.weight(random(pool, DType::kBF16, {1, m.D}, 109, in));
    return w;
  }

 private:
  std::deque<Buffer> storage_;
};

TEST_P(MoeOps, RouteEqualsTheReference) {
  struct Case {
    int64_t E, top_k, n_group, topk_group;
  };
  for (const Case& c :
       {Case{1, 1, 1, 1}, {6, 6, 1, 1}, {37, 5, 1, 1}, {12, 3, 4, 2}, {8, 4, 8, 5}, {256, 8, 8, 4}, {512, 10, 1, 1}})
    for (const RouterScore score : kScores)
      for (const bool with_bias : {false, true})
        for (const int64_t T : {0, 1, 40}) {
          const Tensor logits = random(pool, DType::kF32, {T, c.E}, 1, 4, 0, 3),
                       bias = with_bias ? random(pool, DType::kF32, {c.E}, 2, 0.3f) : Tensor();
          for (const bool norm : {false, true})
            compare("route", {.c = 8, .reduction = c.top_k}, [&](OpRunner& on) {
              const Routing routing = on.run([&](ExecContext& ctx) {
                return ops::route(ctx, logits, bias,
                                  {score, c.top_k, c.n_group, c.topk_group, norm, norm ? 1.0f : 2.5f});
              });
              return Results{routing.weights, routing.experts};
            });
        }
}

TEST_P(MoeOps, RouteOfNumbersMadeByHand) {
  const float log3 = std::log(3.0f);
  const Tensor logits = matrix({1, 4}, {0, log3, -log3, log3});  // sigmoid 1/2, 3/4, 1/4, 3/4
  Routing r = route(logits, {}, {.score = RouterScore::kSigmoid, .top_k = 3});
  EXPECT_EQ(chosen(r), (std::vector<int32_t>{1, 3, 0})) << "equal scores: the lower index";
  EXPECT_TRUE(close_to(r.weights, matrix({1, 3}, {3.0f / 8, 3.0f / 8, 2.0f / 8}), {}, "route", name()));

  r = route(logits, vector({0, 0, 1, -0.5f}), {.score = RouterScore::kSigmoid, .top_k = 2, .norm_topk_prob = false});
  EXPECT_EQ(chosen(r), (std::vector<int32_t>{2, 1})) << "the bias chooses";
  EXPECT_TRUE(close_to(r.weights, matrix({1, 2}, {0.25f, 0.75f}), {}, "route", name())) << "and is in no weight";

  r = route(logits, {}, {.score = RouterScore::kSigmoid, .top_k = 2, .routed_scaling_factor = 2.5f});
  EXPECT_TRUE(close_to(r.weights, matrix({1, 2}, {1.25f, 1.25f}), {}, "route", name()));

  // softmax 1/8, 3/8, 1/24, 3/8 (of 8 / 3 = 1 + 3 + 1/3 + 3, times 1 / (22/3))
  r = route(logits, {}, {.top_k = 1, .norm_topk_prob = false});
  EXPECT_EQ(chosen(r), std::vector<int32_t>{1});
  EXPECT_TRUE(close_to(r.weights, matrix({1, 1}, {9.0f / 22}), {}, "route", name()));
  r = route(logits, {}, {.top_k = 1});
  EXPECT_EQ(weights(r), std::vector<float>{1}) << "one choice, its own sum";
}

TEST_P(MoeOps, RouteKeepsTheBestGroups) {
  // groups {0, 1}, {2, 3}, {4, 5}: the largest logit is in the first, the largest sum of two in the second
  const Tensor logits = matrix({1, 6}, {3, -3, 2, 2, -1, 1});
  RouterOptions options{.score = RouterScore::kSigmoid, .top_k = 2, .n_group = 3, .topk_group = 1};
  EXPECT_EQ(chosen(route(logits, {}, options)), (std::vector<int32_t>{2, 3})) << "sum of two";
  options.score = RouterScore::kSoftmax;
  EXPECT_EQ(chosen(route(logits, {}, options)), (std::vector<int32_t>{0, 1})) << "maximum";
  options.topk_group = 2;
  EXPECT_EQ(chosen(route(logits, {}, options)), (std::vector<int32_t>{0, 2}));
  EXPECT_EQ(chosen(route(logits, vector({0, 0, -9, -9, 0, 0}), options)), (std::vector<int32_t>{0, 5}))
      << "the bias counts for groups";
  const Tensor equal = matrix({1, 6}, {0, 0, 0, 0, 0, 0});
  EXPECT_EQ(chosen(route(equal, {}, options)), (std::vector<int32_t>{0, 1})) << "equal groups: the lower index";
  options = {.score = RouterScore::kSigmoid, .top_k = 2, .n_group = 6, .topk_group = 2};  // groups of one
  EXPECT_EQ(chosen(route(logits, {}, options)), (std::vector<int32_t>{0, 2}));
}

TEST_P(MoeOps, RouteFollowsAPermutationOfRowsAndOfExperts) {
  const int64_t T = 9, E = 37, k = 5;
  const Tensor logits = random(pool, DType::kF32, {T, E}, 3, 4), bias = random(pool, DType::kF32, {E}, 4, 0.2f);
  const Tensor moved = pool.zeros(DType::kF32, {T, E}), moved_bias = pool.zeros(DType::kF32, {E});
  const auto row_of = [&](int64_t t) { return (t * 4 + 1) % T; };
  const auto expert_of = [&](int64_t e) { return (e * 10 + 3) % E; };
  for (int64_t e = 0; e < E; ++e) {
    moved_bias.as<float>()[expert_of(e)] = bias.as<float>()[e];
    for (int64_t t = 0; t < T; ++t) moved.as<float>()[row_of(t) * E + expert_of(e)] = logits.as<float>()[t * E + e];
  }
  // sigmoid: a softmax sums in the order of the experts
  const RouterOptions options{.score = RouterScore::kSigmoid, .top_k = k, .routed_scaling_factor = 2.5f};
  const Routing before = route(logits, bias, options), after = route(moved, moved_bias, options);
  for (int64_t t = 0; t < T; ++t) {
    std::vector<int32_t> want = chosen(before, t);
    for (int32_t& e : want) e = static_cast<int32_t>(expert_of(e));
    EXPECT_EQ(chosen(after, row_of(t)), want);
    EXPECT_EQ(weights(after, row_of(t)), weights(before, t));
    float sum = 0;
    for (const float weight : weights(before, t)) sum += weight;
    EXPECT_NEAR(sum, 2.5f, 2.5f * 0x1p-21f);
  }
}

TEST_P(MoeOps, RouteOfAllExpertsSortsThem) {
  const int64_t E = 19;
  for (const RouterScore score : kScores) {
    const Tensor logits = random(pool, DType::kF32, {3, E}, 5, 3);
    const Routing r = route(logits, {}, {.score = score, .top_k = E});
    for (int64_t t = 0; t < 3; ++t) {
      std::vector<int32_t> want(E);
      std::iota(want.begin(), want.end(), 0);
      const float* row = logits.as<float>() + t * E;
      std::stable_sort(want.begin(), want.end(), [&](int32_t a, int32_t b) { return row[a] > row[b]; });
      EXPECT_EQ(chosen(r, t), want);
    }
  }
}

// Broken weights: any choice will do, if it is one.
TEST_P(MoeOps, RouteOfLogitsThatAreNoNumbers) {
  const int64_t E = 24, k = 6;
  const float inf = INFINITY;
  for (const RouterScore score : kScores)
    for (const int64_t n_group : {1, 4, 24})
      for (const float bad : {static_cast<float>(NAN), inf, -inf, 3e38f})
        for (const int64_t count : {int64_t{1}, E / 2, E})
          for (const bool in_bias : {false, true}) {
            const Tensor logits = random(pool, DType::kF32, {2, E}, 6), bias = random(pool, DType::kF32, {E}, 7);
            for (int64_t i = 0; i < count; ++i) (in_bias ? bias : logits).as<float>()[i * 5 % E] = bad;
            const Routing r =
                route(logits, bias, {score, k, n_group, std::max<int64_t>(1, n_group / 2 * 2 - 2), true, 1});
            for (int64_t t = 0; t < 2; ++t) {
              const std::vector<int32_t> row = chosen(r, t);
              EXPECT_EQ(std::set(row.begin(), row.end()).size(), row.size()) << "each once";
              for (const int32_t e : row) EXPECT_TRUE(e >= 0 && e < E) << e;
            }
          }
  const Routing r = route(matrix({1, 3}, {NAN, -5, -4}), {}, {.score = RouterScore::kSigmoid, .top_k = 2});
  EXPECT_EQ(chosen(r), (std::vector<int32_t>{2, 1})) << "NaN is the smallest score";
}

TEST(MoeOpsDeathTest, ImpossibleOptionsAbort) {
  TensorPool pool;
  OpRunner reference{std::make_unique<ReferenceBackend>()};
  const Tensor logits = random(pool, DType::kF32, {2, 10}, 1), short_bias = random(pool, DType::kF32, {9}, 1);
  const auto route = [&](const RouterOptions& options, const Tensor& bias = {}) {
    reference.run([&](ExecContext& ctx) { return ops::route(ctx, logits, bias, options); });
  };
  EXPECT_DEATH(route({.top_k = 0}), "top_k");
  EXPECT_DEATH(route({.top_k = 11}), "top_k");
  EXPECT_DEATH(route({.top_k = 1, .n_group = 3}), "n_group");
  EXPECT_DEATH(route({.top_k = 1, .n_group = 2, .topk_group = 3}), "topk_group");
  EXPECT_DEATH(route({.top_k = 6, .n_group = 2, .topk_group = 1}), "top_k");
  EXPECT_DEATH(route({.top_k = 1}, short_bias), "route");
}

TEST_P(MoeOps, GroupedLinearIsLinearWithTheChosenExpert) {
  for (const DType dtype : kTypes)
    for (const DType stored : {DType::kF32, DType::kBF16, DType::kF16})
      for (const int64_t T : {0, 1, 3, 30}) {
        const int64_t E = 5, k = 3, N = 45, K = 260;
        const Tensor source = random(pool, stored, {E, N, K}, 1), x = random(pool, dtype, {T, K}, 2, 1, 0, 3),
                     each = random(pool, dtype, {T, k, K}, 3, 1, 0, 5);
        std::vector<int32_t> list(T * k);
        for (size_t i = 0; i < list.size(); ++i) list[i] = static_cast<int32_t>((i * i + i / 7) % E);
        const Tensor chosen = choices({T, k}, list);
        compare("grouped_linear", {.reduction = K}, [&](OpRunner& on) {
          const GroupedWeight weight = experts(on, source);
          return Results{on.run([&](ExecContext& ctx) { return ops::grouped_linear(ctx, x, weight, chosen); }),
                         on.run([&](ExecContext& ctx) { return ops::grouped_linear(ctx, each, weight, chosen); })};
        });
        const GroupedWeight weight = experts(tested, source);
        const Tensor y = tested.run([&](ExecContext& ctx) { return ops::grouped_linear(ctx, each, weight, chosen); });
        for (int64_t t = 0; t < T; ++t)
          for (int64_t j = 0; j < k; ++j) {
            const Tensor alone = tested.run([&](ExecContext& ctx) {
              return ops::linear(ctx, each[t].slice(0, j, j + 1), weight.expert(list[t * k + j]), dtype);
            });
            ASSERT_EQ(row_bytes(alone), row_bytes(y[t], j, j + 1)) << "row " << t << " choice " << j;
          }
      }
}

// Scales change within the outputs that a kernel computes at once.
TEST_P(MoeOps, GroupedLinearOfF8Experts) {
  const int64_t E = 4, k = 2, N = 45;
  for (const int64_t K : {300, 256}) {
    const F8Experts source(E, N, K, 5, 128, 1);
    for (const DType dtype : kTypes)
      for (const int64_t T : {1, 9, 30}) {
        const Tensor x = random(pool, dtype, {T, K}, 2, 1, 0, K == 256 ? 0 : 3);
        std::vector<int32_t> list(T * k);
        for (size_t i = 0; i < list.size(); ++i) list[i] = static_cast<int32_t>(i * i % E);
        compare("grouped_linear", {.reduction = K}, [&](OpRunner& on) {
          Buffer storage;
          const GroupedWeight weight = group(on.backend(), source.matrices, storage);
          const Tensor y = on.run([&](ExecContext& ctx) {
            return ops::grouped_linear(ctx, x, weight, choices({T, k}, list));
          });
          for (int64_t t = 0; t < T; ++t)
            for (int64_t j = 0; j < k; ++j)
              EXPECT_EQ(row_bytes(y[t], j, j + 1), row_bytes(on.run([&](ExecContext& ctx) {
                          return ops::linear(ctx, x.slice(0, t, t + 1), weight.expert(list[t * k + j]), dtype);
                        })));
          return Results{y};
        });
      }
  }
}

// NaN in the outputs that read one, and every other output has the bits that it has without them.
TEST_P(MoeOps, NansOfF8Experts) {
  const int64_t E = 4, k = 2, N = 45;
  for (const int64_t K : {256, 300}) {
    F8Experts clean(E, N, K, 32, 128, 1), broken(E, N, K, 32, 128, 1);
    broken.matrices[1].values.as<f8_e4m3>()[13 * K + 3] = f8_e4m3::from_bits(0x7f);
    broken.matrices[2].values.as<f8_e4m3>()[K - 1] = f8_e4m3::from_bits(0xff);
    Buffer storage[2];
    const GroupedWeight weights[] = {group(tested.backend(), clean.matrices, storage[0]),
                                     group(tested.backend(), broken.matrices, storage[1])};
    for (const DType dtype : kTypes)
      for (const int64_t T : {1, 5, 16, 40}) {
        const Tensor x = random(pool, dtype, {T, K}, 2);
        std::vector<int32_t> list(T * k);
        for (size_t i = 0; i < list.size(); ++i) list[i] = static_cast<int32_t>((i + 1) % E);
        const auto run = [&](const GroupedWeight& weight) {
          return tested
              .run([&](ExecContext& ctx) {
                return ops::grouped_linear(ctx, x, weight, choices({T, k}, list));
              })
              .view({T * k, N});
        };
        const Tensor want = run(weights[0]), got = run(weights[1]);
        for (int64_t i = 0; i < T * k; ++i)
          for (int64_t n = 0; n < N; ++n)
            if ((list[i] == 1 && n == 13) || (list[i] == 2 && n == 0))
              EXPECT_TRUE(std::isnan(element(got, i, n))) << "choice " << i << ", output " << n << " of K " << K;
            else
              EXPECT_EQ(element(got, i, n), element(want, i, n)) << "choice " << i << ", output " << n << " of K " << K;
      }
  }
}

// A NaN of an expert's down projection, or of the shared expert's, is one output of the tokens that it has; one of an
// expert's up projection is all of theirs.
TEST_P(MoeOps, SparseMoeOfNansInF8) {
  const int64_t E = 6, D = 256, F = 128, kExpert = 3, kRow = 77;
  enum Place { kNowhere, kDown, kUp, kSharedDown };
  const Tensor router = random(pool, DType::kBF16, {E, D}, 1, 0.2f), all = random(pool, DType::kBF16, {40, D}, 2);
  const RouterOptions options{.top_k = 2};
  for (const int64_t T : {1, 3, 8, 16, 40}) {
    const Tensor x = all.slice(0, 0, T);
    Routing routing;
    const auto run = [&](Place place) {
      F8Experts in(2 * E + 2, F, D, 128, 128, 3), out(E + 1, D, F, 128, 128, 4);
      const f8_e4m3 nan = f8_e4m3::from_bits(0x7f);
      if (place == kDown) out.matrices[kExpert].values.as<f8_e4m3>()[kRow * F + 5] = nan;
      if (place == kSharedDown) out.matrices[E].values.as<f8_e4m3>()[kRow * F + 5] = nan;
      if (place == kUp) in.matrices[E + kExpert].values.as<f8_e4m3>()[kRow * D + 5] = nan;
      const std::span<const StoredMatrix> first = in.matrices, second = out.matrices;
      Buffer storage[3];
      ops::SparseMoeWeights weights;
      weights.router = tested.weight(router);
      weights.gate = group(tested.backend(), first.subspan(0, E), storage[0]);
      weights.up = group(tested.backend(), first.subspan(E, E), storage[1]);
      weights.down = group(tested.backend(), second.subspan(0, E), storage[2]);
      weights.shared_gate_up.part(0) = tested.weight(first[2 * E]);
      weights.shared_gate_up.part(1) = tested.weight(first[2 * E + 1]);
      weights.shared_down = tested.weight(second[E]);
      routing = tested.run([&](ExecContext& ctx) {
        return ops::route(ctx, ops::linear(ctx, x, weights.router, DType::kF32), {}, options);
      });
      return tested.run([&](ExecContext& ctx) { return ops::sparse_moe(ctx, x, weights, options, x); });
    };
    const Tensor want = run(kNowhere);
    const int64_t having = std::count(routing.experts.as<int32_t>(), routing.experts.as<int32_t>() + T * 2, kExpert);
    ASSERT_TRUE(T < 8 || (having > 0 && having < T)) << having;
    for (const Place place : {kDown, kUp, kSharedDown}) {
      const Tensor got = run(place);
      for (int64_t t = 0; t < T; ++t) {
        const std::vector<int32_t> experts = chosen(routing, t);
        const bool has = place == kSharedDown || std::count(experts.begin(), experts.end(), kExpert) > 0;
        for (int64_t d = 0; d < D; ++d)
          if (has && (place == kUp || d == kRow))
            ASSERT_TRUE(std::isnan(element(got, t, d))) << "place " << place << ", token " << t << ", output " << d;
          else
            ASSERT_EQ(element(got, t, d), element(want, t, d))
                << "place " << place << ", token " << t << ", output " << d;
      }
    }
  }
}

TEST_P(MoeOps, GroupedLinearGivesZerosForExpertsThatDoNotExist) {
  const Tensor source = random(pool, DType::kBF16, {4, 33, 40}, 1), x = random(pool, DType::kF32, {2, 40}, 2);
  const GroupedWeight weight = experts(tested, source);
  const std::vector<int32_t> list = {-1, 2, 4, INT32_MIN, INT32_MAX, 2, 2, 0};  // more often than once, too
  const Tensor y = tested.run([&](ExecContext& ctx) {
    const size_t mark = ctx.workspace.mark();  // memory that is not zero
    const Tensor used = ctx.workspace.alloc(DType::kF32, {2, 4, 33});
    if (!ctx.dry_run) std::fill_n(used.as<float>(), used.numel(), 7.0f);
    ctx.workspace.release(mark);
    return ops::grouped_linear(ctx, x, weight, choices({2, 4}, list));
  });
  for (int64_t i = 0; i < 8; ++i) {
    const Tensor row = y[i / 4].slice(0, i % 4, i % 4 + 1);
    if (list[i] < 0 || list[i] >= 4)
      EXPECT_EQ(row_bytes(row), row_bytes(pool.zeros(DType::kF32, {1, 33}))) << i;
    else
      EXPECT_EQ(row_bytes(row), row_bytes(tested.run([&](ExecContext& ctx) {
                  return ops::linear(ctx, x.slice(0, i / 4, i / 4 + 1), weight.expert(list[i]), DType::kF32);
                })))
          << i;
  }
}

TEST_P(MoeOps, CombineAndOneGatePerRow) {
  for (const DType dtype : kTypes)
    for (const int64_t k : {1, 2, 10})
      for (const int64_t T : {0, 1, 23})
        for (const int64_t D : {1, 13, 520}) {
          const Tensor y = random(pool, dtype, {T, k, D}, 1, 2, 0, 3),
                       w = random(pool, DType::kF32, {T, k}, 2, 1, 0, 2);
          compare("moe_combine", {.reduction = k}, [&](OpRunner& on) {
            return Results{on.run([&](ExecContext& ctx) { return ops::moe_combine(ctx, y, w); })};
          });
          const Tensor x = random(pool, dtype, {T, D}, 3, 1, 0, 2), gate = random(pool, dtype, {T, 1}, 4, 20, 0, 1),
                       wide = pool.zeros(dtype, {T, D});
          for (int64_t t = 0; t < T; ++t)
            for (int64_t i = 0; i < D; ++i) set_element(wide, t, i, element(gate, t, 0));
          const auto scale = [&](OpRunner& on, const Tensor& by) {
            return on.run([&](ExecContext& ctx) { return ops::sigmoid_mul(ctx, x, by); });
          };
          compare("sigmoid_mul", {.roundings = 2}, [&](OpRunner& on) { return Results{scale(on, gate)}; });
          EXPECT_EQ(row_bytes(scale(tested, gate)), row_bytes(scale(tested, wide)));
        }
  const Tensor y = matrix({1, 2, 3}, {1, 2, 3, 10, 20, 30}), w = matrix({1, 2}, {0.5f, 2});
  EXPECT_EQ(row_bytes(tested.run([&](ExecContext& ctx) { return ops::moe_combine(ctx, y, w); })),
            row_bytes(matrix({1, 3}, {20.5f, 41, 61.5f})));
}

TEST_P(MoeOps, SparseMoeEqualsTheReference) {
  const Mixture mixtures[] = {{.E = 8, .D = 70, .F = 37, .Fs = 50, .shared_gate = true, .bias = false},
                              {.E = 12, .D = 64, .F = 33, .Fs = 66, .shared_gate = false, .bias = true},
                              {.E = 5, .D = 33, .F = 64, .Fs = 0, .shared_gate = false, .bias = false}};
  const RouterOptions options[] = {
      {.top_k = 3},
      {.score = RouterScore::kSigmoid, .top_k = 4, .n_group = 4, .topk_group = 2, .routed_scaling_factor = 2.5f},
      {.top_k = 1, .norm_topk_prob = false}};
  for (int i = 0; i < 3; ++i)
    for (const DType dtype : kTypes)
      for (const int64_t T : {0, 1, 3, 40}) {
        const Tensor x = random(pool, dtype, {T, mixtures[i].D}, 1, 1, 0, 3),
                     residual = random(pool, dtype, {T, mixtures[i].D}, 2, 1, 0, 1);
        // bf16: those of swiglu_mlp, the shared expert's result, its gate, their product, and two sums
        compare("sparse_moe", {.reduction = mixtures[i].D + mixtures[i].F, .roundings = 8}, [&](OpRunner& on) {
          const ops::SparseMoeWeights weights = mixture(on, mixtures[i]);
          return Results{
              on.run([&](ExecContext& ctx) { return ops::sparse_moe(ctx, x, weights, options[i], residual); })};
        });
      }
}

// Exact bits: neither the other rows nor what they chose.
TEST_P(MoeOps, ARowAloneIsTheRowInTheBatch) {
  const Mixture m{.E = 6, .D = 67, .F = 40, .Fs = 34, .shared_gate = true, .bias = true};
  const RouterOptions options{.score = RouterScore::kSigmoid, .top_k = 2, .n_group = 2, .topk_group = 2};
  const ops::SparseMoeWeights weights = mixture(tested, m);
  for (const DType dtype : kTypes) {
    const int64_t T = 26;
    const Tensor x = random(pool, dtype, {T, m.D}, 1, 2, 0, 3), residual = random(pool, dtype, {T, m.D}, 2);
    const auto all = [&](int64_t begin, int64_t end) {
      return tested.run([&](ExecContext& ctx) {
        const Tensor a = x.slice(0, begin, end);
        const Routing r = ops::route(ctx, ops::linear(ctx, a, weights.router, DType::kF32), weights.bias, options);
        const Tensor h = ops::grouped_linear(ctx, a, weights.gate, r.experts);
        const Tensor y = ops::grouped_linear(ctx, h, weights.down, r.experts);
        return Results{r.experts,
                       r.weights,
                       h,
                       y,
                       ops::moe_combine(ctx, y, r.weights),
                       ops::sparse_moe(ctx, a, weights, options, residual.slice(0, begin, end))};
      });
    };
    const Results whole = all(0, T);
    for (int64_t t = 0; t < T; ++t) {
      const Results alone = all(t, t + 1);
      for (size_t i = 0; i < whole.size(); ++i)
        ASSERT_EQ(row_bytes(alone[i]), row_bytes(whole[i], t, t + 1)) << "result " << i << " row " << t;
    }
  }
}

// The numbers of the experts mean nothing.
TEST_P(MoeOps, SparseMoeFollowsAPermutationOfTheExperts) {
  const int64_t E = 7, D = 40, F = 33, T = 12;
  const Tensor x = random(pool, DType::kF32, {T, D}, 1), residual = random(pool, DType::kF32, {T, D}, 2);
  const Tensor router = random(pool, DType::kF32, {E, D}, 3), gate = random(pool, DType::kF32, {E, F, D}, 4, 0.3f),
               up = random(pool, DType::kF32, {E, F, D}, 5, 0.3f), down = random(pool, DType::kF32, {E, D, F}, 6, 0.3f);
  const auto moved = [&](const Tensor& source) {
    const Tensor result = pool.zeros(DType::kF32, source.shape());
    for (int64_t e = 0; e < E; ++e)
      std::memcpy(result[(e * 3 + 2) % E].data(), source[e].data(), static_cast<size_t>(source[e].bytes()));
    return result;
  };
  const auto run = [&](const Tensor& r, const Tensor& g, const Tensor& u, const Tensor& d) {
    ops::SparseMoeWeights weights;
    weights.router = tested.weight(r);
    weights.gate = experts(tested, g), weights.up = experts(tested, u), weights.down = experts(tested, d);
    return tested.run([&](ExecContext& ctx) {
      return ops::sparse_moe(ctx, x, weights, {.score = RouterScore::kSigmoid, .top_k = 3}, residual);
    });
  };
  EXPECT_EQ(row_bytes(run(router, gate, up, down)), row_bytes(run(moved(router), moved(gate), moved(up), moved(down))));
}

// With taps the parts are called one by one, which gives the same bits and a name to each step.
TEST_P(MoeOps, TapsShowEveryStep) {
  struct Names final : Taps {
    void tap(int, const char* name, const Tensor& tensor) override {
      all.emplace_back(name);
      shapes.push_back(tensor.shape().to_string());
    }
    std::vector<std::string> all, shapes;
  } names;
  const Mixture m{.E = 8, .D = 70, .F = 37, .Fs = 50, .shared_gate = true, .bias = false};
  const ops::SparseMoeWeights weights = mixture(tested, m);
  for (const DType dtype : kTypes) {
    const Tensor x = random(pool, dtype, {5, m.D}, 1), residual = random(pool, dtype, {5, m.D}, 2);
    const auto run = [&](Taps* taps) {
      return tested.run([&](ExecContext& ctx) {
        ctx.taps = taps;
        return ops::sparse_moe(ctx, x, weights, {.top_k = 3}, residual);
      });
    };
    names.all.clear(), names.shapes.clear();
    EXPECT_EQ(row_bytes(run(&names)), row_bytes(run(nullptr)));
    EXPECT_EQ(names.all, (std::vector<std::string>{"moe/input", "router_logits", "router_scores", "chosen_experts",
                                                   "expert_weights", "routed_output", "shared_output", "shared_gate",
                                                   "moe/output"}));
    EXPECT_EQ(names.shapes, (std::vector<std::string>{"[5, 70]", "[5, 8]", "[5, 8]", "[5, 3]", "[5, 3]", "[5, 70]",
                                                      "[5, 70]", "[5, 1]", "[5, 70]"}));
  }
}

CALANDRA_ON_ALL_BACKENDS(MoeOps);

}  // namespace
}  // namespace calandra

// Mixtures of experts on the cpu backend, bit for bit: every product is one chain, the fused op equals its parts, and
// neither rows, threads, instruction set nor an earlier step change anything.
#include <gtest/gtest.h>

#include <atomic>
#include <cstdlib>
#include <deque>
#include <new>

#include "backends/cpu/cpu_test_setting.h"
#include "backends/cpu/experts_for_test.h"
#include "ops/dense.h"

namespace {
std::atomic<int64_t> allocations;
}  // namespace

// The whole program's, to see that a step takes no memory.
[[gnu::noinline]] void* operator new(size_t bytes) {
  ++allocations;
  if (void* p = std::malloc(bytes)) return p;
  throw std::bad_alloc();
}
[[gnu::noinline]] void operator delete(void* p) noexcept { std::free(p); }
[[gnu::noinline]] void operator delete(void* p, size_t) noexcept { std::free(p); }

namespace calandra {
namespace {

using ops::RouterOptions;
using ops::RouterScore;

struct Mixture {
  int64_t E, D, F, Fs = 0;
  bool shared_gate = false;
  float favourite = 0;  // added to the choice score of expert E - 1
  DType stored = DType::kBF16;
};

// Matrices of E experts.
Owned random_experts(DType dtype, int64_t E, int64_t N, int64_t K, unsigned seed) {
  Owned all = random_matrix(dtype, E * N, K, seed);
  all.tensor = all.tensor.view({E, N, K});
  return all;
}

// Weights as one backend wants them; each number is of order 1 / sqrt(K).
class MixtureWeights {
 public:
  MixtureWeights(Backend& backend, const Mixture& m) : backend_(backend) {
    weights.router = matrix(DType::kF32, m.E, m.D, 1);
    bias_.tensor.as<float>()[m.E - 1] = m.favourite;
    weights.bias = bias_.tensor.slice(0, 0, m.E);
    weights.gate = experts(m.stored, m.E, m.F, m.D, 2);
    weights.up = experts(m.stored, m.E, m.F, m.D, 3);
    weights.down = experts(m.stored, m.E, m.D, m.F, 4);
    if (m.Fs > 0) {
      weights.shared_gate_up.part(0) = matrix(m.stored, m.Fs, m.D, 5);
      weights.shared_gate_up.part(1) = matrix(m.stored, m.Fs, m.D, 6);
      weights.shared_down = matrix(m.stored, m.D, m.Fs, 7);
    }
    if (m.shared_gate) weights.shared_gate = matrix(DType::kBF16, 1, m.D, 8);
  }
  ops::SparseMoeWeights weights;

 private:
  static constexpr int64_t kBlock = 16;  // with one scale

  static void shrink(const Tensor& x, int64_t rows, int64_t K) {
    const Tensor flat = x.view({rows, K});
    for (int64_t r = 0; r < rows; ++r)
      for (int64_t c = 0; c < K; ++c) put(flat, r, c, get(flat, r, c) / std::sqrt(static_cast<float>(K)));
  }
  PackedWeight matrix(DType dtype, int64_t N, int64_t K, unsigned seed) {
    if (dtype == DType::kF8E4M3) {
      packed_.emplace_back(backend_, F8Experts(1, N, K, kBlock, kBlock, seed).matrices[0]);
      return packed_.back().weight;
    }
    const Owned source = random_matrix(dtype, N, K, seed);
    shrink(source.tensor, N, K);
    packed_.emplace_back(backend_, StoredMatrix{source.tensor});
    return packed_.back().weight;
  }
  GroupedWeight experts(DType dtype, int64_t E, int64_t N, int64_t K, unsigned seed) {
    storage_.emplace_back();
    if (dtype == DType::kF8E4M3)
      return group(backend_, F8Experts(E, N, K, kBlock, kBlock, seed).matrices, storage_.back());
    const Owned source = random_experts(dtype, E, N, K, seed);
    shrink(source.tensor, E * N, K);
    return group(backend_, source.tensor, storage_.back());
  }

  Backend& backend_;
  Owned bias_{DType::kF32, {512}};
  std::deque<OwnedWeight> packed_;
  std::deque<Buffer> storage_;
};

std::vector<std::byte> bytes(const Tensor& x) {
  const auto* data = static_cast<const std::byte*>(x.data());
  return {data, data + x.bytes()};
}

class CpuMoeTest : public CpuTest {};
GTEST_ALLOW_UNINSTANTIATED_PARAMETERIZED_TEST(CpuMoeTest);

TEST_P(CpuMoeTest, EveryProductIsOneChain) {
  const FlushDenormals flush;
  constexpr int64_t kE = 3, kN = 70, kK = 260, kChoices = 2;
  for (const DType stored : {DType::kF32, DType::kBF16, DType::kF16})
    for (const DType type : {DType::kF32, DType::kBF16}) {
      const Owned source = random_experts(stored, kE, kN, kK, 1);
      Buffer storage;
      const GroupedWeight weight = group(backend, source.tensor, storage);
      for (const int64_t T : {1, 2, 5, 13, 60}) {
        const Owned x = random_matrix(type, T, kK, 2, 3);
        Owned experts(DType::kI32, {T, kChoices});
        for (int32_t i = 0; i < T * kChoices; ++i) experts.tensor.as<int32_t>()[i] = i * i % kE;
        workspace.reset();
        const Tensor y = ops::grouped_linear(ctx, x.tensor, weight, experts.tensor);
        for (int64_t t = 0; t < T; t += T < 6 ? 1 : 7)
          for (int64_t j = 0; j < kChoices; ++j) {
            const Tensor w = source.tensor[experts.tensor.as<int32_t>()[t * kChoices + j]];
            for (int64_t n = 0; n < kN; ++n) {
              float sum = 0;
              for (int64_t k = 0; k < kK; ++k) sum = std::fma(get(x.tensor, t, k), get(w, n, k), sum);
              ASSERT_PRED2(same_bits, get(y[t], j, n), as_type(type, sum)) << t << " " << j << " " << n;
            }
          }
      }
    }
}

TEST_P(CpuMoeTest, ManyRowsOfOneExpertEqualSingleRows) {
  constexpr int64_t kE = 4, kN = 40, kK = 300;
  const Owned source = random_experts(DType::kBF16, kE, kN, kK, 1);
  Buffer storage;
  const GroupedWeight weight = group(backend, source.tensor, storage);
  for (const int64_t rows : {95, 96, 97, 193, 400}) {  // around the row block; every seventh row has another expert
    const Owned x = random_matrix(DType::kBF16, rows, kK, 2);
    Owned experts(DType::kI32, {rows, 1});
    for (int64_t t = 0; t < rows; ++t) experts.tensor.as<int32_t>()[t] = t % 7 == 6 ? static_cast<int32_t>(t % kE) : 2;
    workspace.reset();
    const Tensor all = ops::grouped_linear(ctx, x.tensor, weight, experts.tensor);
    for (int64_t t = 0; t < rows; ++t) {
      const Tensor one =
          ops::linear(ctx, x.tensor.slice(0, t, t + 1), weight.expert(experts.tensor.as<int32_t>()[t]), DType::kBF16);
      ASSERT_EQ(bytes(one), bytes(all[t])) << "row " << t << " of " << rows;
    }
  }
}

TEST_P(CpuMoeTest, TheSumRunsInTheOrderOfTheRouter) {
  constexpr int64_t kT = 3, kChoices = 4, kD = 37;
  for (const DType type : {DType::kF32, DType::kBF16}) {
    Owned y = random_matrix(type, kT, kChoices * kD, 1);
    const Owned weights = random_matrix(DType::kF32, kT, kChoices, 2, 1);
    y.tensor = y.tensor.view({kT, kChoices, kD});
    const Tensor sum = ops::moe_combine(ctx, y.tensor, weights.tensor);
    for (int64_t t = 0; t < kT; ++t)
      for (int64_t i = 0; i < kD; ++i) {
        float want = get(weights.tensor, t, 0) * get(y.tensor[t], 0, i);
        for (int64_t j = 1; j < kChoices; ++j) want = std::fma(get(weights.tensor, t, j), get(y.tensor[t], j, i), want);
        ASSERT_PRED2(same_bits, get(sum, t, i), as_type(type, want));
      }
  }
}

struct FusedCase {
  Mixture mixture;
  RouterOptions options;
  std::vector<int64_t> rows;
};
std::vector<FusedCase> fused_cases() {
  const RouterOptions groups{
      .score = RouterScore::kSigmoid, .top_k = 3, .n_group = 3, .topk_group = 2, .routed_scaling_factor = 2.5f};
  const RouterOptions sigmoid{.score = RouterScore::kSigmoid, .top_k = 3};
  return {
      {{.E = 8, .D = 70, .F = 40, .Fs = 50, .shared_gate = true}, {.top_k = 3}, {1, 2, 3, 5, 40}},
      {{.E = 12, .D = 261, .F = 33, .Fs = 290, .stored = DType::kF16}, groups, {1, 4, 30}},
      {{.E = 7, .D = 100, .F = 72, .Fs = 40, .shared_gate = true, .stored = DType::kF8E4M3}, {.top_k = 2}, {1, 3, 60}},
      {{.E = 5, .D = 33, .F = 64, .stored = DType::kF32}, {.top_k = 1, .norm_topk_prob = false}, {1, 7}},
      {{.E = 4, .D = 40, .F = 40, .Fs = 40, .shared_gate = true}, {.top_k = 4}, {3}},
      // one expert takes a choice of every row, beyond a row block
      {{.E = 6, .D = 64, .F = 32, .Fs = 32, .shared_gate = true, .favourite = 9}, sigmoid, {1, 97, 200}},
      {{.E = 512, .D = 34, .F = 32, .Fs = 32, .shared_gate = true}, {.top_k = 10}, {1, 3, 130}},
  };
}

TEST_P(CpuMoeTest, TheFusedOpEqualsItsParts) {
  for (const FusedCase& c : fused_cases()) {
    const MixtureWeights made(backend, c.mixture);
    for (const DType type : {DType::kF32, DType::kBF16})
      for (const int64_t T : c.rows) {
        const Owned x = random_matrix(type, T, c.mixture.D, 11, 3),
                    residual = random_matrix(type, T, c.mixture.D, 12, 1);
        workspace.reset();
        Tensor fused = workspace.alloc(type, {T, c.mixture.D}), parts = workspace.alloc(type, {T, c.mixture.D});
        backend.sparse_moe(ctx, x.tensor, made.weights, c.options, residual.tensor, fused);
        backend.Backend::sparse_moe(ctx, x.tensor, made.weights, c.options, residual.tensor, parts);
        EXPECT_EQ(bytes(fused), bytes(parts)) << "E " << c.mixture.E << " rows " << T << " " << name_of(type);
      }
  }
}

// In one batch, in two, row by row, and after a step with other rows.
TEST_P(CpuMoeTest, ARowDependsOnNoOtherAndOnNoEarlierStep) {
  const Mixture m{.E = 16, .D = 72, .F = 40, .Fs = 50, .shared_gate = true};
  const RouterOptions options{.top_k = 4};
  const MixtureWeights made(backend, m);
  for (const DType type : {DType::kF32, DType::kBF16}) {
    constexpr int64_t kT = 110;
    const Owned x = random_matrix(type, kT, m.D, 21), residual = random_matrix(type, kT, m.D, 22);
    const auto run = [&](int64_t begin, int64_t end) {
      workspace.reset();
      return bytes(ops::sparse_moe(ctx, x.tensor.slice(0, begin, end), made.weights, options,
                                   residual.tensor.slice(0, begin, end)));
    };
    const std::vector<std::byte> whole = run(0, kT);
    std::vector<std::byte> two = run(0, 37), rest = run(37, kT), single;
    two.insert(two.end(), rest.begin(), rest.end());
    EXPECT_EQ(two, whole);
    for (int64_t t = 0; t < kT; ++t) {
      const std::vector<std::byte> row = run(t, t + 1);
      single.insert(single.end(), row.begin(), row.end());
    }
    EXPECT_EQ(single, whole);
    EXPECT_EQ(run(0, kT), whole);
  }
}

TEST_P(CpuMoeTest, AStepTakesNoMemory) {
  const Mixture m{.E = 16, .D = 72, .F = 40, .Fs = 50, .shared_gate = true};
  const MixtureWeights made(backend, m);
  for (const int64_t T : {1, 50}) {
    const Owned x = random_matrix(DType::kBF16, T, m.D, 21);
    workspace.reset();
    const int64_t before = allocations;
    ops::sparse_moe(ctx, x.tensor, made.weights, {.top_k = 4}, x.tensor);
    EXPECT_EQ(allocations, before) << T << " rows";
  }
}

TEST_P(CpuMoeTest, NoRowsDoNothing) {
  const MixtureWeights made(backend, {.E = 4, .D = 40, .F = 32});
  const Tensor x = workspace.alloc(DType::kBF16, {0, 40});
  EXPECT_EQ(ops::sparse_moe(ctx, x, made.weights, {.top_k = 2}, x).numel(), 0);
}

TEST_P(CpuMoeTest, NotANumberStaysInItsRow) {
  const Mixture m{.E = 8, .D = 40, .F = 32, .Fs = 32, .shared_gate = true};
  const MixtureWeights made(backend, m);
  const Owned x = random_matrix(DType::kBF16, 20, m.D, 1), residual = random_matrix(DType::kBF16, 20, m.D, 2);
  put(x.tensor, 7, 3, NAN);
  const Tensor y = ops::sparse_moe(ctx, x.tensor, made.weights, {.top_k = 3}, residual.tensor);
  for (int64_t t = 0; t < 20; ++t)
    for (int64_t i = 0; i < m.D; ++i) EXPECT_EQ(std::isnan(get(y, t, i)), t == 7) << t << " " << i;
}

INSTANTIATE_TEST_SUITE_P(Machine, CpuMoeTest, testing::ValuesIn(cpu_settings()), cpu_setting_name);

TEST(CpuMoe, ThreadsAndInstructionSetsGiveTheSameBits) {
  for (const FusedCase& c : fused_cases())
    for (const DType type : {DType::kF32, DType::kBF16}) {
      const int64_t T = c.rows.back();
      const Owned x = random_matrix(type, T, c.mixture.D, 11), residual = random_matrix(type, T, c.mixture.D, 12);
      std::vector<std::byte> first;
      for (const CpuSetting& setting : cpu_settings()) {
        CpuBackend backend(setting.threads, setting.isa);
        OneRank communicator;
        Workspace measured;
        const MixtureWeights made(backend, c.mixture);
        ExecContext dry{.backend = backend, .workspace = measured, .communicator = communicator, .dry_run = true};
        ops::sparse_moe(dry, x.tensor, made.weights, c.options, residual.tensor);
        Workspace workspace(measured, Buffer::host(measured.bytes()));
        ExecContext ctx{.backend = backend, .workspace = workspace, .communicator = communicator};
        const std::vector<std::byte> got =
            bytes(ops::sparse_moe(ctx, x.tensor, made.weights, c.options, residual.tensor));
        if (first.empty()) first = got;
        EXPECT_EQ(got, first) << name_of(setting.isa) << " " << setting.threads << " threads, E " << c.mixture.E;
      }
    }
}

}  // namespace
}  // namespace calandra

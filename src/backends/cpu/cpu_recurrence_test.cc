// The mixer of CpuBackend: right against loops in f64, equal to the composition of its parts, and the same bits however
// a sequence is cut into steps, segments and drafts, for every batch, thread count and instruction set.
#include "backends/cpu/batch_for_test.h"

namespace calandra {
namespace {

struct Dims {
  int Hk, Hv, Dk, Dv, W;
  DType dtype;
  int channels() const { return 2 * Hk * Dk + Hv * Dv; }
};

constexpr int kPending = 4;  // capacity
constexpr int kSlots = 6;

// Inputs of token t of a stream, by column: qkv, z, b, a.
float input(int stream, int t, int column, float scale = 1.5f) {
  return scale * noise(stream + 7, static_cast<uint64_t>(t) * 65536 + column);
}

class Setting {
 public:
  explicit Setting(Dims dims) : d(dims) {
    weights.conv1d = pool.zeros(DType::kF32, {d.channels(), d.W});
    weights.A_log = pool.zeros(DType::kF32, {d.Hv});
    weights.dt_bias = pool.zeros(DType::kF32, {d.Hv});
    weights.norm = pool.zeros(DType::kF32, {d.Dv});
    fill(weights.conv1d, 1, 0.6f), fill(weights.A_log, 2, 1.0f), fill(weights.dt_bias, 3, 2.0f, -2.0f);
    fill(weights.norm, 4, 0.5f, 1.0f);
    conv = {pool.zeros(d.dtype, {kSlots, d.W - 1, d.channels()}),
            pool.zeros(d.dtype, {kSlots, kPending, d.channels()})};
    delta = {pool.zeros(DType::kF32, {kSlots, d.Hv, d.Dk, d.Dv}),
             pool.zeros(DType::kF32, {kSlots, kPending, d.Hk, d.Dk}),
             pool.zeros(DType::kF32, {kSlots, kPending, d.Hv, d.Dv}), pool.zeros(DType::kF32, {kSlots, kPending, d.Hv}),
             pool.zeros(DType::kF32, {kSlots, kPending, d.Hv})};
    accepted = pool.zeros(DType::kI32, {kSlots});
    for (const Tensor& x : states()) fill(x, 5, 0, NAN);  // nobody may read what was not written
  }

  std::vector<Tensor> states() const {
    return {conv.window, conv.pending, delta.S, delta.pending_k, delta.pending_v, delta.pending_g, delta.pending_beta};
  }
  std::vector<std::byte> all_states() const {
    std::vector<std::byte> all;
    for (const Tensor& x : states()) {
      const auto bytes = bytes_of(x);
      all.insert(all.end(), bytes.begin(), bytes.end());
    }
    return all;
  }
  std::vector<std::byte> slot(int index) const {
    std::vector<std::byte> all;
    for (const Tensor& x : states()) {
      const auto bytes = bytes_of(x[index]);
      all.insert(all.end(), bytes.begin(), bytes.end());
    }
    return all;
  }

  // One step; returns its rows [T, Hv Dv].
  Tensor step(Backend& backend, const std::vector<SequenceStep>& steps, bool fused = true) {
    const Batch batch = batch_of(pool, steps);
    const int64_t T = batch.rows();
    const int values = d.Hv * d.Dv, width = d.channels() + values + 2 * d.Hv;
    const Tensor x = pool.zeros(d.dtype, {T, width});
    int64_t row = 0;
    for (const SequenceStep& s : steps)
      for (int t = s.first; t < s.first + s.rows(); ++t, ++row)
        for (int i = 0; i < width; ++i) put(x, row * width + i, input(s.stream, t, i));
    const int at[] = {0, d.channels(), d.channels() + values, d.channels() + values + d.Hv, width};
    Tensor parts[4], out = pool.zeros(d.dtype, {T, values});
    for (int i = 0; i < 4; ++i) parts[i] = x.slice(1, at[i], at[i + 1]);
    fill(out, 0, 0, NAN);
    Workspace measured;
    for (int i = 0; i < 4; ++i) measured.alloc(DType::kF32, {T + 1, width});
    Workspace workspace(measured, Buffer::host(measured.bytes()));
    OneRank rank;
    ExecContext ctx{.backend = backend, .workspace = workspace, .communicator = rank};
    if (fused)
      backend.gated_delta_mixer(ctx, parts[0], parts[1], parts[2], parts[3], weights, conv, delta, accepted, batch,
                                out);
    else
      backend.Backend::gated_delta_mixer(ctx, parts[0], parts[1], parts[2], parts[3], weights, conv, delta, accepted,
                                         batch, out);
    return out;
  }

  const Dims d;
  TensorPool pool;
  ops::GatedDeltaWeights weights;
  ConvState conv;
  DeltaState delta;
  Tensor accepted;
};

std::vector<std::byte> rows_of(const Tensor& x, int64_t begin, int64_t end) { return bytes_of(x.slice(0, begin, end)); }

double sigmoid(double x) { return 1 / (1 + std::exp(-x)); }

// The mixer over tokens [0, T) of a stream, f32 inputs, in f64.
std::vector<double> mixer_in_f64(const Setting& s, int stream, int T) {
  const Dims& d = s.d;
  const int C = d.channels(), values = d.Hv * d.Dv, r = d.Hv / d.Hk;
  std::vector<double> S(static_cast<size_t>(d.Hv) * d.Dk * d.Dv), out;
  for (int t = 0; t < T; ++t) {
    std::vector<double> x(C);
    for (int c = 0; c < C; ++c) {
      for (int j = 0; j < d.W; ++j)
        if (t - d.W + 1 + j >= 0) x[c] += get(s.weights.conv1d, c * d.W + j) * input(stream, t - d.W + 1 + j, c);
      x[c] *= sigmoid(x[c]);
    }
    for (int h = 0; h < d.Hv; ++h) {
      const double* q = &x[(h / r) * d.Dk];
      const double* k = &x[(d.Hk + h / r) * d.Dk];
      double qq = 1e-6, kk = 1e-6, mean = 0;
      for (int i = 0; i < d.Dk; ++i) qq += q[i] * q[i], kk += k[i] * k[i];
      const double beta = sigmoid(input(stream, t, C + values + h));
      const double decay =
          std::exp(-std::exp(get(s.weights.A_log, h)) *
                   std::log1p(std::exp(input(stream, t, C + values + d.Hv + h) + get(s.weights.dt_bias, h))));
      std::vector<double> o(d.Dv);
      for (int c = 0; c < d.Dv; ++c) {
        double* column = &S[static_cast<size_t>(h) * d.Dk * d.Dv + c];
        double m = 0;
        for (int i = 0; i < d.Dk; ++i) m += (column[i * d.Dv] *= decay) * k[i] / std::sqrt(kk);
        const double change = beta * (x[2 * d.Hk * d.Dk + h * d.Dv + c] - m);
        for (int i = 0; i < d.Dk; ++i) {
          column[i * d.Dv] += k[i] / std::sqrt(kk) * change;
          o[c] += column[i * d.Dv] * q[i] / std::sqrt(qq * d.Dk);
        }
        mean += o[c] * o[c] / d.Dv;
      }
      for (int c = 0; c < d.Dv; ++c) {
        const double z = input(stream, t, C + h * d.Dv + c);
        out.push_back(o[c] / std::sqrt(mean + s.weights.eps) * get(s.weights.norm, c) * z * sigmoid(z));
      }
    }
  }
  return out;
}

TEST(CpuRecurrence, MixerEqualsLoopsInDoublePrecision) {
  for (const Isa isa : machine_isas()) {
    CpuBackend backend(2, isa);
    for (const Dims d :
         {Dims{2, 4, 128, 128, 4, DType::kF32}, {1, 3, 32, 80, 3, DType::kF32}, {3, 3, 48, 16, 2, DType::kF32}}) {
      Setting setting(d);
      const int T = 70;
      const Tensor y = setting.step(backend, {{.stream = 3, .first = 0, .segments = {T}, .slots = {-1, 2}}});
      const std::vector<double> want = mixer_in_f64(setting, 3, T);
      // Outputs of the norm are of size 1; relative error of o about sqrt(Dk) eps, amplified where a head's output
      // nearly vanishes.
      for (int64_t i = 0; i < y.numel(); ++i) ASSERT_NEAR(get(y, i), want[i], 5e-5) << "at " << i << " Dk " << d.Dk;
    }
  }
}

const Dims kDims[] = {{2, 4, 32, 96, 4, DType::kBF16}, {2, 2, 16, 32, 4, DType::kF32}, {1, 3, 64, 48, 3, DType::kBF16}};

// A step with everything: accepted pending, segments, drafts, new and inactive sequences, a kept source.
std::vector<SequenceStep> rich_step() {
  return {{.stream = 1, .first = 22, .segments = {5, 1, 4}, .drafts = 3, .slots = {0, 0, 4, 0}},
          {.stream = 2, .first = 31, .segments = {2}, .drafts = 2, .slots = {1, 1}},
          {.stream = 3, .first = 0, .segments = {40}, .slots = {-1, 2}},
          {.stream = 9, .first = 7, .segments = {2}, .slots = {5, 5}, .active = 0},
          {.stream = 8, .first = 9, .segments = {1}, .drafts = 1, .slots = {-1, 3}}};
}
void run_rich(Backend& backend, Setting& setting, bool fused, std::vector<std::byte>& result) {
  const Tensor first = setting.step(backend,
                                    {{.stream = 1, .first = 0, .segments = {23}, .drafts = 3, .slots = {-1, 0}},
                                     {.stream = 2, .first = 0, .segments = {33}, .drafts = 4, .slots = {-1, 1}},
                                     {.stream = 9, .first = 0, .segments = {7}, .drafts = 1, .slots = {-1, 5}}},
                                    fused);
  setting.accepted.as<int32_t>()[0] = 2;
  setting.accepted.as<int32_t>()[1] = 2;
  setting.accepted.as<int32_t>()[4] = 3;  // stale: slot 4 is written by a segment before anybody reads it
  setting.accepted.as<int32_t>()[5] = 1;
  const std::vector<std::byte> idle = setting.slot(5);
  const Tensor second = setting.step(backend, rich_step(), fused);
  EXPECT_EQ(setting.slot(5), idle) << "an inactive sequence keeps its slot";
  for (int64_t row : {52, 53})
    for (int64_t i = 0; i < second.size(1); ++i) {
      ASSERT_EQ(get(second, row * second.size(1) + i), 0) << "and gives zeros";
      put(second, row * second.size(1) + i, 0);  // of either sign
    }
  for (const auto& bytes : {bytes_of(first), bytes_of(second), setting.all_states()})
    result.insert(result.end(), bytes.begin(), bytes.end());
}

TEST(CpuRecurrence, MixerEqualsItsPartsOnAllThreadsAndInstructionSets) {
  for (const Dims d : kDims) {
    std::vector<std::byte> want;
    for (const auto& backend : cpu_backends())
      for (const bool fused : {false, true}) {
        Setting setting(d);
        std::vector<std::byte> got;
        run_rich(*backend, setting, fused, got);
        if (want.empty()) want = got;
        EXPECT_TRUE(got == want) << name_of(backend->isa()) << ", " << backend->threads() << " threads, fused " << fused
                                 << ", Dk " << d.Dk;
      }
  }
}

// Also where the kernels do not serve (head dims that are no multiple of 16, wide convolutions, many value heads).
TEST(CpuRecurrence, EqualsTheReferenceUpToRounding) {
  const Dims dims[] = {kDims[0],
                       kDims[1],
                       kDims[2],
                       {2, 4, 8, 24, 4, DType::kF32},
                       {1, 2, 32, 32, 9, DType::kF32},
                       {1, 9, 16, 16, 4, DType::kF32}};
  ReferenceBackend reference;
  CpuBackend cpu(3, machine_isas().back());
  for (const Dims d : dims) {
    Setting got(d), want(d);
    std::vector<std::byte> unused;
    run_rich(cpu, got, true, unused);
    run_rich(reference, want, true, unused);
    const std::vector<SequenceStep> last = {{.stream = 1, .first = 32, .segments = {3}, .slots = {0, 0}},
                                            {.stream = 8, .first = 10, .segments = {3}, .slots = {3, 3}}};
    const Tensor y = got.step(cpu, last), z = want.step(reference, last);
    // Outputs and states are of size 1. bf16 rounds the convolution and the rule's output; a value near a tie falls
    // either way.
    const float tolerance = d.dtype == DType::kBF16 ? 0.05f : 1e-4f;
    for (int64_t i = 0; i < y.numel(); ++i)
      ASSERT_NEAR(get(y, i), get(z, i), tolerance * (1 + std::fabs(get(z, i)))) << "Dk " << d.Dk;
    for (size_t n = 0; n < got.states().size(); ++n) {
      const Tensor a = got.states()[n], b = want.states()[n];
      for (int64_t i = 0; i < a.numel(); ++i) {
        ASSERT_EQ(std::isnan(get(a, i)), std::isnan(get(b, i))) << "written by one only: state " << n << " at " << i;
        if (!std::isnan(get(a, i))) {
          ASSERT_NEAR(get(a, i), get(b, i), tolerance) << "state " << n << " Dk " << d.Dk;
        }
      }
    }
  }
}

TEST(CpuRecurrence, CutsSegmentsAndDraftsChangeNothing) {
  for (const Dims d : kDims) {
    const int T = 75;
    CpuBackend plain(1, machine_isas()[0]);
    Setting whole(d);
    const Tensor want = whole.step(plain, {{.stream = 1, .first = 0, .segments = {T}, .slots = {-1, 0}}});
    for (const auto& backend : cpu_backends()) {
      Setting setting(d);
      int position = 0, slot = -1;  // tokens run and kept; where their state is
      for (unsigned n = 0; position < T; ++n) {
        // Segments of 0 to 5 rows, up to 4 drafts of which some are accepted; sometimes into another slot; a neighbour
        // in the batch.
        const auto random = static_cast<unsigned>((noise(3, n) + 1) * 0x1p22f);
        const int drafts = std::min<int>(random % 5, T - position - 1),
                  dst = n % 3 == 0 ? (slot + 1) % 3 : std::max(slot, 0);
        std::vector<int> segments = {1 + static_cast<int>(random / 8 % 5), static_cast<int>(random / 64 % 6) + drafts};
        segments[0] = std::min(segments[0], T - position - drafts);
        segments[1] = std::min(segments[1], T - position - segments[0]);
        if (segments[1] < drafts) segments = {segments[0] + segments[1]};
        const int rows = segments.size() == 2 ? segments[0] + segments[1] : segments[0];
        const std::vector<int> slots =
            segments.size() == 2 ? std::vector<int>{slot, 3, dst} : std::vector<int>{slot, dst};
        const std::vector<std::byte> kept = setting.slot(std::max(slot, 0));
        const Tensor y = setting.step(
            *backend, {{.stream = 1, .first = position, .segments = segments, .drafts = drafts, .slots = slots},
                       {.stream = 2, .first = 0, .segments = {3}, .slots = {-1, 5}}});
        const int accepted = drafts == 0 ? 0 : static_cast<int>(random / 1024) % (drafts + 1);
        ASSERT_EQ(rows_of(y, 0, rows), rows_of(want, position, position + rows))
            << "rows at " << position << ", " << backend->threads() << " threads";
        if (slot >= 0 && dst != slot) {
          ASSERT_EQ(setting.slot(slot), kept) << "the source was written";
        }
        position += rows - drafts + accepted;
        slot = dst;
        setting.accepted.as<int32_t>()[slot] = accepted;
      }
      // Fold what is pending: one token more, against the whole.
      const Tensor y = setting.step(*backend, {{.stream = 1, .first = T, .segments = {1}, .slots = {slot, 4}}});
      Setting other(d);
      const Tensor all = other.step(plain, {{.stream = 1, .first = 0, .segments = {T + 1}, .slots = {-1, 4}}});
      ASSERT_EQ(bytes_of(y), rows_of(all, T, T + 1));
      for (const auto& [a, b] :
           {std::pair{setting.delta.S[4], other.delta.S[4]}, {setting.conv.window[4], other.conv.window[4]}})
        ASSERT_EQ(bytes_of(a), bytes_of(b)) << "state, " << backend->threads() << " threads";
    }
  }
}

TEST(CpuRecurrence, AStepOfDraftsOnlyCopiesTheState) {
  for (const auto& backend : cpu_backends()) {
    Setting setting(kDims[0]);
    setting.step(*backend, {{.stream = 1, .first = 0, .segments = {9}, .slots = {-1, 0}}});
    setting.step(*backend, {{.stream = 1, .first = 9, .segments = {2}, .drafts = 2, .slots = {0, 1}},
                            {.stream = 2, .first = 0, .segments = {2}, .drafts = 2, .slots = {-1, 2}}});
    EXPECT_EQ(bytes_of(setting.delta.S[1]), bytes_of(setting.delta.S[0]));
    EXPECT_EQ(bytes_of(setting.conv.window[1]), bytes_of(setting.conv.window[0]));
    EXPECT_EQ(bytes_of(setting.delta.S[2]), std::vector<std::byte>(setting.delta.S[2].bytes()));
    EXPECT_EQ(bytes_of(setting.conv.window[2]), std::vector<std::byte>(setting.conv.window[2].bytes()));
  }
}

TEST(CpuRecurrence, LogDecayAndL2NormAreWithinFewUlp) {
  for (const auto& backend : cpu_backends()) {
    TensorPool pool;
    const int n = 37;
    const Tensor a = pool.zeros(DType::kF32, {5, n}), A_log = pool.zeros(DType::kF32, {n}),
                 dt_bias = pool.zeros(DType::kF32, {n});
    const float scales[] = {1, 10, 30, 90, 1e-3f};
    for (int t = 0; t < 5; ++t) fill(a[t], t, scales[t]);
    fill(A_log, 8, 3), fill(dt_bias, 9, 0);
    Tensor g = pool.zeros(DType::kF32, {5, n}), y = pool.zeros(DType::kF32, {5, 1, 48}),
           x = pool.zeros(DType::kF32, {5, 1, 48});
    fill(x, 10, 4);
    Workspace workspace;
    OneRank rank;
    ExecContext ctx{.backend = *backend, .workspace = workspace, .communicator = rank};
    backend->log_decay(ctx, a, A_log, dt_bias, g);
    for (int64_t i = 0; i < a.numel(); ++i) {
      const double v = get(a, i), want = -std::exp(double{get(A_log, i % n)}) * (v > 20 ? v : std::log1p(std::exp(v)));
      ASSERT_NEAR(get(g, i), want, std::max(8 * 0x1p-23 * std::fabs(want), 1e-36)) << "a = " << v;
    }
    backend->l2_norm(ctx, x, y);
    for (int t = 0; t < 5; ++t) {
      double sum = 1e-6;
      for (int i = 0; i < 48; ++i) sum += double{get(x, t * 48 + i)} * get(x, t * 48 + i);
      for (int i = 0; i < 48; ++i) ASSERT_NEAR(get(y, t * 48 + i), get(x, t * 48 + i) / std::sqrt(sum), 4 * 0x1p-23);
    }
  }
}

}  // namespace
}  // namespace calandra

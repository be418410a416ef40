// Lightning attention of CpuBackend: the fused mixer equals the composition of its parts in exact bits, and everything
// is the same for every thread count, split and instruction set; release sizes against loops in f64.
#include "backends/cpu/batch_for_test.h"
#include "ops/lightning.h"

namespace calandra {
namespace {

struct Dims {
  int H, D, groups, rope;
  DType out;
  bool norm = true, silu = false;
};
constexpr int kPending = 4, kSlots = 6;

float input(int stream, int t, int column) {
  return 1.5f * noise(stream + 7, static_cast<uint64_t>(t) * 65536 + column);
}

class Setting {
 public:
  explicit Setting(Dims dims) : d(dims) {
    const auto vector = [&](int64_t n, int seed) {
      const Tensor x = pool.zeros(DType::kF32, {n});
      fill(x, seed, 0.5f, 1);
      return x;
    };
    if (d.norm) weights.q_norm = vector(d.D, 1), weights.k_norm = vector(d.D, 2);
    weights.g_norm = vector(int64_t{d.H} * d.D, 3);
    weights.slope = vector(d.H, 4);
    for (int h = 0; h < d.H; ++h)
      weights.slope.as<float>()[h] = std::exp2(-8.0f * static_cast<float>(h + 1) / static_cast<float>(d.H));
    weights.norm_groups = d.groups;
    weights.silu = d.silu;
    weights.rope = d.rope > 0;
    state = {pool.zeros(DType::kF32, {kSlots, d.H, d.D, d.D}), pool.zeros(DType::kF32, {kSlots, kPending, d.H, d.D}),
             pool.zeros(DType::kF32, {kSlots, kPending, d.H, d.D})};
    accepted = pool.zeros(DType::kI32, {kSlots});
    for (const Tensor& x : {state.S, state.pending_k, state.pending_v}) fill(x, 5, 0, NAN);
  }
  std::vector<std::byte> slot(int index) const {
    std::vector<std::byte> all;
    for (const Tensor& x : {state.S, state.pending_k, state.pending_v}) {
      const auto bytes = bytes_of(x[index]);
      all.insert(all.end(), bytes.begin(), bytes.end());
    }
    return all;
  }

  // One step of the mixer; returns its rows [T, H D].
  Tensor step(Backend& backend, const std::vector<SequenceStep>& steps, bool fused = true) {
    const Batch batch = batch_of(pool, steps);
    const int64_t T = batch.rows(), HD = int64_t{d.H} * d.D, half = d.rope / 2;
    const Tensor x = pool.zeros(DType::kF32, {T, 4 * HD}), table = pool.zeros(DType::kF32, {2, T, half});
    int64_t row = 0;
    for (const SequenceStep& s : steps)
      for (int t = s.first; t < s.first + s.rows(); ++t, ++row) {
        for (int i = 0; i < 4 * HD; ++i) put(x, row * 4 * HD + i, input(s.stream, t, i));
        for (int i = 0; i < half; ++i) {
          put(table, row * half + i, static_cast<float>(std::cos(angle(t, i))));
          put(table, (T + row) * half + i, static_cast<float>(std::sin(angle(t, i))));
        }
      }
    Tensor out = pool.zeros(d.out, {T, HD});
    fill(out, 0, 0, NAN);
    Workspace measured;
    for (int i = 0; i < 10; ++i) measured.alloc(DType::kF32, {T, HD});
    Workspace workspace(measured, Buffer::host(measured.bytes()));
    OneRank rank;
    ExecContext ctx{.backend = backend, .workspace = workspace, .communicator = rank};
    const Tensor qkv = x.slice(1, 0, 3 * HD), gate = x.slice(1, 3 * HD, 4 * HD);
    if (fused)
      backend.lightning_mixer(ctx, qkv, gate, weights, table, state, accepted, batch, out);
    else
      backend.Backend::lightning_mixer(ctx, qkv, gate, weights, table, state, accepted, batch, out);
    return out;
  }
  double angle(int t, int i) const { return t * std::pow(1000.0, -2.0 * i / d.rope); }

  const Dims d;
  TensorPool pool;
  ops::LightningWeights weights;
  LightningState state;
  Tensor accepted;
};

std::vector<std::byte> rows_of(const Tensor& x, int64_t begin, int64_t end) { return bytes_of(x.slice(0, begin, end)); }

double sigmoid(double x) { return 1 / (1 + std::exp(-x)); }

// The mixer's output for token T - 1 of a stream, in f64, by the sum over all tokens instead of the recurrence.
std::vector<double> mixer_in_f64(const Setting& s, int stream, int T) {
  const Dims& d = s.d;
  const auto prepared = [&](int t, int first, const Tensor& norm) {
    std::vector<double> x(d.D), y(d.D);
    double mean = 0;
    for (int i = 0; i < d.D; ++i) x[i] = input(stream, t, first + i), mean += x[i] * x[i] / d.D;
    for (int i = 0; i < d.D; ++i) x[i] *= get(norm, i) / std::sqrt(mean + s.weights.eps);
    y = x;
    for (int i = 0; i < d.rope / 2; ++i) {
      const double c = std::cos(s.angle(t, i)), n = std::sin(s.angle(t, i));
      y[i] = x[i] * c - x[i + d.rope / 2] * n;
      y[i + d.rope / 2] = x[i + d.rope / 2] * c + x[i] * n;
    }
    return y;
  };
  const int HD = d.H * d.D, width = HD / d.groups;
  std::vector<double> o(HD);
  for (int h = 0; h < d.H; ++h) {
    const auto q = prepared(T - 1, h * d.D, s.weights.q_norm);
    for (int t = 0; t < T; ++t) {
      const auto k = prepared(t, HD + h * d.D, s.weights.k_norm);
      double dot = 0;
      for (int i = 0; i < d.D; ++i) dot += q[i] * k[i] / std::sqrt(d.D);
      dot *= std::exp(-double{get(s.weights.slope, h)} * (T - 1 - t));
      for (int j = 0; j < d.D; ++j) o[h * d.D + j] += dot * input(stream, t, 2 * HD + h * d.D + j);
    }
  }
  for (int g = 0; g < d.groups; ++g) {
    double mean = 0;
    for (int i = g * width; i < (g + 1) * width; ++i) mean += o[i] * o[i] / width;
    for (int i = g * width; i < (g + 1) * width; ++i)
      o[i] *= get(s.weights.g_norm, i) / std::sqrt(mean + s.weights.eps) * sigmoid(input(stream, T - 1, 3 * HD + i));
  }
  return o;
}

TEST(CpuLightning, MixerEqualsSumsInDoublePrecision) {
  for (const Isa isa : machine_isas()) {
    CpuBackend backend(2, isa);
    for (const Dims d : {Dims{64, 128, 8, 64, DType::kF32}, {3, 64, 1, 32, DType::kF32}, {4, 80, 2, 80, DType::kF32}}) {
      Setting setting(d);
      const int T = d.H == 64 ? 40 : 200;
      const Tensor y = setting.step(backend, {{.stream = 3, .first = 0, .segments = {T}, .slots = {-1, 2}}});
      const std::vector<double> want = mixer_in_f64(setting, 3, T);
      // Numbers of size 1 behind the norm; sums of up to D + T f32 products, relative to the root of a group's mean
      // square.
      for (size_t i = 0; i < want.size(); ++i)
        ASSERT_NEAR(get(y, (T - 1) * int64_t{d.H} * d.D + i), want[i], 3e-5) << "at " << i << " D " << d.D;
    }
  }
}

const Dims kDims[] = {{3, 64, 1, 32, DType::kBF16},
                      {2, 48, 2, 48, DType::kF32, true, true},
                      {5, 128, 5, 64, DType::kBF16},
                      {1, 32, 1, 0, DType::kF32, false}};

// A step with everything: accepted pending, segments, drafts, new and inactive sequences, a kept source.
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
  const Tensor second =
      setting.step(backend,
                   {{.stream = 1, .first = 22, .segments = {5, 1, 4}, .drafts = 3, .slots = {0, 0, 4, 0}},
                    {.stream = 2, .first = 31, .segments = {2}, .drafts = 2, .slots = {1, 1}},
                    {.stream = 3, .first = 0, .segments = {40}, .slots = {-1, 2}},
                    {.stream = 9, .first = 7, .segments = {2}, .slots = {5, 5}, .active = 0},
                    {.stream = 8, .first = 9, .segments = {1}, .drafts = 1, .slots = {-1, 3}}},
                   fused);
  EXPECT_EQ(setting.slot(5), idle) << "an inactive sequence keeps its slot";
  for (const auto& bytes : {bytes_of(first), bytes_of(second), bytes_of(setting.state.S),
                            bytes_of(setting.state.pending_k), bytes_of(setting.state.pending_v)})
    result.insert(result.end(), bytes.begin(), bytes.end());
}

TEST(CpuLightning, MixerEqualsItsPartsOnAllThreadsAndInstructionSets) {
  for (const Dims d : kDims) {
    std::vector<std::byte> want;
    for (const auto& backend : cpu_backends())
      for (const bool fused : {false, true}) {
        Setting setting(d);
        std::vector<std::byte> got;
        run_rich(*backend, setting, fused, got);
        if (want.empty()) want = got;
        EXPECT_TRUE(got == want) << name_of(backend->isa()) << ", " << backend->threads() << " threads, fused " << fused
                                 << ", D " << d.D;
      }
  }
}

TEST(CpuLightning, CutsSegmentsDraftsAndNeighboursChangeNothing) {
  for (const Dims d : kDims) {
    const int T = 75;
    CpuBackend plain(1, machine_isas()[0]);
    Setting whole(d);
    const Tensor want = whole.step(plain, {{.stream = 1, .first = 0, .segments = {T}, .slots = {-1, 0}}});
    for (const auto& backend : cpu_backends()) {
      Setting setting(d);
      int position = 0, slot = -1;  // tokens run and kept; where their state is
      for (unsigned n = 0; position < T; ++n) {
        const auto random = static_cast<unsigned>((noise(3, n) + 1) * 0x1p22f);
        const int drafts = std::min<int>(random % 5, T - position - 1),
                  dst = n % 3 == 0 ? (slot + 1) % 3 : std::max(slot, 0);
        std::vector<int> segments = {1 + static_cast<int>(random / 8 % 19), static_cast<int>(random / 64 % 6) + drafts};
        segments[0] = std::min(segments[0], T - position - drafts);
        segments[1] = std::min(segments[1], T - position - segments[0]);
        if (segments[1] < drafts) segments = {segments[0] + segments[1]};
        const int rows = segments.size() == 2 ? segments[0] + segments[1] : segments[0];
        std::vector<int> slots = {slot};
        slots.resize(segments.size() + 1, dst);
        const std::vector<std::byte> kept = slot < 0 ? std::vector<std::byte>() : setting.slot(slot);
        const Tensor y = setting.step(
            *backend, {{.stream = 1, .first = position, .segments = segments, .drafts = drafts, .slots = slots},
                       {.stream = 2, .first = 0, .segments = {3}, .slots = {-1, 5}}});
        const int accepted = drafts == 0 ? 0 : static_cast<int>(random / 1024) % (drafts + 1);
        ASSERT_EQ(rows_of(y, 0, rows - drafts + accepted), rows_of(want, position, position + rows - drafts + accepted))
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
      ASSERT_EQ(bytes_of(setting.state.S[4]), bytes_of(other.state.S[4])) << backend->threads() << " threads";
    }
  }
}

TEST(CpuLightning, AStepOfDraftsOnlyCopiesTheState) {
  for (const auto& backend : cpu_backends()) {
    Setting setting(kDims[0]);
    setting.step(*backend, {{.stream = 1, .first = 0, .segments = {9}, .slots = {-1, 0}}});
    setting.step(*backend, {{.stream = 1, .first = 9, .segments = {2}, .drafts = 2, .slots = {0, 1}},
                            {.stream = 2, .first = 0, .segments = {2}, .drafts = 2, .slots = {-1, 2}}});
    EXPECT_EQ(bytes_of(setting.state.S[1]), bytes_of(setting.state.S[0]));
    EXPECT_EQ(bytes_of(setting.state.S[2]), std::vector<std::byte>(setting.state.S[2].bytes()));
  }
}

}  // namespace
}  // namespace calandra

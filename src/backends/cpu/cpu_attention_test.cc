// Paged attention of CpuBackend: right against loops in f64, and the same bits for every page size, tile, batch, thread
// count, split of the keys and instruction set.
#include "backends/cpu/batch_for_test.h"

namespace calandra {
namespace {

struct Dims {
  int H, Hkv, Dh;
  DType dtype;
};

// One token stream per sequence: keys, values and queries are functions of (stream, token).
class Setting {
 public:
  explicit Setting(Dims dims) : d(dims) {}

  // Pages in a scattered order; entries that nobody may read are NaN.
  KvPages pages_for(const std::vector<SequenceStep>& steps, int page_tokens, Batch& batch) {
    int most = 1;
    for (const SequenceStep& step : steps)
      most = std::max(most, (step.first + step.rows() + page_tokens - 1) / page_tokens);
    const int count = most * static_cast<int>(steps.size());
    KvPages pages{pool.zeros(d.dtype, {count, d.Hkv, page_tokens, d.Dh}),
                  pool.zeros(d.dtype, {count, d.Hkv, page_tokens, d.Dh})};
    for (const Tensor& x : {pages.k, pages.v}) fill(x, 0, 0, NAN);
    batch.block_table = pool.zeros(DType::kI32, {static_cast<int64_t>(steps.size()), most});
    for (size_t b = 0; b < steps.size(); ++b) {
      for (int i = 0; i < most; ++i)
        batch.block_table.as<int32_t>()[b * most + i] = static_cast<int32_t>(((i * 7 + 3) % most) * steps.size() + b);
      if (most % 7 == 0)
        for (int i = 0; i < most; ++i)
          batch.block_table.as<int32_t>()[b * most + i] = static_cast<int32_t>(i * steps.size() + b);
      for (int t = 0; t < step_end(steps[b]); ++t)
        for (int h = 0; h < d.Hkv; ++h) {
          const int page = batch.block_table.as<int32_t>()[b * most + t / page_tokens];
          const int64_t at = ((static_cast<int64_t>(page) * d.Hkv + h) * page_tokens + t % page_tokens) * d.Dh;
          for (int i = 0; i < d.Dh; ++i) {
            put(pages.k, at + i, key(steps[b].stream, t, h, i));
            put(pages.v, at + i, value(steps[b].stream, t, h, i));
          }
        }
    }
    return pages;
  }

  static int step_end(const SequenceStep& step) { return step.first + step.rows(); }
  static float key(int stream, int t, int h, int i) { return 2 * noise(stream * 2 + 11, (t * 64 + h) * 512 + i); }
  static float value(int stream, int t, int h, int i) { return noise(stream * 2 + 12, (t * 64 + h) * 512 + i) + 0.3f; }
  static float query(int stream, int t, int h, int i) { return 2 * noise(stream * 2 + 1000, (t * 64 + h) * 512 + i); }

  // [T, H, Dh] per step sequence, one after the other
  Tensor run(Backend& backend, const std::vector<SequenceStep>& steps, int page_tokens,
             const std::vector<int32_t>& first_key = {}) {
    Batch batch = batch_of(pool, steps);
    const KvPages pages = pages_for(steps, page_tokens, batch);
    Tensor q = pool.zeros(d.dtype, {batch.rows(), d.H, d.Dh}), out = pool.zeros(d.dtype, {batch.rows(), d.H, d.Dh});
    fill(out, 0, 0, NAN);
    int64_t at = 0;
    for (const SequenceStep& step : steps)
      for (int t = step.first; t < step_end(step); ++t)
        for (int h = 0; h < d.H; ++h)
          for (int i = 0; i < d.Dh; ++i) put(q, at++, query(step.stream, t, h, i));
    Workspace workspace;
    OneRank rank;
    ExecContext ctx{.backend = backend, .workspace = workspace, .communicator = rank};
    const Tensor first = first_key.empty() ? Tensor() : pool.ints(first_key);
    backend.paged_attention(ctx, q, pages, batch, scale(), first, out);
    return out;
  }

  float scale() const { return 1 / std::sqrt(static_cast<float>(d.Dh)); }

  double rounded(float x) const { return d.dtype == DType::kBF16 ? static_cast<float>(bf16(x)) : x; }
  std::vector<double> expected(int stream, int t, int h, int first_key) const {
    const int hk = h / (d.H / d.Hkv);
    std::vector<double> scores, y(d.Dh, 0.0);
    double highest = -1e300, sum = 0;
    for (int j = first_key; j <= t; ++j) {
      double s = 0;
      for (int i = 0; i < d.Dh; ++i) s += rounded(query(stream, t, h, i)) * rounded(key(stream, j, hk, i));
      scores.push_back(s * scale());
      highest = std::max(highest, scores.back());
    }
    for (double& s : scores) sum += s = std::exp(s - highest);
    for (int j = first_key; j <= t; ++j)
      for (int i = 0; i < d.Dh; ++i) y[i] += scores[j - first_key] / sum * rounded(value(stream, j, hk, i));
    return y;
  }

  const Dims d;
  TensorPool pool;
};

std::vector<std::byte> rows_of(const Tensor& x, int64_t begin, int64_t end) { return bytes_of(x.slice(0, begin, end)); }

TEST(CpuAttention, EqualsLoopsInDoublePrecision) {
  for (const auto& backend : cpu_backends())
    for (const Dims d :
         {Dims{4, 2, 64, DType::kF32}, {8, 2, 256, DType::kBF16}, {3, 1, 80, DType::kF32}, {40, 1, 96, DType::kBF16}}) {
      Setting setting(d);
      const std::vector<SequenceStep> steps = {{.stream = 1, .first = 0, .segments = {70}, .slots = {}},
                                               {.stream = 2, .first = 600, .segments = {3}, .slots = {}}};
      const Tensor y = setting.run(*backend, steps, 16, {0, 5});
      int64_t at = 0;
      for (const auto& [step, first_key] : {std::pair{steps[0], 0}, {steps[1], 5}})
        for (int t = step.first; t < Setting::step_end(step); ++t)
          for (int h = 0; h < d.H; ++h) {
            if (t % 23 != 0 && t < 600) {
              at += d.Dh;
              continue;
            }
            const std::vector<double> want = setting.expected(step.stream, t, h, first_key);
            for (int i = 0; i < d.Dh; ++i, ++at)  // values are below 1.3: f32 sums, or one rounding to 8 bits
              ASSERT_NEAR(get(y, at), want[i], d.dtype == DType::kF32 ? 3e-6 : 0x1p-8 * 1.3)
                  << "token " << t << " head " << h;
          }
    }
}

// Also where the kernels do not serve.
TEST(CpuAttention, EqualsTheReferenceUpToRounding) {
  ReferenceBackend reference;
  CpuBackend cpu(3, machine_isas().back());
  for (const Dims d : {Dims{6, 2, 24, DType::kF32}, {2, 1, 272, DType::kF32}, {8, 2, 64, DType::kF32}}) {
    Setting setting(d);
    const std::vector<SequenceStep> steps = {{.stream = 1, .first = 0, .segments = {70}, .slots = {}},
                                             {.stream = 2, .first = 560, .segments = {3}, .slots = {}},
                                             {.stream = 2, .first = 560, .segments = {3}, .slots = {}, .active = 0}};
    const Tensor y = setting.run(cpu, steps, 16, {3, 5, 0}), z = setting.run(reference, steps, 16, {3, 5, 0});
    for (int64_t i = 0; i < y.numel(); ++i) ASSERT_NEAR(get(y, i), get(z, i), 3e-6) << "Dh " << d.Dh << " at " << i;
  }
}

TEST(CpuAttention, ARowIsOneFunctionOfItsQueryAndKeys) {
  for (const Dims d : {Dims{8, 2, 64, DType::kBF16}, {6, 3, 48, DType::kF32}}) {
    Setting setting(d);
    // Tokens 0 .. 1100 of stream 1 at once, by one thread: what every other way must give.
    const auto backends = cpu_backends();
    const Tensor whole = setting.run(*backends[0], {{.stream = 1, .first = 0, .segments = {1100}, .slots = {}}}, 16);
    for (const auto& backend : backends) {
      int page = 24;
      for (const auto& [first, rows] :
           {std::pair{0, 1}, {0, 65}, {63, 2}, {511, 1}, {512, 3}, {1000, 7}, {1099, 1}, {300, 800}}) {
        page = page == 24 ? 1 : page == 1 ? 16 : 24;
        const Tensor part =
            setting.run(*backend, {{.stream = 1, .first = first, .segments = {rows}, .slots = {}}}, page);
        ASSERT_EQ(bytes_of(part), rows_of(whole, first, first + rows))
            << backend->threads() << " threads, page " << page << ", rows " << first << " + " << rows;
      }
      std::vector<SequenceStep> steps;
      for (int b = 0; b < 40; ++b)
        steps.push_back({.stream = b == 17 ? 1 : 2 + b,
                         .first = b == 17 ? 900 : 13 * b,
                         .segments = {b == 17 ? 5 : 1},
                         .slots = {}});
      const Tensor batch = setting.run(*backend, steps, 16);
      ASSERT_EQ(rows_of(batch, 17, 22), rows_of(whole, 900, 905)) << backend->threads() << " threads, in a batch";
    }
  }
}

TEST(CpuAttention, InactiveRowsAndRowsWithoutKeysGiveZeros) {
  Setting setting({4, 2, 32, DType::kF32});
  for (const auto& backend : cpu_backends()) {
    const Tensor y = setting.run(*backend,
                                 {{.stream = 1, .first = 700, .segments = {2}, .slots = {}, .active = 0},
                                  {.stream = 2, .first = 700, .segments = {1}, .slots = {}},
                                  {.stream = 3, .first = 4, .segments = {2}, .slots = {}}},
                                 16, {0, 0, 5});
    const std::vector<std::byte> zeros(4 * 32 * sizeof(float));
    EXPECT_EQ(rows_of(y, 0, 1), zeros);
    EXPECT_EQ(rows_of(y, 1, 2), zeros);
    EXPECT_NE(rows_of(y, 2, 3), zeros);
    EXPECT_EQ(rows_of(y, 3, 4), zeros) << "first key behind the row";
    EXPECT_NE(rows_of(y, 4, 5), zeros);
  }
}

TEST(CpuAttention, FusedNormRopeStoreEqualsItsParts) {
  for (const auto& backend : cpu_backends())
    for (const DType dtype : {DType::kF32, DType::kBF16}) {
      TensorPool pool;
      const int64_t H = 6, Hkv = 2, Dh = 48, half = 12;
      const std::vector<SequenceStep> steps = {{.stream = 1, .first = 14, .segments = {5}, .slots = {}},
                                               {.stream = 2, .first = 3, .segments = {1}, .slots = {}, .active = 0},
                                               {.stream = 3, .first = 0, .segments = {40}, .slots = {}}};
      Batch batch = batch_of(pool, steps);
      batch.block_table = pool.zeros(DType::kI32, {3, 3});
      for (int i = 0; i < 9; ++i) batch.block_table.as<int32_t>()[i] = 8 - i;
      const int64_t T = batch.rows(), width = (H + 2 * Hkv) * Dh;
      const Tensor qkv = pool.zeros(dtype, {T, width}), table = pool.zeros(dtype, {2, T, half});
      const Tensor q_norm = pool.zeros(DType::kF32, {Dh}), k_norm = pool.zeros(DType::kF32, {Dh});
      fill(qkv, 1, 3), fill(table, 2, 1), fill(q_norm, 3, 0.5f), fill(k_norm, 4, 0.5f);
      const Tensor q = qkv.slice(1, 0, H * Dh).view({T, H, Dh}),
                   k = qkv.slice(1, H * Dh, (H + Hkv) * Dh).view({T, Hkv, Dh}),
                   v = qkv.slice(1, (H + Hkv) * Dh, width).view({T, Hkv, Dh});
      const ops::QkNorm norm{q_norm, k_norm, 1e-6f, 1.0f};
      Workspace measured;
      for (int i = 0; i < 8; ++i) measured.alloc(DType::kF32, {T, width});
      Workspace workspace(measured, Buffer::host(measured.bytes()));
      OneRank rank;
      ExecContext ctx{.backend = *backend, .workspace = workspace, .communicator = rank};
      std::vector<std::byte> results[2];
      for (const bool fused : {false, true}) {
        KvPages pages{pool.zeros(dtype, {9, Hkv, 16, Dh}), pool.zeros(dtype, {9, Hkv, 16, Dh})};
        Tensor out = pool.zeros(dtype, {T, H, Dh});
        if (fused)
          backend->qk_norm_rope_store(ctx, q, k, v, norm, table, pages, batch, out);
        else
          backend->Backend::qk_norm_rope_store(ctx, q, k, v, norm, table, pages, batch, out);
        for (const Tensor& x : {out, pages.k, pages.v}) {
          const auto bytes = bytes_of(x);
          results[fused].insert(results[fused].end(), bytes.begin(), bytes.end());
        }
        EXPECT_EQ(get(pages.k, ((5 * Hkv + 0) * 16 + 3) * Dh), 0) << "an inactive sequence stores nothing";
      }
      EXPECT_EQ(results[0], results[1]);
    }
}

}  // namespace
}  // namespace calandra

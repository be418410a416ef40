// Latent attention of CpuBackend: right against loops in f64 over many keys, and the same bits for every page size,
// tile, batch, thread count, split of the keys and instruction set.
#include "backends/cpu/batch_for_test.h"
#include "ops/latent_attention.h"

namespace calandra {
namespace {

struct Dims {
  int H, L, R, Dn, Dv;
  DType dtype;
};

class Setting {
 public:
  explicit Setting(Dims dims) : d(dims) {}

  static float latent(int stream, int t, int i) { return 2 * noise(stream * 4 + 11, t * 1024 + i); }
  static float k_pe(int stream, int t, int i) { return 2 * noise(stream * 4 + 12, t * 1024 + i); }
  static float q_nope(int stream, int t, int h, int i) { return 2 * noise(stream * 4 + 13, (t * 64 + h) * 1024 + i); }
  static float q_pe(int stream, int t, int h, int i) { return 2 * noise(stream * 4 + 14, (t * 64 + h) * 1024 + i); }
  float W_UK(int h, int l, int i) const { return noise(1000 + h, l * 1024 + i) / std::sqrt(static_cast<float>(d.Dn)); }
  float W_UV(int h, int j, int l) const { return noise(2000 + h, j * 1024 + l) / std::sqrt(static_cast<float>(d.L)); }
  float scale() const { return 1 / std::sqrt(static_cast<float>(d.Dn + d.R)); }

  // [T, H, Dv] per step sequence, one after the other. Pages in a scattered order; what nobody may read is NaN.
  Tensor run(Backend& backend, const std::vector<SequenceStep>& steps, int page_tokens,
             const std::vector<int32_t>& first_key = {}) {
    Batch batch = batch_of(pool, steps);
    const int B = static_cast<int>(steps.size());
    int most = 1;
    for (const SequenceStep& step : steps)
      most = std::max(most, (step.first + step.rows() + page_tokens - 1) / page_tokens);
    batch.block_table = pool.zeros(DType::kI32, {B, most});
    const LatentPages pages{pool.zeros(d.dtype, {most * B, page_tokens, d.L}),
                            pool.zeros(d.dtype, {most * B, page_tokens, d.R})};
    fill(pages.latent, 0, 0, NAN), fill(pages.k_pe, 0, 0, NAN);
    Tensor qn = pool.zeros(d.dtype, {batch.rows(), d.H, d.Dn}), qp = pool.zeros(d.dtype, {batch.rows(), d.H, d.R});
    int64_t row = 0;
    for (int b = 0; b < B; ++b) {
      const SequenceStep& s = steps[b];
      int32_t* table = batch.block_table.as<int32_t>() + b * most;
      for (int i = 0; i < most; ++i) table[i] = (most - 1 - i) * B + b;
      for (int t = 0; t < s.first + s.rows(); ++t) {
        const int64_t at = int64_t{table[t / page_tokens]} * page_tokens + t % page_tokens;
        for (int i = 0; i < d.L; ++i) put(pages.latent, at * d.L + i, latent(s.stream, t, i));
        for (int i = 0; i < d.R; ++i) put(pages.k_pe, at * d.R + i, k_pe(s.stream, t, i));
      }
      for (int t = s.first; t < s.first + s.rows(); ++t, ++row)
        for (int h = 0; h < d.H; ++h) {
          for (int i = 0; i < d.Dn; ++i) put(qn, (row * d.H + h) * d.Dn + i, q_nope(s.stream, t, h, i));
          for (int i = 0; i < d.R; ++i) put(qp, (row * d.H + h) * d.R + i, q_pe(s.stream, t, h, i));
        }
    }
    const ops::LatentUpProjection up{grouped(backend, d.L, d.Dn, [&](int h, int n, int k) { return W_UK(h, n, k); }),
                                     grouped(backend, d.Dv, d.L, [&](int h, int n, int k) { return W_UV(h, n, k); })};
    const Tensor first = first_key.empty() ? Tensor() : pool.ints(first_key);
    Workspace measured;
    measured.alloc(DType::kF32, {2 * batch.rows() + 1, d.H, d.L + d.Dv});
    Workspace workspace(measured, Buffer::host(measured.bytes()));
    OneRank rank;
    ExecContext ctx{.backend = backend, .workspace = workspace, .communicator = rank};
    Tensor out = pool.zeros(d.dtype, {batch.rows(), d.H, d.Dv});
    fill(out, 0, 0, NAN);
    backend.latent_attention(ctx, qn, qp, up, pages, batch, scale(), first, out);
    return out;
  }

  double rounded(float x) const { return d.dtype == DType::kBF16 ? static_cast<float>(bf16(x)) : x; }
  std::vector<double> expected(int stream, int t, int h, int first_key) const {
    std::vector<double> q_lat(d.L), scores, mixed(d.L), y(d.Dv);
    for (int l = 0; l < d.L; ++l)
      for (int i = 0; i < d.Dn; ++i) q_lat[l] += rounded(q_nope(stream, t, h, i)) * rounded(W_UK(h, l, i));
    double highest = -1e300, sum = 0;
    for (int u = first_key; u <= t; ++u) {
      double s = 0;
      for (int l = 0; l < d.L; ++l) s += q_lat[l] * rounded(latent(stream, u, l));
      for (int i = 0; i < d.R; ++i) s += rounded(q_pe(stream, t, h, i)) * rounded(k_pe(stream, u, i));
      scores.push_back(s * scale());
      highest = std::max(highest, scores.back());
    }
    for (double& s : scores) sum += s = std::exp(s - highest);
    for (int u = first_key; u <= t; ++u)
      for (int l = 0; l < d.L; ++l) mixed[l] += scores[u - first_key] / sum * rounded(latent(stream, u, l));
    for (int j = 0; j < d.Dv; ++j)
      for (int l = 0; l < d.L; ++l) y[j] += rounded(W_UV(h, j, l)) * mixed[l];
    return y;
  }

  const Dims d;
  TensorPool pool;

 private:
  template <class F>
  GroupedWeight grouped(Backend& backend, int64_t N, int64_t K, const F& value) {
    GroupedWeight all{.E = d.H, .N = N, .K = K, .dtype = d.dtype, .packed = {}, .block_k = 0};
    const StoredMatrix matrix{pool.zeros(d.dtype, {N, K})};
    const int64_t bytes = static_cast<int64_t>(backend.packed_bytes(matrix));
    all.packed = pool.zeros(DType::kU8, {d.H, (bytes + 255) / 256 * 256});
    for (int h = 0; h < d.H; ++h) {
      for (int64_t n = 0; n < N; ++n)
        for (int64_t k = 0; k < K; ++k)
          put(matrix.values, n * K + k, value(h, static_cast<int>(n), static_cast<int>(k)));
      backend.pack_weight(matrix, all.packed[h].bytes_at(0));
    }
    return all;
  }
};

std::vector<std::byte> rows_of(const Tensor& x, int64_t begin, int64_t end) { return bytes_of(x.slice(0, begin, end)); }

SequenceStep tokens(int stream, int first, int rows, int active = 1) {
  return {.stream = stream, .first = first, .segments = {rows}, .slots = {}, .active = active};
}

TEST(CpuLatentAttention, EqualsLoopsInDoublePrecision) {
  for (const auto& backend : cpu_backends())
    for (const Dims d : {Dims{3, 32, 16, 32, 48, DType::kF32},
                         {2, 512, 64, 128, 128, DType::kF32},
                         {40, 64, 32, 16, 24, DType::kBF16}}) {
      Setting setting(d);
      const std::vector<SequenceStep> steps = {tokens(1, 0, 70), tokens(2, 600, 2)};
      const Tensor y = setting.run(*backend, steps, 16, {0, 5});
      int64_t at = 0;
      for (const auto& [step, first_key] : {std::pair{steps[0], 0}, {steps[1], 5}})
        for (int t = step.first; t < step.first + step.rows(); ++t)
          for (int h = 0; h < d.H; ++h) {
            if (t % 23 != 0 && t < 600) {
              at += d.Dv;
              continue;
            }
            const std::vector<double> want = setting.expected(step.stream, t, h, first_key);
            // Values below 2. A score of up to 30 is off by sqrt(L) roundings of its parts, its weight by as much.
            for (int i = 0; i < d.Dv; ++i, ++at)
              ASSERT_NEAR(get(y, at), want[i], d.dtype == DType::kF32 ? 2e-5 : 0x1p-8 * (1 + std::fabs(want[i])))
                  << "token " << t << " head " << h << " L " << d.L;
          }
    }
}

TEST(CpuLatentAttention, ARowIsOneFunctionOfItsQueryAndKeys) {
  for (const Dims d : {Dims{3, 32, 16, 32, 48, DType::kF32}, {33, 64, 16, 16, 40, DType::kBF16}}) {
    Setting setting(d);
    const auto backends = cpu_backends();
    const Tensor whole = setting.run(*backends[0], {tokens(1, 0, 1100)}, 16);
    for (const auto& backend : backends) {
      int page = 24;
      for (const auto& [first, rows] : {std::pair{0, 1}, {0, 65}, {63, 2}, {511, 1}, {512, 3}, {1099, 1}, {900, 150}}) {
        page = page == 24 ? 1 : page == 1 ? 16 : 24;
        const Tensor part = setting.run(*backend, {tokens(1, first, rows)}, page);
        ASSERT_EQ(bytes_of(part), rows_of(whole, first, first + rows))
            << backend->threads() << " threads, page " << page << ", rows " << first << " + " << rows;
      }
      std::vector<SequenceStep> steps;
      for (int b = 0; b < 7; ++b) steps.push_back(b == 4 ? tokens(1, 900, 5) : tokens(2 + b, 13 * b, 1, b != 2));
      ASSERT_EQ(rows_of(setting.run(*backend, steps, 16), 4, 9), rows_of(whole, 900, 905))
          << backend->threads() << " threads, in a batch";
    }
  }
}

// What a row must not see may be anything, also within its tile.
TEST(CpuLatentAttention, ALaterTokensNaNStaysWithIt) {
  const Dims d{3, 32, 16, 32, 48, DType::kF32};
  Setting setting(d);
  CpuBackend backend(2, machine_isas().back());
  TensorPool pool;
  Batch batch = batch_of(pool, {tokens(1, 0, 9)});
  batch.block_table = pool.ints({0}).view({1, 1});
  const LatentPages pages{pool.zeros(DType::kF32, {1, 16, d.L}), pool.zeros(DType::kF32, {1, 16, d.R})};
  fill(pages.latent, 1, 1), fill(pages.k_pe, 2, 1);
  for (int i = 0; i < d.L; ++i) put(pages.latent[0], 5 * d.L + i, NAN);
  const Tensor x = pool.zeros(DType::kF32, {9, d.H, 32});
  fill(x, 3, 1);
  const Tensor q_pe = pool.zeros(DType::kF32, {9, d.H, d.R});
  fill(q_pe, 4, 1);
  GroupedWeight up{.E = d.H, .N = 32, .K = 32, .dtype = DType::kF32, .packed = {}, .block_k = 0};
  const StoredMatrix matrix{pool.zeros(DType::kF32, {32, 32})};
  fill(matrix.values, 5, 1);
  up.packed = pool.zeros(DType::kU8, {d.H, static_cast<int64_t>(backend.packed_bytes(matrix))});
  for (int h = 0; h < d.H; ++h) backend.pack_weight(matrix, up.packed[h].bytes_at(0));
  Workspace measured;
  measured.alloc(DType::kF32, {9, d.H, d.L});
  Workspace workspace(measured, Buffer::host(measured.bytes()));
  OneRank rank;
  ExecContext ctx{.backend = backend, .workspace = workspace, .communicator = rank};
  Tensor out = pool.zeros(DType::kF32, {9, d.H, 32});
  backend.latent_attention(ctx, x, q_pe, {up, up}, pages, batch, 0.1f, {}, out);
  for (int64_t t = 0; t < 9; ++t)
    for (int64_t i = 0; i < d.H * 32; ++i) ASSERT_EQ(std::isnan(get(out, t * d.H * 32 + i)), t >= 5) << "token " << t;
}

}  // namespace
}  // namespace calandra

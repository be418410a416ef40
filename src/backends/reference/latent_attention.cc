// Multi-head latent attention as it is written: keys and values of every head from the latents
// (ops/latent_attention.h).
#include <algorithm>
#include <cmath>

#include "backends/reference/reference.h"
#include "backends/reference/rows.h"

namespace calandra {

using namespace reference;

namespace {

// Where the entry of token `index` of sequence `b` stands.
std::byte* in_pages(const Tensor& pages, const Batch& batch, int64_t b, int64_t index) {
  const int64_t page_tokens = pages.size(1);
  const int64_t page = batch.block_table[b].as<int32_t>()[index / page_tokens];
  return pages.bytes_at(page * pages.stride(0) + index % page_tokens * pages.stride(1));
}

// A token's key and value in one head.
struct KeyValue {
  std::vector<double> key;    // [Dn + R]
  std::vector<double> value;  // [Dv]
};

}  // namespace

void ReferenceBackend::store_latent(ExecContext&, const Tensor& latent, const Tensor& k_pe, LatentPages& pages,
                                    const Batch& batch) {
  for (int64_t t = 0; t < latent.size(0); ++t) {
    const int64_t b = batch.row_sequence.as<int32_t>()[t];
    if (!batch.active.as<int32_t>()[b]) continue;
    const int64_t index = batch.token_index.as<int32_t>()[t];
    for (const auto& [from, to] : {std::pair(latent, pages.latent), {k_pe, pages.k_pe}})
      ReferenceBackend::copy_bytes(in_pages(to, batch, b, index), from.bytes_at(t * from.stride(0)),
                                   static_cast<size_t>(from.size(1)) * size_of(from.dtype()));
  }
}

void ReferenceBackend::latent_attention(ExecContext& ctx, const Tensor& q_nope, const Tensor& q_pe,
                                        const ops::LatentUpProjection& up, const LatentPages& pages, const Batch& batch,
                                        float scale, const Tensor& first_key, Tensor& out) {
  if (ctx.dry_run) return;
  const int64_t T = q_nope.size(0), H = q_nope.size(1), Dn = q_nope.size(2), R = q_pe.size(2), L = pages.latent.size(2),
                Dv = out.size(2);
  const auto matrix_of = [&](const PackedWeight& weight) {
    std::vector<std::vector<float>> rows;
    for (int64_t n = 0; n < weight.N; ++n) rows.push_back(weight_row(weight, n));
    return rows;
  };
  for (int64_t t = 0; t < T; ++t) zero_row(out, t);
  for (int64_t h = 0; h < H; ++h) {
    const auto W_UK = matrix_of(up.key.expert(h)), W_UV = matrix_of(up.value.expert(h));  // [L, Dn], [Dv, L]
    const auto expand = [&](int64_t b, int64_t u) {
      const auto c = load(in_pages(pages.latent, batch, b, u), pages.latent.dtype(), L);
      const auto pe = load(in_pages(pages.k_pe, batch, b, u), pages.k_pe.dtype(), R);
      KeyValue kv{std::vector<double>(Dn), std::vector<double>(Dv)};
      for (int64_t l = 0; l < L; ++l)
        for (int64_t i = 0; i < Dn; ++i) kv.key[i] += double(W_UK[l][i]) * c[l];
      kv.key.insert(kv.key.end(), pe.begin(), pe.end());
      for (int64_t j = 0; j < Dv; ++j)
        for (int64_t l = 0; l < L; ++l) kv.value[j] += double(W_UV[j][l]) * c[l];
      return kv;
    };
    std::vector<KeyValue> seen;  // keys from seen_begin on, of the sequence whose rows these are
    int64_t sequence = -1;
    for (int64_t t = 0; t < T; ++t) {
      const int64_t b = batch.row_sequence.as<int32_t>()[t];
      if (!batch.active.as<int32_t>()[b]) continue;
      const int64_t begin = first_key ? first_key.as<int32_t>()[b] : 0;
      const int64_t keys = batch.token_index.as<int32_t>()[t] + 1 - begin;
      if (b != sequence) seen.clear();
      sequence = b;
      while (static_cast<int64_t>(seen.size()) < keys)
        seen.push_back(expand(b, begin + static_cast<int64_t>(seen.size())));

      std::vector<float> q = load(q_nope.bytes_at(t * q_nope.stride(0) + h * Dn), q_nope.dtype(), Dn);
      const std::vector<float> pe = load(q_pe.bytes_at(t * q_pe.stride(0) + h * R), q_pe.dtype(), R);
      q.insert(q.end(), pe.begin(), pe.end());
      std::vector<double> scores;
      for (int64_t u = 0; u < keys; ++u) {
        double dot = 0;
        for (size_t i = 0; i < q.size(); ++i) dot += q[i] * seen[u].key[i];
        scores.push_back(dot * scale);
      }
      if (scores.empty()) continue;
      const double largest = *std::max_element(scores.begin(), scores.end());
      std::vector<double> sum(Dv);
      double total = 0;
      for (int64_t u = 0; u < keys; ++u) {
        const double weight = std::exp(scores[u] - largest);
        total += weight;
        for (int64_t j = 0; j < Dv; ++j) sum[j] += weight * seen[u].value[j];
      }
      std::vector<float> result;
      for (const double x : sum) result.push_back(static_cast<float>(x / total));
      store(result, out.bytes_at(t * out.stride(0) + h * Dv), out.dtype());
    }
  }
}

}  // namespace calandra

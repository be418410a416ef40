// Rotary positions and paged softmax attention (ops/attention.h).
#include <algorithm>
#include <cmath>

#include "backends/reference/reference.h"
#include "backends/reference/rows.h"

namespace calandra {

using namespace reference;

namespace {

// Where token `index` of sequence `b` stands in a tensor of pages: bytes of its [Dh] vector for key head h.
std::byte* in_pages(const Tensor& pages, const Batch& batch, int64_t b, int64_t index, int64_t h) {
  const int64_t page_tokens = pages.size(2);
  const int64_t page = batch.block_table[b].as<int32_t>()[index / page_tokens];
  return pages.bytes_at(page * pages.stride(0) + h * pages.stride(1) + index % page_tokens * pages.stride(2));
}

}  // namespace

void ReferenceBackend::rope_table(ExecContext&, const Tensor& positions, const ops::RopeFrequencies& frequencies,
                                  Tensor& out) {
  const int64_t T = out.size(1), half = out.size(2);
  Tensor cosines = out[0], sines = out[1];
  std::vector<float> c(half), s(half);
  for (int64_t t = 0; t < T; ++t) {
    for (int64_t i = 0; i < half; ++i) {
      const int64_t axis = frequencies.axis.as<int32_t>()[i];
      const double angle = positions[axis].as<int32_t>()[t] * frequencies.inv_freq.as<double>()[i];
      c[i] = static_cast<float>(std::cos(angle) * frequencies.scale);
      s[i] = static_cast<float>(std::sin(angle) * frequencies.scale);
    }
    store_row(c, cosines, t);
    store_row(s, sines, t);
  }
}

void ReferenceBackend::rope(ExecContext&, const Tensor& x, const Tensor& table, ops::RopePairing pairing, Tensor& out) {
  const int64_t H = x.size(1), Dh = x.size(2), half = table.size(2);
  const Tensor cosines = table[0], sines = table[1];
  const bool halves = pairing == ops::RopePairing::kHalves;
  for (int64_t t = 0; t < x.size(0); ++t) {
    std::vector<float> row = load_row(x, t);
    const std::vector<float> c = load_row(cosines, t), s = load_row(sines, t);
    for (int64_t h = 0; h < H; ++h) {
      float* head = &row[h * Dh];
      for (int64_t i = 0; i < half; ++i) {
        float& low = head[halves ? i : 2 * i];
        float& high = head[halves ? i + half : 2 * i + 1];
        const double a = low, b = high;
        low = static_cast<float>(a * c[i] - b * s[i]);
        high = static_cast<float>(b * c[i] + a * s[i]);
      }
    }
    store_row(row, out, t);
  }
}

void ReferenceBackend::store_kv(ExecContext&, const Tensor& k, const Tensor& v, KvPages& pages, const Batch& batch) {
  const int64_t Hkv = k.size(1), Dh = k.size(2);
  const size_t bytes = static_cast<size_t>(Dh) * size_of(k.dtype());
  for (int64_t t = 0; t < k.size(0); ++t) {
    const int64_t b = batch.row_sequence.as<int32_t>()[t];
    if (!batch.active.as<int32_t>()[b]) continue;
    const int64_t index = batch.token_index.as<int32_t>()[t];
    for (int64_t h = 0; h < Hkv; ++h) {
      ReferenceBackend::copy_bytes(in_pages(pages.k, batch, b, index, h), k.bytes_at(t * k.stride(0) + h * Dh), bytes);
      ReferenceBackend::copy_bytes(in_pages(pages.v, batch, b, index, h), v.bytes_at(t * v.stride(0) + h * Dh), bytes);
    }
  }
}

void ReferenceBackend::paged_attention(ExecContext& ctx, const Tensor& q, const KvPages& pages, const Batch& batch,
                                       float scale, const Tensor& first_key, Tensor& out) {
  if (ctx.dry_run) return;
  const int64_t H = q.size(1), Dh = q.size(2), group = H / pages.k.size(1);
  for (int64_t t = 0; t < q.size(0); ++t) {
    const int64_t b = batch.row_sequence.as<int32_t>()[t];
    if (!batch.active.as<int32_t>()[b]) {
      zero_row(out, t);
      continue;
    }
    const int64_t begin = first_key ? first_key.as<int32_t>()[b] : 0;
    const int64_t end = std::max<int64_t>(begin, batch.token_index.as<int32_t>()[t] + 1);
    const std::vector<float> row = load_row(q, t);
    std::vector<float> result(row.size());
    std::vector<double> scores(end - begin), sum(Dh);
    for (int64_t h = 0; h < H; ++h) {
      double largest = -INFINITY, total = 0;
      for (int64_t i = begin; i < end; ++i) {
        const auto key = load(in_pages(pages.k, batch, b, i, h / group), pages.k.dtype(), Dh);
        double dot = 0;
        for (int64_t j = 0; j < Dh; ++j) dot += double(row[h * Dh + j]) * key[j];
        scores[i - begin] = dot * scale;
        largest = std::max(largest, scores[i - begin]);
      }
      std::fill(sum.begin(), sum.end(), 0.0);
      for (int64_t i = begin; i < end; ++i) {
        const double weight = std::exp(scores[i - begin] - largest);
        total += weight;
        const auto value = load(in_pages(pages.v, batch, b, i, h / group), pages.v.dtype(), Dh);
        for (int64_t j = 0; j < Dh; ++j) sum[j] += weight * value[j];
      }
      for (int64_t j = 0; j < Dh && end > begin; ++j) result[h * Dh + j] = static_cast<float>(sum[j] / total);
    }
    store_row(result, out, t);
  }
}

}  // namespace calandra

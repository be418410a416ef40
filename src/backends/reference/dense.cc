// Projections and elementwise products (ops/dense.h).
#include "backends/reference/reference.h"
#include "backends/reference/rows.h"

namespace calandra {

using namespace reference;

namespace {

// out[t, i] = f(a[t, i], b[t, i]); b may have one number per row
template <class F>
void for_each_pair(const Tensor& a, const Tensor& b, Tensor& out, F f) {
  for (int64_t t = 0; t < out.size(0); ++t) {
    std::vector<float> x = load_row(a, t);
    const std::vector<float> y = load_row(b, t);
    for (size_t i = 0; i < x.size(); ++i) x[i] = f(x[i], y[y.size() == 1 ? 0 : i]);
    store_row(x, out, t);
  }
}

}  // namespace

std::vector<float> ReferenceBackend::weight_row(const PackedWeight& weight, int64_t n) const {
  const size_t bytes = packed_row(weight.dtype, weight.K, weight.block_k);
  const std::byte* from = weight.packed.bytes_at(n * static_cast<int64_t>(bytes));
  std::vector<float> row = load(from, weight.dtype, weight.K);
  if (weight.dtype == DType::kF8E4M3) {
    const auto* scales = reinterpret_cast<const float*>(from + (row.size() + 3) / 4 * 4);
    for (int64_t k = 0; k < weight.K; ++k) row[k] *= scales[k / weight.block_k];
  }
  return row;
}

void ReferenceBackend::linear(ExecContext&, const Tensor& x, const LinearPack& pack, Tensor& out) {
  const int64_t T = x.size(0), K = pack.K();
  std::vector<std::vector<float>> rows, results;
  for (int64_t t = 0; t < T; ++t) {
    rows.push_back(load_row(x, t));
    results.emplace_back(pack.N());
  }
  int64_t column = 0;
  for (const PackedWeight& weight : pack.parts()) {
    for (int64_t n = 0; n < weight.N; ++n, ++column) {
      const std::vector<float> w = weight_row(weight, n);
      const double bias = weight.bias ? weight.bias.as<float>()[n] : 0;
      for (int64_t t = 0; t < T; ++t) {
        double sum = 0;
        for (int64_t k = 0; k < K; ++k) sum += double(w[k]) * double(rows[t][k]);
        results[t][column] = static_cast<float>(sum + bias);
      }
    }
  }
  for (int64_t t = 0; t < T; ++t) store_row(results[t], out, t);
}

void ReferenceBackend::silu_mul(ExecContext&, const Tensor& gate, const Tensor& up, Tensor& out) {
  const DType act = gate.dtype();
  for_each_pair(gate, up, out, [act](float g, float u) { return rounded(static_cast<float>(silu(g)), act) * u; });
}

void ReferenceBackend::sigmoid_mul(ExecContext&, const Tensor& x, const Tensor& gate, Tensor& out) {
  const DType act = gate.dtype();
  for_each_pair(x, gate, out,
                [act](float v, float g) { return v * rounded(static_cast<float>(reference::sigmoid(g)), act); });
}

void ReferenceBackend::sigmoid(ExecContext&, const Tensor& x, Tensor& out) {
  for (int64_t t = 0; t < x.size(0); ++t) {
    std::vector<float> values = load_row(x, t);
    for (float& value : values) value = static_cast<float>(reference::sigmoid(value));
    store_row(values, out, t);
  }
}

void ReferenceBackend::add(ExecContext&, const Tensor& a, const Tensor& b, Tensor& out) {
  for_each_pair(a, b, out, [](float x, float y) { return x + y; });
}

void ReferenceBackend::embedding(ExecContext&, const Tensor& ids, const PackedWeight& weight, Tensor& out) {
  for (int64_t t = 0; t < ids.size(0); ++t) {
    const int32_t id = ids.as<int32_t>()[t];
    if (id < 0 || id >= weight.N)
      zero_row(out, t);
    else
      store_row(weight_row(weight, id), out, t);
  }
}

void ReferenceBackend::gather_rows(ExecContext&, const Tensor& x, const Tensor& rows, Tensor& out) {
  for (int64_t i = 0; i < rows.size(0); ++i) copy_row(x, rows.as<int32_t>()[i], out, i);
}

void ReferenceBackend::scatter_rows(ExecContext&, Tensor& x, const Tensor& rows, const Tensor& values) {
  for (int64_t i = 0; i < rows.size(0); ++i) copy_row(values, i, x, rows.as<int32_t>()[i]);
}

void ReferenceBackend::copy_rows(ExecContext&, const Tensor& from, const Tensor& from_rows, Tensor& to,
                                 const Tensor& to_rows) {
  for (int64_t i = 0; i < from_rows.size(0); ++i)
    copy_row(from, from_rows.as<int32_t>()[i], to, to_rows.as<int32_t>()[i]);
}

void ReferenceBackend::concat_columns(ExecContext&, const Tensor& a, const Tensor& b, Tensor& out) {
  Tensor left = out.slice(1, 0, a.size(1)), right = out.slice(1, a.size(1), out.size(1));
  for (int64_t t = 0; t < out.size(0); ++t) {
    copy_row(a, t, left, t);
    copy_row(b, t, right, t);
  }
}

}  // namespace calandra

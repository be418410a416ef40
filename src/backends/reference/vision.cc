// Ops of vision towers (ops/vision.h).
#include <algorithm>
#include <cmath>
#include <numbers>
#include <string>

#include "backends/reference/reference.h"
#include "backends/reference/rows.h"

namespace calandra {

using namespace reference;

void ReferenceBackend::layer_norm(ExecContext&, const Tensor& x, const Tensor& weight, const Tensor& bias, float eps,
                                  Tensor& out) {
  const double D = static_cast<double>(x.size(1));
  for (int64_t p = 0; p < x.size(0); ++p) {
    std::vector<float> row = load_row(x, p);
    double mean = 0, variance = 0;
    for (const float value : row) mean += value / D;
    for (const float value : row) variance += (value - mean) * (value - mean) / D;
    const double scale = 1 / std::sqrt(variance + eps);
    for (size_t i = 0; i < row.size(); ++i)
      row[i] = static_cast<float>((row[i] - mean) * scale * weight.as<float>()[i] + bias.as<float>()[i]);
    store_row(row, out, p);
  }
}

void ReferenceBackend::gelu(ExecContext&, const Tensor& x, ops::GeluForm form, Tensor& out) {
  const auto y = [form](double v) {
    if (form == ops::GeluForm::kErf) return 0.5 * v * std::erfc(-v / std::numbers::sqrt2);
    const double u = std::sqrt(2 / std::numbers::pi) * (v + 0.044715 * v * v * v);
    return v * reference::sigmoid(2 * u);  // 1/2 + 1/2 tanh u
  };
  for (int64_t p = 0; p < x.size(0); ++p) {
    std::vector<float> row = load_row(x, p);
    for (float& value : row) value = static_cast<float>(y(value));
    store_row(row, out, p);
  }
}

void ReferenceBackend::weighted_rows(ExecContext&, const Tensor& table, const Tensor& index, const Tensor& weight,
                                     Tensor& out) {
  const int64_t J = index.size(1), D = table.size(1);
  for (int64_t p = 0; p < out.size(0); ++p) {
    std::vector<double> sum(static_cast<size_t>(D), 0.0);
    for (int64_t j = 0; j < J; ++j) {
      const int32_t n = index[p].as<int32_t>()[j];
      CHECK_MSG(n >= 0 && n < table.size(0), "row " + std::to_string(n));
      const std::vector<float> row = load_row(table, n);
      for (int64_t i = 0; i < D; ++i) sum[i] += double(weight[p].as<float>()[j]) * row[i];
    }
    store_row(std::vector<float>(sum.begin(), sum.end()), out, p);
  }
}

void ReferenceBackend::segment_attention(ExecContext& ctx, const Tensor& q, const Tensor& k, const Tensor& v,
                                         const Tensor& segment_start, float scale, Tensor& out) {
  if (ctx.dry_run) return;
  const int64_t H = q.size(1), Dh = q.size(2), S = segment_start.size(0) - 1;
  const int32_t* start = segment_start.as<int32_t>();
  for (int64_t s = 0; s < S; ++s) {
    std::vector<std::vector<float>> keys, values;
    for (int64_t p = start[s]; p < start[s + 1]; ++p) {
      keys.push_back(load_row(k, p));
      values.push_back(load_row(v, p));
    }
    for (int64_t p = start[s]; p < start[s + 1]; ++p) {
      std::vector<float> row = load_row(q, p);
      for (int64_t h = 0; h < H; ++h) {
        float* head = &row[h * Dh];
        std::vector<double> weights, y(static_cast<size_t>(Dh), 0.0);
        for (const std::vector<float>& key : keys) {
          double dot = 0;
          for (int64_t i = 0; i < Dh; ++i) dot += double(head[i]) * key[h * Dh + i];
          weights.push_back(dot * scale);
        }
        const double highest = *std::max_element(weights.begin(), weights.end());
        double sum = 0;
        for (double& w : weights) sum += w = std::exp(w - highest);
        for (size_t j = 0; j < values.size(); ++j)
          for (int64_t i = 0; i < Dh; ++i) y[i] += weights[j] / sum * values[j][h * Dh + i];
        for (int64_t i = 0; i < Dh; ++i) head[i] = static_cast<float>(y[i]);
      }
      store_row(row, out, p);
    }
  }
}

}  // namespace calandra

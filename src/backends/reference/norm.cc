// Normalisations (ops/norm.h).
#include <cmath>

#include "backends/reference/reference.h"
#include "backends/reference/rows.h"

namespace calandra {

using namespace reference;

namespace {

// 1 / sqrt(mean(x^2) + eps)
double inverse_rms(std::span<const float> x, double eps) {
  double sum = 0;
  for (float value : x) sum += double(value) * value;
  return 1 / std::sqrt(sum / static_cast<double>(x.size()) + eps);
}

// The weight of the head that begins at number `begin` of a row: [H, D] has one for each.
const float* weight_of_head(const Tensor& weight, size_t begin) {
  return weight.as<float>() + (weight.rank() == 2 ? begin : 0);
}

}  // namespace

void ReferenceBackend::rms_norm(ExecContext&, const Tensor& x, const Tensor& weight, float eps, float weight_offset,
                                Tensor& out) {
  const size_t D = static_cast<size_t>(x.size(-1));
  for (int64_t t = 0; t < x.size(0); ++t) {
    std::vector<float> row = load_row(x, t);
    for (size_t begin = 0; begin < row.size(); begin += D) {
      const std::span<float> head(&row[begin], D);
      const float* w = weight_of_head(weight, begin);
      const double scale = inverse_rms(head, eps);
      for (size_t i = 0; i < D; ++i) head[i] = static_cast<float>(head[i] * scale * (double(weight_offset) + w[i]));
    }
    store_row(row, out, t);
  }
}

void ReferenceBackend::gated_rms_norm(ExecContext&, const Tensor& x, const Tensor& z, const Tensor& weight, float eps,
                                      ops::GateActivation act, Tensor& out) {
  const size_t D = static_cast<size_t>(x.size(-1));
  for (int64_t t = 0; t < x.size(0); ++t) {
    std::vector<float> row = load_row(x, t);
    const std::vector<float> gate = load_row(z, t);
    for (size_t begin = 0; begin < row.size(); begin += D) {
      const std::span<float> head(&row[begin], D);
      const float* w = weight_of_head(weight, begin);
      const double scale = inverse_rms(head, eps);
      for (size_t i = 0; i < D; ++i) {
        const double g = gate[begin + i];
        const double open = act == ops::GateActivation::kSilu ? silu(g) : reference::sigmoid(g);
        head[i] = static_cast<float>(head[i] * scale * w[i] * open);
      }
    }
    store_row(row, out, t);
  }
}

}  // namespace calandra

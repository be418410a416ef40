// Mixture of experts (ops/moe.h).
#include <cmath>
#include <limits>

#include "backends/reference/reference.h"
#include "backends/reference/route_row.h"
#include "backends/reference/rows.h"

namespace calandra {

using namespace reference;

namespace {

constexpr float kLowest = -std::numeric_limits<float>::infinity();
constexpr float kOut = std::numeric_limits<float>::quiet_NaN();  // in a list of candidates: not one, or no longer

float or_lowest(float value) { return std::isnan(value) ? kLowest : value; }

// The index of the largest candidate, the lowest of equal ones, which then is none any more.
int64_t take_best(float* candidates, int64_t count) {
  int64_t best = -1;
  for (int64_t i = 0; i < count; ++i)
    if (!std::isnan(candidates[i]) && (best < 0 || candidates[i] > candidates[best])) best = i;
  CHECK_GE(best, 0);
  candidates[best] = kOut;
  return best;
}

void score_row(const float* logits, int64_t E, ops::RouterScore score, float* scores) {
  if (score == ops::RouterScore::kSigmoid) {
    for (int64_t e = 0; e < E; ++e) scores[e] = static_cast<float>(sigmoid(logits[e]));
    return;
  }
  double max = kLowest, sum = 0;
  for (int64_t e = 0; e < E; ++e)
    if (logits[e] > max) max = logits[e];
  for (int64_t e = 0; e < E; ++e) sum += std::exp(logits[e] - max);
  for (int64_t e = 0; e < E; ++e) scores[e] = static_cast<float>(std::exp(logits[e] - max) / sum);
}

// Of `size` choice scores: the largest, or the sum of the two largest.
float group_score(const float* choice, int64_t size, ops::RouterScore score) {
  float first = kLowest, second = kLowest;
  for (int64_t i = 0; i < size; ++i) {
    if (choice[i] > first)
      second = first, first = choice[i];
    else if (choice[i] > second)
      second = choice[i];
  }
  return score == ops::RouterScore::kSoftmax || size == 1 ? first : or_lowest(first + second);
}

}  // namespace

void reference::route_row(const float* logits, const float* bias, int64_t E, const ops::RouterOptions& options,
                          float* scratch, int32_t* experts, float* weights) {
  float *scores = scratch, *choice = scratch + E, *groups = scratch + 2 * E;
  score_row(logits, E, options.score, scores);
  for (int64_t e = 0; e < E; ++e) choice[e] = or_lowest(scores[e] + (bias != nullptr ? bias[e] : 0.0f));

  const int64_t size = E / options.n_group;
  for (int64_t g = 0; g < options.n_group; ++g) groups[g] = group_score(choice + g * size, size, options.score);
  for (int64_t i = 0; i < options.topk_group; ++i) take_best(groups, options.n_group);
  for (int64_t g = 0; g < options.n_group; ++g)
    if (!std::isnan(groups[g]))  // not taken
      for (int64_t e = g * size; e < (g + 1) * size; ++e) choice[e] = kOut;

  float sum = 0;
  for (int64_t j = 0; j < options.top_k; ++j) {
    const int64_t e = take_best(choice, E);
    experts[j] = static_cast<int32_t>(e);
    weights[j] = scores[e];
    sum += scores[e];
  }
  for (int64_t j = 0; j < options.top_k; ++j) {
    if (options.norm_topk_prob) weights[j] /= sum + 1e-20f;
    weights[j] *= options.routed_scaling_factor;
  }
}

void ReferenceBackend::route(ExecContext& ctx, const Tensor& logits, const Tensor& bias,
                             const ops::RouterOptions& options, ops::Routing& out) {
  if (ctx.dry_run) return;
  const int64_t E = logits.size(1), k = options.top_k;
  std::vector<float> scratch(static_cast<size_t>(route_scratch(E, options)));
  for (int64_t t = 0; t < logits.size(0); ++t)
    route_row(logits.as<float>() + t * logits.stride(0), bias ? bias.as<float>() : nullptr, E, options, scratch.data(),
              out.experts.as<int32_t>() + t * k, out.weights.as<float>() + t * k);
}

void ReferenceBackend::grouped_linear(ExecContext& ctx, const Tensor& x, const GroupedWeight& weight,
                                      const Tensor& experts, Tensor& out) {
  if (ctx.dry_run) return;
  for (int64_t t = 0; t < experts.size(0); ++t)
    for (int64_t j = 0; j < experts.size(1); ++j) {
      const int64_t e = experts.as<int32_t>()[t * experts.stride(0) + j];
      Tensor y = out[t].slice(0, j, j + 1);  // [1, N]
      if (e < 0 || e >= weight.E)
        zero_row(y, 0);
      else
        ReferenceBackend::linear(ctx, x.rank() == 3 ? x[t].slice(0, j, j + 1) : x.slice(0, t, t + 1),
                                 LinearPack{weight.expert(e)}, y);
    }
}

void ReferenceBackend::moe_combine(ExecContext&, const Tensor& y, const Tensor& weights, Tensor& out) {
  const int64_t D = y.size(2);
  for (int64_t t = 0; t < y.size(0); ++t) {
    const std::vector<float> rows = load_row(y, t);
    std::vector<float> result(static_cast<size_t>(D));
    for (int64_t i = 0; i < D; ++i) {
      double sum = 0;
      for (int64_t j = 0; j < y.size(1); ++j)
        sum += double(weights.as<float>()[t * weights.stride(0) + j]) * double(rows[j * D + i]);
      result[i] = static_cast<float>(sum);
    }
    store_row(result, out, t);
  }
}

}  // namespace calandra

#include "models/step_cost.h"

#include <cmath>

namespace calandra {
namespace {

double flops(double N, double K) { return 2 * N * K; }

}  // namespace

void StepCost::add(const PackedWeight& weight) {
  weight_bytes += static_cast<double>(weight.packed.bytes());
  flops_per_row += flops(static_cast<double>(weight.N), static_cast<double>(weight.K));
}

void StepCost::add(const LinearPack& pack) {
  for (const PackedWeight& part : pack.parts()) add(part);
}

void StepCost::add(const GroupedWeight& weight) {
  weight_bytes += static_cast<double>(weight.packed.bytes());
  flops_per_row += flops(static_cast<double>(weight.E * weight.N), static_cast<double>(weight.K));
}

void StepCost::add(const ops::SparseMoeWeights& w, const ops::RouterOptions& options) {
  add(w.router);
  if (w.shared_down.N > 0) {
    add(w.shared_gate_up);
    add(w.shared_down);
  }
  if (w.shared_gate.N > 0) add(w.shared_gate);
  experts = static_cast<double>(w.gate.E);
  experts_per_row = static_cast<double>(options.top_k);
  for (const GroupedWeight* group : {&w.gate, &w.up, &w.down}) {
    expert_bytes += static_cast<double>(group->packed.bytes()) / experts;
    flops_per_row += experts_per_row * flops(static_cast<double>(group->N), static_cast<double>(group->K));
  }
}

void StepCost::add_head(const PackedWeight& weight) {
  weight_bytes += static_cast<double>(weight.packed.bytes());
  flops_per_logit_row = flops(static_cast<double>(weight.N), static_cast<double>(weight.K));
}

double StepCost::weight_bytes_of(int64_t rows) const {
  if (experts == 0) return weight_bytes;
  const double touched = experts * (1 - std::pow(1 - experts_per_row / experts, static_cast<double>(rows)));
  return weight_bytes + touched * expert_bytes;
}

}  // namespace calandra

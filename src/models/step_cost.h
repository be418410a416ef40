// What a step must move and compute at least: the yardstick of benches.
#pragma once

#include "ops/moe.h"
#include "ops/weight.h"

namespace calandra {

struct StepCost {
  double weight_bytes = 0;           // read once per step, the head included, experts not
  double state_bytes = 0;            // of one sequence, read once and written once
  double kv_bytes_per_key = 0;       // read per row of a decode step and key seen
  double flops_per_row = 0;          // projections, recurrences and the chosen experts
  double flops_per_row_and_key = 0;  // attention
  double flops_per_logit_row = 0;    // output head
  // Mixtures of experts, all layers alike: bytes of one expert summed over the layers, and how many there are per
  // layer.
  double expert_bytes = 0;
  double experts = 0, experts_per_row = 0;

  void add(const PackedWeight& weight);
  void add(const LinearPack& pack);
  void add(const GroupedWeight& weight);  // all of it is read
  void add(const ops::SparseMoeWeights& weights, const ops::RouterOptions& options);
  void add_head(const PackedWeight& weight);

  // Bytes of weights that a step of `rows` rows reads. Of the experts: those that rows with independent, uniform
  // choices touch in the mean, E (1 - (1 - k / E)^rows) in each layer.
  double weight_bytes_of(int64_t rows) const;
};

}  // namespace calandra

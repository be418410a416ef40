// CausalLM: what the engine sees of a model.
#pragma once

#include <string>
#include <vector>

#include "cache/cache_spec.h"
#include "ops/batch.h"
#include "ops/cache_views.h"
#include "ops/exec_context.h"

namespace calandra {

// The caches of all layers for one forward.
struct ModelCaches {
  std::vector<LayerCache> layers;
  SlotCounts slots;
};

// What a step must move and compute at least: the yardstick of benches.
struct StepCost {
  double weight_bytes = 0;           // read once per step, the head included
  double state_bytes = 0;            // of one sequence, read once and written once
  double kv_bytes_per_key = 0;       // read per row of a decode step and key seen
  double flops_per_row = 0;          // projections and recurrences
  double flops_per_row_and_key = 0;  // attention
  double flops_per_logit_row = 0;    // output head
};

class CausalLM {
 public:
  virtual ~CausalLM() = default;

  virtual int64_t vocab_size() const = 0;  // rows of the output head
  virtual int64_t hidden_size() const = 0;
  virtual int64_t max_position_embeddings() const = 0;
  virtual DType dtype() const = 0;  // of activations and caches
  // One spec per decoder layer, in order.
  virtual std::vector<CacheSpec> cache_specs() const = 0;

  // Runs every row of the batch through all layers, writing caches and slots.
  //   returns [T, D] after the final norm, valid until the workspace is flipped or reset
  virtual Tensor forward(ExecContext& ctx, const Batch& batch, ModelCaches& caches) const = 0;
  // The output head.   hidden [N, D]   returns [N, V] f32
  virtual Tensor logits(ExecContext& ctx, const Tensor& hidden) const = 0;

  virtual StepCost step_cost() const = 0;
};

}  // namespace calandra

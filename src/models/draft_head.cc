#include "models/draft_head.h"

#include "ops/dense.h"

namespace calandra {

DraftHead::DraftHead(const CausalLM& model, const HeadPlace& place, std::span<const int32_t> ids)
    : model_(model), ids_(ids.begin(), ids.end()) {
  while (!ids_.empty() && ids_.back() >= place.shape.N.size) ids_.pop_back();
  if (!ids_.empty()) place.reader.rounded_rows(weight_, place.name, place.shape, ids_);
}

Tensor DraftHead::logits(ExecContext& ctx, const Tensor& hidden) const {
  return ids_.empty() ? model_.logits(ctx, hidden) : ops::linear(ctx, hidden, weight_, DType::kF32);
}

bool DraftHead::add_cost(StepCost& cost) const {
  if (!ids_.empty()) cost.add_head(weight_);
  return !ids_.empty();
}

}  // namespace calandra

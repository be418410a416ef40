// DraftHead: the output head of a drafter. Drafts never change a token, so it may know fewer tokens than the model's
// head, in 8 bits: the head is most of what a draft costs.
#pragma once

#include <span>
#include <string_view>
#include <vector>

#include "models/causal_lm.h"
#include "weights/weight_reader.h"

namespace calandra {

// Where the model's head is stored.
struct HeadPlace {
  WeightReader reader;
  std::string_view name;
  MatrixShape shape;
};

class DraftHead {
 public:
  // Rows `ids` of the model's head. Without ids it is the model's head itself.
  DraftHead(const CausalLM& model, const HeadPlace& place, std::span<const int32_t> ids);
  DraftHead(const DraftHead&) = delete;

  Tensor logits(ExecContext& ctx, const Tensor& hidden) const;  // [N, columns] f32
  std::span<const int32_t> token_ids() const { return ids_; }
  // False when it is the model's: then the model adds it.
  bool add_cost(StepCost& cost) const;

 private:
  const CausalLM& model_;
  std::vector<int32_t> ids_;
  PackedWeight weight_;
};

}  // namespace calandra

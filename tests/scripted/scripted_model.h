// ScriptedModel: a stand-in CausalLM that says what it was told to. A marker `[[name]]` in the conversation chooses a
// text of a list (the last marker counts); the answer is its tokens, then the end. Tokens of a sequence are kept in
// real pages, so that an answer is a function of what the engine gave; the drafter guesses right but at every fifth
// place.
#pragma once

#include <map>
#include <memory>
#include <string>
#include <vector>

#include "models/causal_lm.h"
#include "text/tokenizer.h"

namespace calandra::scripted {

struct Script {
  std::string text;
  bool endless = false;  // begins again at its end
};

class ScriptedModel final : public CausalLM {
 public:
  struct Shape {
    int64_t vocab_size, max_position_embeddings;
    int32_t end_token;
    bool drafter;
  };
  // `tokenizer` must outlive it. The text of conversations without a known marker is that of the name "".
  ScriptedModel(const Tokenizer& tokenizer, const std::map<std::string, Script>& scripts, const Shape& shape);
  ~ScriptedModel() override;

  int64_t vocab_size() const override { return shape_.vocab_size; }
  int64_t hidden_size() const override { return kHiddenSize; }
  int64_t max_position_embeddings() const override { return shape_.max_position_embeddings; }
  DType dtype() const override { return DType::kF32; }
  std::vector<CacheSpec> cache_specs() const override;
  Tensor forward(ExecContext& ctx, const Batch& batch, ModelCaches& caches) const override;
  Tensor logits(ExecContext& ctx, const Tensor& hidden) const override;
  StepCost step_cost() const override;
  const Drafter* drafter() const override { return drafter_.get(); }

 private:
  class ScriptedDrafter;
  class Reading;

  static constexpr int64_t kHiddenSize = 4;  // which script, and the place of the next token in it; two unused
  struct Answer {
    std::string name;
    std::vector<int32_t> ids;
    bool endless;
  };
  struct Place {
    int answer = 0;
    int64_t next = -1;  // -1: not in an answer, or in one that is not the script's
  };
  static void put(const Place& place, float* row);
  static Place get(const float* row);
  int32_t token_at(const Place& place) const;
  Place after(const Place& place, int32_t token) const;
  Tensor logits_of(ExecContext& ctx, const Tensor& hidden, bool drafts) const;

  const Tokenizer& tokenizer_;
  const Shape shape_;
  std::vector<Answer> answers_;                // the first is that without a name
  int32_t message_token_;                      // <|im_start|>
  std::vector<std::vector<int32_t>> headers_;  // what may stand between it and an answer
  size_t longest_header_ = 0;
  std::unique_ptr<Drafter> drafter_;
};

}  // namespace calandra::scripted

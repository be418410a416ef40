// LogitsProcessor: changes a row before its token is chosen, as a pure function of its parameters and the tokens before
// the row, drafts among them. So it works in verify rows, where the drafts are not certain yet.
#pragma once

#include <algorithm>
#include <cstdint>
#include <span>
#include <vector>

#include "ops/sampling.h"

namespace calandra {

// The tokens before a row: prompt, outputs, drafts. A view.
class Prefix {
 public:
  // The first `prompt_size` of `certain` are the prompt.
  Prefix(std::span<const int32_t> certain, int64_t prompt_size, std::span<const int32_t> drafts)
      : certain_(certain), prompt_size_(prompt_size), drafts_(drafts) {}

  int64_t size() const { return static_cast<int64_t>(certain_.size() + drafts_.size()); }
  int64_t prompt_size() const { return prompt_size_; }
  int64_t outputs() const { return size() - prompt_size_; }  // drafts count
  int32_t operator[](int64_t index) const {
    const auto certain = static_cast<int64_t>(certain_.size());
    return index < certain ? certain_[index] : drafts_[index - certain];
  }
  // prompt and outputs; then drafts
  std::span<const int32_t> certain() const { return certain_; }
  std::span<const int32_t> drafts() const { return drafts_; }

  // The outputs end with `ids`.
  bool outputs_end_with(std::span<const int32_t> ids) const;

 private:
  std::span<const int32_t> certain_;
  int64_t prompt_size_;
  std::span<const int32_t> drafts_;
};

// Edits of a row's lists while they are the last ones of the batch. No order of edits is different from another, but
// for the rounding of biases of one id.
class RowEdits {
 public:
  // Begins with the lists that the request gave; no allowed ids: all are.
  RowEdits(ops::SamplingBatch& batch, ops::SamplingRow& row, std::span<const int32_t> allowed_ids,
           std::span<const ops::TokenBias> biases);

  void forbid(int32_t id) { forbid(std::span(&id, 1)); }
  void forbid(std::span<const int32_t> ids);
  // Only these, ascending, stay allowed if they were. A row without an allowed id is reported as kAllMasked.
  void allow_only(std::span<const int32_t> ids);
  void add_bias(int32_t id, float bias);

 private:
  ops::SamplingBatch& batch_;
  ops::SamplingRow& row_;
};

class LogitsProcessor {
 public:
  virtual ~LogitsProcessor() = default;
  virtual void apply(const Prefix& prefix, RowEdits& edits) const = 0;
};

// Token sequences around the reasoning of a model. One that is empty: the model has none.
struct ThinkingTokens {
  std::vector<int32_t> start, end;
  bool empty() const { return start.empty() || end.empty(); }
  // Then the end would open the reasoning again, and no budget could close it.
  bool end_contains_start() const {
    return !empty() && std::search(end.begin(), end.end(), start.begin(), start.end()) != end.end();
  }
};

// Where the tokens read so far stand in the reasoning. It is open behind the last start sequence unless an end sequence
// followed, all of it behind the start.
struct ThinkingTrack {
  int64_t read = 0;                            // tokens
  int64_t begin = -1;                          // index behind the start sequence; -1: not open
  int32_t start_matched = 0, end_matched = 0;  // how much of each sequence the tokens end with

  void push(int32_t token, const ThinkingTokens& thinking);
};

// thinking_token_budget: once the open reasoning has `budget` tokens, those in the prompt counted, its end sequence is
// forced, token by token; 0 forces it at once. vLLM's rule, but where the reasoning ends with a beginning of the end
// sequence by itself, that is completed instead of written twice.
class ThinkingBudget : public LogitsProcessor {
 public:
  // `track` has read some of the prefix's certain tokens, or none, and reads the others; results do not depend on how
  // many they were. All must outlive the processor.
  ThinkingBudget(int64_t budget, const ThinkingTokens& thinking, ThinkingTrack& track)
      : budget_(budget), thinking_(thinking), track_(track) {}

  void apply(const Prefix& prefix, RowEdits& edits) const override;

 private:
  int64_t budget_;
  const ThinkingTokens& thinking_;
  ThinkingTrack& track_;
};

}  // namespace calandra

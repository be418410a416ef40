#include "tests/scripted/scripted_model.h"

#include <algorithm>

#include "base/error.h"
#include "tests/scripted/gate.h"

namespace calandra::scripted {
namespace {

constexpr float kCertain = 40;      // logit of the script's token; the others have 0
constexpr int64_t kSpoiltEach = 5;  // of so many drafts, the last one is wrong
constexpr size_t kLongestMarker = 64;

const int32_t* ints(const Tensor& tensor) { return tensor.as<int32_t>(); }

}  // namespace

// One sequence, read token by token.
class ScriptedModel::Reading {
 public:
  explicit Reading(const ScriptedModel& model) : model_(model) {}

  void read(int32_t token) {
    if (token == model_.message_token_) {
      in_messages_ = true;
      message_.clear();
      place_.next = -1;
      return;
    }
    if (message_.size() <= model_.longest_header_) message_.push_back(token);
    // A short beginning may go on as a longer one, which then counts.
    if (in_messages_ && begins_answer()) {
      place_ = {answer_, 0};
    } else if (place_.next >= 0) {
      place_ = model_.after(place_, token);
    } else {
      look_for_marker(token);
    }
  }

  Place place() const { return place_; }

 private:
  bool begins_answer() const {
    return std::find(model_.headers_.begin(), model_.headers_.end(), message_) != model_.headers_.end();
  }
  void look_for_marker(int32_t token) {
    tail_ += model_.tokenizer_.id_to_piece(token);
    if (tail_.size() > 2 * kLongestMarker) tail_.erase(0, tail_.size() - kLongestMarker);
    const size_t end = tail_.rfind("]]");
    const size_t begin = end == std::string::npos ? end : tail_.rfind("[[", end);
    if (begin == std::string::npos) return;
    const std::string name = tail_.substr(begin + 2, end - begin - 2);
    for (size_t i = 0; i < model_.answers_.size(); ++i)
      if (model_.answers_[i].name == name) answer_ = static_cast<int>(i);
    if (!in_messages_ && tail_.ends_with("]]")) place_ = {answer_, 0};  // a bare prompt is answered behind its marker
  }

  const ScriptedModel& model_;
  bool in_messages_ = false;
  std::vector<int32_t> message_;  // its tokens so far
  std::string tail_;
  int answer_ = 0;
  Place place_;
};

// Guesses what the script says next. Reads hidden rows alone; its pages are written by nobody.
class ScriptedModel::ScriptedDrafter final : public Drafter {
 public:
  explicit ScriptedDrafter(const ScriptedModel& model) : model_(model) {}

  int64_t num_layers() const override { return 1; }
  std::vector<CacheSpec> cache_specs() const override {
    return {CacheSpec{.paged = {{DType::kF32, 1, 1}}, .slotted = {}}};
  }
  std::span<const int32_t> token_ids() const override { return {}; }
  StepCost step_cost() const override { return model_.step_cost(); }
  Tensor forward(ExecContext& ctx, const Batch& batch, ModelCaches&, const Tensor& hidden, int64_t) const override {
    const int64_t T = batch.rows();
    const Tensor out = ctx.workspace.alloc(DType::kF32, {T, kHiddenSize});
    if (ctx.dry_run) return out;
    for (int64_t t = 0; t < T; ++t) {
      const Place place = get(hidden.as<float>() + t * hidden.stride(0));
      put(model_.after(place, ints(batch.token_ids)[t]), out.as<float>() + t * kHiddenSize);
    }
    return out;
  }
  Tensor logits(ExecContext& ctx, const Tensor& hidden) const override { return model_.logits_of(ctx, hidden, true); }

 private:
  const ScriptedModel& model_;
};

void ScriptedModel::put(const Place& place, float* row) {
  row[0] = static_cast<float>(place.answer);
  row[1] = static_cast<float>(place.next);
  row[2] = row[3] = 0;
}

ScriptedModel::Place ScriptedModel::get(const float* row) {
  return {static_cast<int>(row[0]), static_cast<int64_t>(row[1])};
}

ScriptedModel::ScriptedModel(const Tokenizer& tokenizer, const std::map<std::string, Script>& scripts,
                             const Shape& shape)
    : tokenizer_(tokenizer), shape_(shape) {
  if (!scripts.contains("")) throw LoadError("scripts: the text of the name \"\" is missing");
  for (const auto& [name, script] : scripts) answers_.push_back({name, tokenizer.encode(script.text), script.endless});
  const auto message = tokenizer.token_to_id("<|im_start|>");
  if (!message) throw LoadError("scripts: the model's tokenizer has no <|im_start|>");
  message_token_ = *message;
  for (const char* header : {"assistant\n<think>\n\n</think>\n\n", "assistant\n<think>\n", "assistant\n"}) {
    headers_.push_back(tokenizer.encode(header));
    longest_header_ = std::max(longest_header_, headers_.back().size());
  }
  if (shape.drafter) drafter_ = std::make_unique<ScriptedDrafter>(*this);
}

ScriptedModel::~ScriptedModel() = default;

std::vector<CacheSpec> ScriptedModel::cache_specs() const {
  return {CacheSpec{.paged = {{DType::kF32, 1, 1}}, .slotted = {}}};
}

StepCost ScriptedModel::step_cost() const {
  StepCost cost;
  cost.weight_bytes = cost.flops_per_row = 1e6;
  return cost;
}

Tensor ScriptedModel::forward(ExecContext& ctx, const Batch& batch, ModelCaches& caches) const {
  const int64_t T = batch.rows(), P = batch.block_table.size(1);
  const Tensor hidden = ctx.workspace.alloc(DType::kF32, {T, kHiddenSize});
  if (ctx.dry_run) return hidden;
  pass_gate("step");
  std::fill_n(hidden.as<float>(), hidden.numel(), 0.0f);
  const Tensor& pages = caches.layers[0].paged[0];  // [pages, 1, page tokens, 1]
  const int64_t page_tokens = pages.size(2);
  for (int64_t b = 0; b < batch.sequences(); ++b) {
    if (!ints(batch.active)[b]) continue;
    const int32_t* table = ints(batch.block_table) + b * P;
    const auto at = [&](int64_t index) -> float& {
      return pages.as<float>()[table[index / page_tokens] * page_tokens + index % page_tokens];
    };
    const int64_t begin = ints(batch.query_start)[b], end = ints(batch.query_start)[b + 1];
    for (int64_t t = begin; t < end; ++t) at(ints(batch.token_index)[t]) = static_cast<float>(ints(batch.token_ids)[t]);
    Reading reading(*this);
    int64_t next = 0;
    for (int64_t t = begin; t < end; ++t) {
      for (; next <= ints(batch.token_index)[t]; ++next) reading.read(static_cast<int32_t>(at(next)));
      put(reading.place(), hidden.as<float>() + t * kHiddenSize);
    }
  }
  return hidden;
}

Tensor ScriptedModel::logits(ExecContext& ctx, const Tensor& hidden) const { return logits_of(ctx, hidden, false); }

int32_t ScriptedModel::token_at(const Place& place) const {
  const std::vector<int32_t>& ids = answers_[static_cast<size_t>(place.answer)].ids;
  const auto next = static_cast<size_t>(std::max<int64_t>(0, place.next));
  if (place.next < 0 || ids.empty()) return shape_.end_token;
  if (answers_[static_cast<size_t>(place.answer)].endless) return ids[next % ids.size()];
  return next < ids.size() ? ids[next] : shape_.end_token;
}

ScriptedModel::Place ScriptedModel::after(const Place& place, int32_t token) const {
  return {place.answer, place.next >= 0 && token == token_at(place) ? place.next + 1 : -1};
}

Tensor ScriptedModel::logits_of(ExecContext& ctx, const Tensor& hidden, bool drafts) const {
  const int64_t N = hidden.size(0), V = shape_.vocab_size;
  const Tensor out = ctx.workspace.alloc(DType::kF32, {N, V});
  if (ctx.dry_run) return out;
  std::fill_n(out.as<float>(), out.numel(), 0.0f);
  for (int64_t n = 0; n < N; ++n) {
    const Place place = get(hidden.as<float>() + n * hidden.stride(0));
    const bool spoilt = drafts && place.next % kSpoiltEach == kSpoiltEach - 1;
    out.as<float>()[n * V + (spoilt ? 0 : token_at(place))] = kCertain;
  }
  return out;
}

}  // namespace calandra::scripted

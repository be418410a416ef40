// ModelRunner's launches whose tokens the host does not know yet.
#include <algorithm>

#include "engine/model_runner.h"

namespace calandra {
namespace {

Tensor all_sampled(const Buffer& sampled) {
  return sampled.tensor(DType::kI32, {ops::kSamplesAtOnce * ModelRunner::kLogitRows});
}

}  // namespace

// Tokens tokens_at_ to the rows token_rows_ of a batch; empties the lists.
void ModelRunner::put_listed_tokens(const Batch& batch) {
  if (tokens_at_.empty()) return;
  const auto count = static_cast<int64_t>(tokens_at_.size());
  auto* lists = uploads_->take<int32_t>(2 * count);
  std::copy(tokens_at_.begin(), tokens_at_.end(), lists);
  std::copy(token_rows_.begin(), token_rows_.end(), lists + count);
  tokens_at_.clear();
  token_rows_.clear();
  ExecContext ctx = context(nullptr);
  CHECK_LE(2 * count * sizeof(int32_t), sources_.bytes());
  uploads_->send(ctx, sources_.data());
  const Tensor both = sources_.tensor(DType::kI32, {2 * count});
  ops::put_tokens(ctx, all_sampled(sampled_), both.slice(0, 0, count), both.slice(0, count, 2 * count), batch);
}

Tensor ModelRunner::forward_ahead(std::span<const AheadPart> parts) {
  static constexpr int32_t kUnknown = 0;
  rows_.clear();
  for (const AheadPart& part : parts) {
    const Sequence& s = *part.sequence;
    CHECK_EQ(s.computed, s.size());
    CHECK_EQ(s.source, s.slot);
    CHECK_EQ(s.accepted, 0);
    rows_.push_back({s, s.computed, {&kUnknown, 1}});
  }
  const Step step = build(rows_, false);

  const int64_t B = step.batch.sequences();  // the last may be there to fill it up
  int64_t total = 2 * B + 1;
  for (const AheadPart& part : parts) total += std::ssize(part.stop_ids);
  CHECK_LE(total * sizeof(int32_t), sources_.bytes());
  auto* const row = uploads_->take<int32_t>(total);
  int32_t *begin = row + B, *ids = begin + B + 1;
  int32_t count = 0;
  for (int64_t b = 0; b < B; ++b) {
    begin[b] = count;
    row[b] = b < std::ssize(parts) ? parts[b].sampled : -1;
    if (row[b] < 0) continue;
    std::copy(parts[b].stop_ids.begin(), parts[b].stop_ids.end(), ids + count);
    count += static_cast<int32_t>(parts[b].stop_ids.size());
  }
  begin[B] = count;
  ExecContext ctx = context(nullptr);
  uploads_->send(ctx, sources_.data());
  const Tensor lists = sources_.tensor(DType::kI32, {total});
  ops::next_tokens(ctx, all_sampled(sampled_),
                   {lists.slice(0, 0, B), lists.slice(0, B, 2 * B + 1), lists.slice(0, 2 * B + 1, total)}, step.batch);

  const Tensor hidden = run_forward(step, nullptr);
  for (const AheadPart& part : parts) {
    Sequence& s = *part.sequence;
    s.ring_begin = ++s.computed;  // no hidden row is kept: there is no drafter that would read it
  }
  return hidden;
}

bool ModelRunner::start_sample(const Tensor& logits, const ops::SamplingBatch& batch, int flight) {
  const auto rows = static_cast<int64_t>(batch.rows.size());
  if (sampled_.bytes() == 0 || rows > kLogitRows) return false;
  ExecContext ctx = context(nullptr);
  const int64_t begin = sampled_at(flight, 0);
  Tensor tokens = all_sampled(sampled_).slice(0, begin, begin + rows);
  return ops::start_sample(ctx, logits, batch, flight, tokens);
}

void ModelRunner::finish_sample(const ops::SamplingBatch& batch, int flight, ops::SamplingResult& result) {
  ExecContext ctx = context(nullptr);
  ops::finish_sample(ctx, batch, flight, result);
}

}  // namespace calandra

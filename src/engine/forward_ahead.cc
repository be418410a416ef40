// ModelRunner's launches whose tokens the host does not know yet.
#include <algorithm>
#include <limits>

#include "engine/model_runner.h"

namespace calandra {
namespace {

Tensor all_sampled(const Buffer& sampled) {
  return sampled.tensor(DType::kI32, {(ops::kSamplesAtOnce + 1) * ModelRunner::kLogitRows});
}

}  // namespace

// A batch whose first `count` sequences accept_ahead has verified; or one whose tokens alone the host did not know, if
// any.
void ModelRunner::complete_batch(const Batch& batch, int64_t count) {
  if (!batch.sampled_at) return;
  ExecContext ctx = context(nullptr);
  ops::complete_batch(ctx, all_sampled(sampled_), verified(count), batch);
}

ops::VerifiedTokens ModelRunner::verified(int64_t count) const {
  const ops::VerifiedTokens& v = verified_;
  return {v.accepted.slice(0, 0, count), v.active.slice(0, 0, count), v.last.slice(0, 0, count),
          v.entry_row.slice(0, 0, count)};
}

void ModelRunner::accept_ahead(std::span<const VerifiedPart> parts) {
  const auto B = static_cast<int64_t>(parts.size());
  int64_t D = 0, S = 0;
  for (const VerifiedPart& part : parts) {
    D += std::ssize(part.drafts);
    S += std::ssize(part.stop_ids);
  }
  const int64_t total = 6 * B + 2 + D + S;
  CHECK_LE(total * sizeof(int32_t), sources_.bytes());
  auto* const memory = uploads_->take<int32_t>(total);
  const Tensor lists = sources_.tensor(DType::kI32, {total});
  int64_t used = 0;
  // Memory for `count` values, and where the device has them.
  const auto take = [&](int64_t count, Tensor& on_device) {
    on_device = lists.slice(0, used, used + count);
    used += count;
    return memory + used - count;
  };
  ops::VerifiedRows rows;
  int32_t *row = take(B, rows.row), *most = take(B, rows.most), *slot = take(B, rows.slot),
          *entry_row = take(B, rows.entry_row), *draft_begin = take(B + 1, rows.draft_begin),
          *stop_begin = take(B + 1, rows.stop_begin), *drafts = take(D, rows.drafts),
          *stop_ids = take(S, rows.stop_ids);
  draft_begin[0] = stop_begin[0] = 0;
  for (int64_t b = 0; b < B; ++b) {
    const VerifiedPart& part = parts[b];
    CHECK_EQ(part.sequence->source, part.sequence->slot);
    row[b] = part.sampled;
    most[b] = static_cast<int32_t>(std::min<int64_t>(part.most, std::numeric_limits<int32_t>::max()));
    slot[b] = part.sequence->slot;
    entry_row[b] = static_cast<int32_t>(part.entry_row);
    std::copy(part.drafts.begin(), part.drafts.end(), drafts + draft_begin[b]);
    std::copy(part.stop_ids.begin(), part.stop_ids.end(), stop_ids + stop_begin[b]);
    draft_begin[b + 1] = draft_begin[b] + static_cast<int32_t>(part.drafts.size());
    stop_begin[b + 1] = stop_begin[b] + static_cast<int32_t>(part.stop_ids.size());
  }
  ExecContext ctx = context(nullptr);
  uploads_->send(ctx, sources_.data());
  ops::VerifiedTokens out = verified(B);
  ops::accept_drafts(ctx, all_sampled(sampled_), rows, caches_.slots, out);
}

Tensor ModelRunner::forward_ahead(std::span<const AheadPart> parts) {
  static constexpr int32_t kUnknown = 0;
  rows_.clear();
  tokens_at_.clear();
  for (size_t b = 0; b < parts.size(); ++b) {
    const AheadPart& part = parts[b];
    const Sequence& s = *part.sequence;
    CHECK_EQ(s.computed, s.size());
    CHECK_EQ(s.source, s.slot);
    const size_t first = tokens_at_.size();
    tokens_at_.push_back(sampled_at(ops::kSamplesAtOnce, static_cast<int64_t>(b)));
    tokens_at_.insert(tokens_at_.end(), part.drafts_at.begin(), part.drafts_at.end());
    rows_.push_back({s,
                     s.computed,
                     {&kUnknown, 1},
                     std::span<const int32_t>(unknown_).first(part.drafts_at.size()),
                     {},
                     std::span<const int32_t>(tokens_at_).subspan(first),  // reserved for the largest step
                     part.verified});
  }
  const Step step = build(rows_, false);
  complete_batch(step.batch, std::ssize(parts));
  ++steps_;
  const Tensor hidden = run_forward(step, nullptr);
  for (const AheadPart& part : parts) ++part.sequence->computed;
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

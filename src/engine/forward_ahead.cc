// ModelRunner's launches whose tokens the host does not know yet.
#include <algorithm>
#include <cstring>
#include <limits>

#include "engine/model_runner.h"

namespace calandra {

Tensor ModelRunner::all_sampled() const {
  return sampled_.tensor(DType::kI32, {(ops::kSamplesAtOnce + 1) * kLogitRows});
}

void ModelRunner::accept_ahead(std::span<const VerifiedPart> parts) {
  constexpr size_t kRowInts = sizeof(ops::VerifiedRow) / sizeof(int32_t);
  CHECK(to_accept_.lists.empty());
  to_accept_.sequences = static_cast<int32_t>(parts.size());
  std::vector<int32_t>& lists = to_accept_.lists;
  lists.resize(parts.size() * kRowInts);
  const auto append = [&](std::span<const int32_t> ids, int32_t& begin, int32_t& end) {
    begin = static_cast<int32_t>(lists.size());
    lists.insert(lists.end(), ids.begin(), ids.end());
    end = static_cast<int32_t>(lists.size());
  };
  for (size_t b = 0; b < parts.size(); ++b) {
    const VerifiedPart& part = parts[b];
    CHECK_EQ(part.sequence->source, part.sequence->slot);
    ops::VerifiedRow row{};
    row.row = part.sampled;
    append(part.drafts, row.drafts_begin, row.drafts_end);
    append(part.stop_ids, row.stop_ids_begin, row.stop_ids_end);
    row.most = static_cast<int32_t>(std::min<int64_t>(part.most, std::numeric_limits<int32_t>::max()));
    row.slot = part.sequence->slot;
    row.entry_row = static_cast<int32_t>(part.entry_row);
    std::memcpy(lists.data() + b * kRowInts, &row, sizeof row);
  }
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
  Tensor tokens = all_sampled().slice(0, begin, begin + rows);
  return ops::start_sample(ctx, logits, batch, flight, tokens);
}

void ModelRunner::finish_sample(const ops::SamplingBatch& batch, int flight, ops::SamplingResult& result) {
  ExecContext ctx = context(nullptr);
  ops::finish_sample(ctx, batch, flight, result);
}

}  // namespace calandra

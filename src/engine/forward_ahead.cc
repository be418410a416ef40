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

ops::VerifiedRows ModelRunner::rows_of(const Verified& sizes, int32_t* lists, Device device) {
  const auto take = [&](int64_t count) {
    const Tensor list(lists, DType::kI32, {count}, device);
    lists += count;
    return list;
  };
  const int64_t B = sizes.sequences;
  ops::VerifiedRows rows;
  rows.row = take(B);
  rows.most = take(B);
  rows.slot = take(B);
  rows.entry_row = take(B);
  rows.draft_begin = take(B + 1);
  rows.stop_begin = take(B + 1);
  rows.drafts = take(sizes.drafts);
  rows.stop_ids = take(sizes.stop_ids);
  return rows;
}

void ModelRunner::accept_ahead(std::span<const VerifiedPart> parts) {
  CHECK(to_accept_.lists.empty());
  const auto B = static_cast<int64_t>(parts.size());
  int64_t D = 0, S = 0;
  for (const VerifiedPart& part : parts) {
    D += std::ssize(part.drafts);
    S += std::ssize(part.stop_ids);
  }
  to_accept_.sequences = B;
  to_accept_.drafts = D;
  to_accept_.stop_ids = S;
  to_accept_.lists.resize(6 * B + 2 + D + S);
  const ops::VerifiedRows rows = rows_of(to_accept_, to_accept_.lists.data(), Device{});
  auto *draft_begin = rows.draft_begin.as<int32_t>(), *stop_begin = rows.stop_begin.as<int32_t>();
  draft_begin[0] = stop_begin[0] = 0;
  for (int64_t b = 0; b < B; ++b) {
    const VerifiedPart& part = parts[b];
    CHECK_EQ(part.sequence->source, part.sequence->slot);
    rows.row.as<int32_t>()[b] = part.sampled;
    rows.most.as<int32_t>()[b] =
        static_cast<int32_t>(std::min<int64_t>(part.most, std::numeric_limits<int32_t>::max()));
    rows.slot.as<int32_t>()[b] = part.sequence->slot;
    rows.entry_row.as<int32_t>()[b] = static_cast<int32_t>(part.entry_row);
    std::copy(part.drafts.begin(), part.drafts.end(), rows.drafts.as<int32_t>() + draft_begin[b]);
    std::copy(part.stop_ids.begin(), part.stop_ids.end(), rows.stop_ids.as<int32_t>() + stop_begin[b]);
    draft_begin[b + 1] = draft_begin[b] + static_cast<int32_t>(part.drafts.size());
    stop_begin[b + 1] = stop_begin[b] + static_cast<int32_t>(part.stop_ids.size());
  }
}

// What accept_ahead listed, if anything, where the device has it now.
void ModelRunner::accept_listed(int32_t* lists) {
  if (to_accept_.lists.empty()) return;
  ExecContext ctx = context(nullptr);
  ops::VerifiedTokens out = verified(to_accept_.sequences);
  ops::accept_drafts(ctx, all_sampled(sampled_), rows_of(to_accept_, lists, backend_.device()), caches_.slots, out);
  to_accept_.lists.clear();
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

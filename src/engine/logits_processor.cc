#include "engine/logits_processor.h"

#include <algorithm>

#include "base/check.h"

namespace calandra {
namespace {

// Stands for "no id is allowed", as an empty list means all: it names no logit.
constexpr int32_t kNoToken = -1;

// The longest beginning of `sequence` that the tokens end with, when they ended with `matched` of it before `token`.
int32_t match(const std::vector<int32_t>& sequence, int32_t matched, int32_t token) {
  const auto size = static_cast<int32_t>(sequence.size());
  for (int32_t k = std::min(matched + 1, size); k > 0; --k) {
    const auto end = sequence.begin() + k - 1;
    if (*end == token && std::equal(sequence.begin(), end, sequence.begin() + matched - (k - 1))) return k;
  }
  return 0;
}

}  // namespace

bool Prefix::outputs_end_with(std::span<const int32_t> ids) const {
  const auto count = static_cast<int64_t>(ids.size());
  if (count > outputs()) return false;
  for (int64_t i = 0; i < count; ++i)
    if ((*this)[size() - count + i] != ids[i]) return false;
  return true;
}

RowEdits::RowEdits(ops::SamplingBatch& batch, ops::SamplingRow& row, std::span<const int32_t> allowed_ids,
                   std::span<const ops::TokenBias> biases)
    : batch_(batch), row_(row) {
  row.allowed.begin = static_cast<int32_t>(batch.ids.size());
  batch.ids.insert(batch.ids.end(), allowed_ids.begin(), allowed_ids.end());
  row.allowed.end = static_cast<int32_t>(batch.ids.size());
  row.forbidden = {row.allowed.end, row.allowed.end};
  row.bias.begin = static_cast<int32_t>(batch.bias.size());
  batch.bias.insert(batch.bias.end(), biases.begin(), biases.end());
  row.bias.end = static_cast<int32_t>(batch.bias.size());
}

void RowEdits::forbid(std::span<const int32_t> ids) {
  batch_.ids.insert(batch_.ids.end(), ids.begin(), ids.end());
  row_.forbidden.end = static_cast<int32_t>(batch_.ids.size());
}

void RowEdits::allow_only(std::span<const int32_t> ids) {
  std::vector<int32_t>& list = batch_.ids;
  const auto begin = list.begin() + row_.allowed.begin, end = list.begin() + row_.allowed.end;
  if (row_.allowed.empty()) {
    list.insert(end, ids.begin(), ids.end());
  } else {
    const auto refused = [&](int32_t id) { return !std::binary_search(ids.begin(), ids.end(), id); };
    list.erase(std::remove_if(begin, end, refused), end);
  }
  const int32_t forbidden = row_.forbidden.size();
  row_.allowed.end = static_cast<int32_t>(list.size()) - forbidden;
  if (row_.allowed.empty()) list.insert(list.begin() + row_.allowed.end++, kNoToken);
  row_.forbidden = {row_.allowed.end, row_.allowed.end + forbidden};
}

void RowEdits::add_bias(int32_t id, float bias) {
  const auto begin = batch_.bias.begin() + row_.bias.begin;
  const auto at = std::find_if(begin, batch_.bias.end(), [id](const ops::TokenBias& b) { return b.id == id; });
  if (at != batch_.bias.end()) {
    at->bias += bias;
    return;
  }
  batch_.bias.push_back({id, bias});
  ++row_.bias.end;
}

void ThinkingTrack::push(int32_t token, const ThinkingTokens& thinking) {
  ++read;
  start_matched = match(thinking.start, start_matched, token);
  if (begin >= 0) {
    end_matched = match(thinking.end, end_matched, token);
    if (end_matched == static_cast<int32_t>(thinking.end.size())) {
      begin = -1;
      return;
    }
  }
  if (start_matched == static_cast<int32_t>(thinking.start.size())) {
    begin = read;
    end_matched = 0;
  }
}

void ThinkingBudget::apply(const Prefix& prefix, RowEdits& edits) const {
  const std::span<const int32_t> certain = prefix.certain();
  CHECK_LE(track_.read, static_cast<int64_t>(certain.size()));
  for (const int32_t token : certain.subspan(track_.read)) track_.push(token, thinking_);
  ThinkingTrack track = track_;
  for (const int32_t token : prefix.drafts()) track.push(token, thinking_);
  if (track.begin < 0 || prefix.size() - track.begin < budget_) return;
  edits.allow_only(std::span(&thinking_.end[track.end_matched], 1));
}

}  // namespace calandra

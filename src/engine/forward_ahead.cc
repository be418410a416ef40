// ModelRunner's steps whose tokens the host does not know yet.
#include <algorithm>

#include "engine/model_runner.h"

namespace calandra {

Tensor ModelRunner::forward_ahead(std::span<const AheadPart> parts, const Tensor& sampled) {
  static constexpr int32_t kUnknown = 0;
  rows_.clear();
  for (const AheadPart& part : parts) {
    const Sequence& s = *part.sequence;
    CHECK_EQ(s.computed, s.size());
    CHECK_EQ(s.source, s.slot);
    CHECK_EQ(s.accepted, 0);
    rows_.push_back({s, s.computed, {&kUnknown, 1}});
  }
  const Step step = build(rows_, false);  // waits until earlier uploads are done

  auto* host = static_cast<int32_t*>(host_sources_.data());
  const auto B = static_cast<int64_t>(parts.size());
  int32_t *row = host, *begin = host + B, *ids = begin + B + 1;
  int32_t count = 0;
  for (int64_t b = 0; b < B; ++b) {
    CHECK_LE(count + std::ssize(parts[b].stop_ids), limits_.max_num_seqs * kStopIds);
    row[b] = parts[b].sampled;
    begin[b] = count;
    std::copy(parts[b].stop_ids.begin(), parts[b].stop_ids.end(), ids + count);
    count += static_cast<int32_t>(parts[b].stop_ids.size());
  }
  begin[B] = count;
  ExecContext ctx = context(nullptr);
  const int64_t total = 2 * B + 1 + count;
  backend_.upload(ctx, sources_.data(), host, total * sizeof(int32_t));
  const Tensor lists = sources_.tensor(DType::kI32, {total});
  ops::next_tokens(ctx, sampled, {lists.slice(0, 0, B), lists.slice(0, B, 2 * B + 1), lists.slice(0, 2 * B + 1, total)},
                   step.batch);

  const Tensor hidden = run_forward(step, nullptr);
  for (const AheadPart& part : parts) {
    Sequence& s = *part.sequence;
    s.ring_begin = ++s.computed;  // no hidden row is kept: there is no drafter that would read it
  }
  return hidden;
}

Tensor ModelRunner::start_sample(const Tensor& logits, const ops::SamplingBatch& batch) {
  ExecContext ctx = context(nullptr);
  return ops::start_sample(ctx, logits, batch);
}

void ModelRunner::finish_sample(const ops::SamplingBatch& batch, ops::SamplingResult& result) {
  ExecContext ctx = context(nullptr);
  ops::finish_sample(ctx, batch, result);
}

}  // namespace calandra

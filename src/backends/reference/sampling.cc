#include "ops/sampling.h"

#include <algorithm>

#include "backends/reference/reference.h"
#include "backends/reference/sampling_row.h"

namespace calandra {

void ReferenceBackend::sample(ExecContext&, const Tensor& logits, const ops::SamplingBatch& batch,
                              ops::SamplingResult& out) {
  CHECK_EQ(out.rows.size(), batch.rows.size());
  if (out.scratch.empty()) out.scratch.resize(1);
  const float* l = logits.as<float>();
  for (size_t r = 0; r < batch.rows.size(); ++r)
    reference::sample_row(l + batch.rows[r].logit_row * logits.stride(0), logits.size(1), batch, batch.rows[r],
                          out.scratch[0], out.rows[r]);
}

void ReferenceBackend::accept_drafts(ExecContext&, const Tensor& sampled, const ops::VerifiedRows& rows,
                                     SlotCounts& slots, ops::VerifiedTokens& out) {
  const auto ints = [](const Tensor& tensor) { return tensor.as<int32_t>(); };
  const int32_t *stop_begin = ints(rows.stop_begin), *stop_ids = ints(rows.stop_ids);
  for (int64_t b = 0; b < rows.row.size(0); ++b) {
    const int32_t* tokens = ints(sampled) + ints(rows.row)[b];
    const int32_t* drafts = ints(rows.drafts) + ints(rows.draft_begin)[b];
    const int32_t count = ints(rows.draft_begin)[b + 1] - ints(rows.draft_begin)[b];
    const auto ends = [&](int32_t token) {
      return token < 0 ||
             std::find(stop_ids + stop_begin[b], stop_ids + stop_begin[b + 1], token) != stop_ids + stop_begin[b + 1];
    };
    int32_t accepted = 0;
    while (accepted < count && !ends(tokens[accepted]) && tokens[accepted] == drafts[accepted]) ++accepted;
    const bool active = !ends(tokens[accepted]) && accepted < ints(rows.most)[b];
    const int32_t last = active ? tokens[accepted] : -1;
    if (tokens[accepted] < 0) accepted = std::max(0, accepted - 1);
    ints(out.accepted)[b] = ints(slots.accepted)[ints(rows.slot)[b]] = accepted;
    ints(out.active)[b] = active;
    ints(out.last)[b] = last;
    ints(out.entry_row)[b] = ints(rows.entry_row)[b] + accepted;
  }
}

void ReferenceBackend::complete_batch(ExecContext&, const Tensor& sampled, const ops::VerifiedTokens& verified,
                                      const Batch& batch) {
  const int32_t* accepted = verified.accepted.as<int32_t>();
  const int64_t T = batch.rows(), B = verified.accepted.size(0);
  for (int64_t t = 0; t < T; ++t)
    if (const int32_t at = batch.sampled_at.as<int32_t>()[t]; at >= 0)
      batch.token_ids.as<int32_t>()[t] = std::max(0, sampled.as<int32_t>()[at]);
  for (int64_t t = 0; t < T && batch.row_sequence.as<int32_t>()[t] < B; ++t) {
    const int32_t by = accepted[batch.row_sequence.as<int32_t>()[t]];
    batch.token_index.as<int32_t>()[t] += by;
    for (int64_t axis = 0; axis < 3; ++axis) {
      batch.positions.as<int32_t>()[axis * T + t] += by;
      if (batch.mtp.positions) batch.mtp.positions.as<int32_t>()[axis * T + t] += by;
    }
  }
  for (int64_t b = 0; b < B; ++b) {
    batch.seq_len.as<int32_t>()[b] += accepted[b];
    batch.active.as<int32_t>()[b] = verified.active.as<int32_t>()[b];
  }
}

}  // namespace calandra

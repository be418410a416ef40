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

void ReferenceBackend::complete_batch(ExecContext&, const Tensor& sampled, const Batch& batch, SlotCounts& slots,
                                      ops::VerifiedTokens& verified) {
  const auto ints = [](const Tensor& tensor) { return tensor.as<int32_t>(); };
  const int32_t *lists = ints(batch.ahead.lists), listed = ints(batch.ahead.counts)[0];
  for (int32_t b = 0; b < listed; ++b) {
    const auto& row = reinterpret_cast<const ops::VerifiedRow*>(lists)[b];
    const int32_t *tokens = ints(sampled) + row.row, *drafts = lists + row.drafts_begin;
    const int32_t *stop_ids = lists + row.stop_ids_begin, *stop_ids_end = lists + row.stop_ids_end;
    const auto ends = [&](int32_t token) {
      return token < 0 || std::find(stop_ids, stop_ids_end, token) != stop_ids_end;
    };
    const int32_t count = row.drafts_end - row.drafts_begin;
    int32_t accepted = 0;
    while (accepted < count && !ends(tokens[accepted]) && tokens[accepted] == drafts[accepted]) ++accepted;
    const bool active = !ends(tokens[accepted]) && accepted < row.most;
    const int32_t last = active ? tokens[accepted] : -1;
    if (tokens[accepted] < 0) accepted = std::max(0, accepted - 1);
    ints(verified.accepted)[b] = ints(slots.accepted)[row.slot] = accepted;
    ints(verified.active)[b] = active;
    ints(verified.last)[b] = last;
    ints(verified.entry_row)[b] = row.entry_row + accepted;
  }
  const int64_t T = batch.rows(), moved = ints(batch.ahead.counts)[1];
  for (int64_t t = 0; t < T; ++t) {
    if (const int32_t at = ints(batch.ahead.sampled_at)[t]; at >= 0)
      ints(batch.token_ids)[t] = std::max(0, ints(sampled)[at]);
    const int32_t b = ints(batch.row_sequence)[t];
    if (b >= moved) continue;
    const int32_t by = ints(verified.accepted)[b];
    ints(batch.token_index)[t] += by;
    for (int64_t axis = 0; axis < 3; ++axis) {
      ints(batch.positions)[axis * T + t] += by;
      if (batch.mtp.positions) ints(batch.mtp.positions)[axis * T + t] += by;
    }
  }
  for (int64_t b = 0; b < moved; ++b) {
    ints(batch.seq_len)[b] += ints(verified.accepted)[b];
    ints(batch.active)[b] = ints(verified.active)[b];
  }
}

}  // namespace calandra

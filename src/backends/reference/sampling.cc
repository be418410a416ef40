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

void ReferenceBackend::put_tokens(ExecContext&, const Tensor& sampled, const Tensor& from, const Tensor& to,
                                  const Batch& batch) {
  for (int64_t i = 0; i < from.size(0); ++i)
    batch.token_ids.as<int32_t>()[to.as<int32_t>()[i]] = std::max(0, sampled.as<int32_t>()[from.as<int32_t>()[i]]);
}

void ReferenceBackend::next_tokens(ExecContext&, const Tensor& sampled, const ops::SampledSource& source,
                                   const Batch& batch) {
  const int32_t *begin = source.stop_begin.as<int32_t>(), *ids = source.stop_ids.as<int32_t>();
  for (int64_t b = 0; b < batch.sequences(); ++b) {
    const int32_t row = source.row.as<int32_t>()[b], token = row < 0 ? -1 : sampled.as<int32_t>()[row];
    const bool goes_on = token >= 0 && std::find(ids + begin[b], ids + begin[b + 1], token) == ids + begin[b + 1];
    batch.token_ids.as<int32_t>()[b] = goes_on ? token : 0;
    batch.active.as<int32_t>()[b] = goes_on;
  }
}

}  // namespace calandra

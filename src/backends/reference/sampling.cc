#include "ops/sampling.h"

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

}  // namespace calandra

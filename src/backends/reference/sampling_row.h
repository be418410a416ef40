// One sampling row, start to end; the contract stands in ops/sampling.h. Every CPU backend uses it, on as many threads
// as it likes.
#pragma once

#include "ops/sampling.h"

namespace calandra::reference {

//   logits [V], contiguous, not changed
void sample_row(const float* logits, int64_t V, const ops::SamplingBatch& batch, const ops::SamplingRow& row,
                ops::SamplingScratch& scratch, ops::SampledRow& out);

}  // namespace calandra::reference

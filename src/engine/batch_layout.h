// The int32 block that carries a Batch to the device in one copy.
#pragma once

#include "ops/batch.h"

namespace calandra {

// Sizes of a batch that fix the place of every tensor.
struct BatchSizes {
  int64_t rows = 0, sequences = 0, segments = 0, pages_per_sequence = 0;
  int64_t image_rows = 0;
  bool mtp = false;    // a pass of the MTP layers: mtp.positions and mtp.first_key
  bool ahead = false;  // the host may not know all
  int64_t lists = 0;   // of ahead
};

// Number of int32 for a batch of these sizes.
int64_t batch_ints(const BatchSizes& sizes);
// A Batch whose tensors lie in `block` (host or device), every one at a fixed place. logit and sampling rows are left
// out: they are given to ModelRunner::logits and sample directly.
Batch lay_out(int32_t* block, const BatchSizes& sizes, Device device);

}  // namespace calandra

// Checks of the parts of a Batch that a family of ops reads.
#pragma once

#include "ops/batch.h"

namespace calandra {

// What the recurrences read: segments and slots, for T rows.
void check_segments(const char* op, const Batch& batch, int64_t T);
// What attention and its stores read: the place of each row in the pages.
void check_paged_batch(const char* op, const Batch& batch, int64_t T);

}  // namespace calandra

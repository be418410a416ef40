#include "ops/batch_checks.h"

#include "ops/shapes.h"

namespace calandra {

void check_segments(const char* op, const Batch& batch, int64_t T) {
  const Dims d = match_shapes(op, {{batch.active, "B", DType::kI32},
                                   {batch.draft_count, "B", DType::kI32},
                                   {batch.query_start, "Q", DType::kI32},
                                   {batch.segment_start, "E", DType::kI32},
                                   {batch.segment_sequence, "S", DType::kI32},
                                   {batch.state_src, "S", DType::kI32},
                                   {batch.state_dst, "S", DType::kI32}});
  CHECK_EQ(d["Q"], d["B"] + 1);
  CHECK_EQ(d["E"], d["S"] + 1);
  CHECK_EQ(batch.rows(), T);
}

void check_paged_batch(const char* op, const Batch& batch, int64_t T) {
  const Dims d = match_shapes(op, {{batch.token_index, "T", DType::kI32},
                                   {batch.row_sequence, "T", DType::kI32},
                                   {batch.active, "B", DType::kI32},
                                   {batch.block_table, "B P", DType::kI32}});
  CHECK_EQ(d["T"], T);
}

}  // namespace calandra

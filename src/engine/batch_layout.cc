#include "engine/batch_layout.h"

namespace calandra {
namespace {

constexpr int64_t kAlign = 16;  // int32: every tensor begins on a cache line

struct Cursor {
  int32_t* block;
  Device device;
  int64_t used = 0;

  Tensor take(Shape shape) {
    const Tensor tensor(block == nullptr ? nullptr : block + used, DType::kI32, shape, device);
    used += (shape.numel() + kAlign - 1) / kAlign * kAlign;
    return tensor;
  }
};

Batch lay_out(Cursor& cursor, const BatchSizes& n) {
  Batch batch;
  batch.token_ids = cursor.take({n.rows});
  batch.token_index = cursor.take({n.rows});
  batch.positions = cursor.take({3, n.rows});
  batch.row_sequence = cursor.take({n.rows});
  batch.query_start = cursor.take({n.sequences + 1});
  batch.seq_len = cursor.take({n.sequences});
  batch.active = cursor.take({n.sequences});
  batch.block_table = cursor.take({n.sequences, n.pages_per_sequence});
  batch.draft_count = cursor.take({n.sequences});
  batch.segment_start = cursor.take({n.segments + 1});
  batch.segment_sequence = cursor.take({n.segments});
  batch.state_src = cursor.take({n.segments});
  batch.state_dst = cursor.take({n.segments});
  if (n.image_rows > 0) batch.image_rows = cursor.take({n.image_rows});
  if (!n.mtp) batch.lane = cursor.take({n.sequences});
  if (n.mtp) {
    batch.mtp.positions = cursor.take({3, n.rows});
    batch.mtp.first_key = cursor.take({n.sequences});
  }
  if (n.ahead) {
    batch.ahead.sampled_at = cursor.take({n.rows});
    batch.ahead.counts = cursor.take({2});
    batch.ahead.lists = cursor.take({n.lists});  // the last one, which is longer or shorter each time
  }
  return batch;
}

}  // namespace

int64_t batch_ints(const BatchSizes& sizes) {
  Cursor cursor{nullptr, {}};
  lay_out(cursor, sizes);
  return cursor.used;
}

Batch lay_out(int32_t* block, const BatchSizes& sizes, Device device) {
  Cursor cursor{block, device};
  return lay_out(cursor, sizes);
}

}  // namespace calandra

// ModelRunner: the batch of a step or of a draft pass, from the tokens and places of its sequences.
#include <algorithm>

#include "engine/batch_layout.h"
#include "engine/model_runner.h"

namespace calandra {

// Calls visit(row of the batch, embedding rows) for every run of rows that images replace.
template <class Visit>
void ModelRunner::visit_images(std::span<const Rows> parts, const Visit& visit) {
  int64_t row = 0;
  for (const Rows& part : parts) {
    for (const ImageSpan& image : part.sequence.images) {
      const int64_t from = std::max(part.begin, image.begin);
      const int64_t to = std::min(part.end(), image.begin + image.embeds.size(0));
      if (from < to) visit(row + from - part.begin, image.embeds.slice(0, from - image.begin, to - image.begin));
    }
    row += part.end() - part.begin;
  }
}

ModelRunner::Bounds ModelRunner::bounds_of(std::span<const Rows> parts, bool mtp) const {
  Bounds bounds;
  BatchSizes& sizes = bounds.sizes;
  sizes.mtp = mtp;
  for (const Rows& part : parts) {
    CHECK_GT(part.certain_end(), part.begin);
    CHECK_LE(static_cast<int64_t>(part.drafts.size()), limits_.pending_capacity);
    const int64_t most = part.end() + std::max<int64_t>(0, part.verified);
    CHECK_LE(most, static_cast<int64_t>(part.sequence.block_table.size()) * limits_.block_size);
    sizes.rows += part.end() - part.begin;
    bounds.max_query_len = std::max(bounds.max_query_len, part.end() - part.begin);
    bounds.max_seq_len = std::max(bounds.max_seq_len, most);
    bounds.max_drafts = std::max(bounds.max_drafts, static_cast<int64_t>(part.drafts.size()));
    sizes.segments += 1 + static_cast<int64_t>(part.cuts.size());
    sizes.ahead = sizes.ahead || !part.sampled_at.empty() || part.verified >= 0;
  }
  visit_images(parts, [&](int64_t, const Tensor& embeds) { sizes.image_rows += embeds.size(0); });
  sizes.sequences = static_cast<int64_t>(parts.size());
  CHECK_LE(sizes.rows, limits_.max_num_batched_tokens);
  CHECK_LE(sizes.sequences, limits_.max_num_seqs);
  CHECK_LE(sizes.segments, limits_.max_num_seqs + limits_.max_cuts);
  bounds.repeats = backend_.records() && sizes.image_rows == 0 && sizes.segments == sizes.sequences &&
                   bounds.max_query_len <= limits_.pending_capacity + 1;
  if (bounds.repeats) round_up(bounds);
  return bounds;
}

ModelRunner::Step ModelRunner::build(std::span<const Rows> parts, const Bounds& bounds) {
  BatchSizes sizes = bounds.sizes;
  sizes.pages_per_sequence = pages_for(bounds.max_seq_len, limits_.block_size);
  // Recorded ones are completed whether there is something to complete or not.
  sizes.ahead = sizes.ahead || (bounds.repeats && backend_.stream() != nullptr);
  sizes.lists = std::ssize(to_accept_.lists);
  CHECK(sizes.ahead || sizes.lists == 0);
  const int64_t ints = batch_ints(sizes);
  CHECK_LE(ints * sizeof(int32_t), device_batch_.bytes());
  const Batch host = lay_out(uploads_->take<int32_t>(ints), sizes, Device{});
  int32_t row = 0, segment = 0, moved = 0;
  const auto add_segment = [&](int32_t b, int64_t begin_row, int32_t src, int32_t dst) {
    host.segment_start.as<int32_t>()[segment] = static_cast<int32_t>(begin_row);
    host.segment_sequence.as<int32_t>()[segment] = b;
    host.state_src.as<int32_t>()[segment] = src;
    host.state_dst.as<int32_t>()[segment++] = dst;
  };
  StepShape shape;
  int32_t b = 0;
  for (; b < static_cast<int32_t>(parts.size()); ++b) {
    shape.add(parts[b].end() - parts[b].begin, (parts[b].begin + parts[b].end() + 1) / 2, 0);
    const Sequence& s = parts[b].sequence;
    moved += parts[b].verified >= 0;
    host.query_start.as<int32_t>()[b] = row;
    int64_t segment_row = row;
    int32_t src = s.source;
    for (const Cut& cut : parts[b].cuts) {
      CHECK_GT(cut.end, parts[b].begin + segment_row - row);
      CHECK_LT(cut.end, parts[b].certain_end());
      add_segment(b, segment_row, src, cut.slot);
      segment_row = row + cut.end - parts[b].begin;
      src = cut.slot;
    }
    add_segment(b, segment_row, src, s.slot);
    host.seq_len.as<int32_t>()[b] = static_cast<int32_t>(parts[b].end());
    host.active.as<int32_t>()[b] = 1;
    host.draft_count.as<int32_t>()[b] = static_cast<int32_t>(parts[b].drafts.size());
    if (sizes.mtp)
      host.mtp.first_key.as<int32_t>()[b] = static_cast<int32_t>(std::max<int64_t>(1, s.mtp_begin));
    else
      host.lane.as<int32_t>()[b] = s.lane;
    int32_t* table = host.block_table.as<int32_t>() + b * sizes.pages_per_sequence;
    const int64_t pages = std::min<int64_t>(sizes.pages_per_sequence, static_cast<int64_t>(s.block_table.size()));
    std::copy_n(s.block_table.begin(), pages, table);
    std::fill(table + pages, table + sizes.pages_per_sequence, -1);
    for (int64_t index = parts[b].begin; index < parts[b].end(); ++index, ++row) {
      host.token_ids.as<int32_t>()[row] = parts[b].token(index);
      host.token_index.as<int32_t>()[row] = static_cast<int32_t>(index);
      host.row_sequence.as<int32_t>()[row] = b;
      if (sizes.ahead) host.ahead.sampled_at.as<int32_t>()[row] = parts[b].place(index);
      for (int axis = 0; axis < 3; ++axis) {
        host.positions.as<int32_t>()[axis * sizes.rows + row] = s.position(index, axis);
        if (sizes.mtp) host.mtp.positions.as<int32_t>()[axis * sizes.rows + row] = s.position(index - 1, axis);
      }
    }
  }
  const int64_t rows = row;
  for (; b < sizes.sequences; ++b) {  // inactive
    add_segment(b, row, -1, 0);
    host.query_start.as<int32_t>()[b] = row;
    host.seq_len.as<int32_t>()[b] = host.active.as<int32_t>()[b] = host.draft_count.as<int32_t>()[b] = 0;
    (sizes.mtp ? host.mtp.first_key : host.lane).as<int32_t>()[b] = sizes.mtp ? 1 : 0;
    std::fill_n(host.block_table.as<int32_t>() + b * sizes.pages_per_sequence, sizes.pages_per_sequence, 0);
    for (int64_t i = 0; i < bounds.max_query_len && row < sizes.rows; ++i, ++row) {
      host.token_ids.as<int32_t>()[row] = host.token_index.as<int32_t>()[row] = 0;
      host.row_sequence.as<int32_t>()[row] = b;
      if (sizes.ahead) host.ahead.sampled_at.as<int32_t>()[row] = -1;
      for (int axis = 0; axis < 3; ++axis) {
        host.positions.as<int32_t>()[axis * sizes.rows + row] = 0;
        if (sizes.mtp) host.mtp.positions.as<int32_t>()[axis * sizes.rows + row] = 0;
      }
    }
  }
  CHECK_EQ(row, sizes.rows);
  host.query_start.as<int32_t>()[b] = row;
  host.segment_start.as<int32_t>()[segment] = row;
  if (sizes.ahead) {
    host.ahead.counts.as<int32_t>()[0] = to_accept_.sequences;
    host.ahead.counts.as<int32_t>()[1] = moved;
    std::copy(to_accept_.lists.begin(), to_accept_.lists.end(), host.ahead.lists.as<int32_t>());
    to_accept_.sequences = 0;
    to_accept_.lists.clear();
  }
  const int64_t row_bytes = model_.hidden_size() * static_cast<int64_t>(size_of(model_.dtype()));
  int64_t image_row = 0;
  visit_images(parts, [&](int64_t first, const Tensor& embeds) {
    backend_.copy_bytes(static_cast<std::byte*>(image_embeds_.data()) + image_row * row_bytes, embeds.data(),
                        embeds.bytes());
    for (int64_t i = 0; i < embeds.size(0); ++i)
      host.image_rows.as<int32_t>()[image_row++] = static_cast<int32_t>(first + i);
  });

  ExecContext ctx = context(nullptr);
  uploads_->send(ctx, device_batch_.data());
  Batch batch = lay_out(static_cast<int32_t*>(device_batch_.data()), sizes, backend_.device());
  if (sizes.image_rows > 0)
    batch.image_embeds = image_embeds_.tensor(model_.dtype(), {sizes.image_rows, model_.hidden_size()});
  batch.max_query_len = bounds.max_query_len;
  batch.max_seq_len = bounds.max_seq_len;
  batch.max_drafts = bounds.max_drafts;
  return {batch, bounds.repeats, rows, shape};
}

}  // namespace calandra

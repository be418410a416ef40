#include "tests/hashsim/hash_rig.h"

#include <algorithm>

#include "engine/batch_layout.h"
#include "ops/recurrence.h"

namespace calandra::hashsim {

HashRig::HashRig(const HashModelConfig& config, const RigSizes& sizes) : model(config) {
  std::vector<CacheSpec> specs = model.cache_specs();
  if (model.drafter() != nullptr)
    for (const CacheSpec& spec : model.drafter()->cache_specs()) specs.push_back(spec);
  const Allocate allocate = [&](size_t bytes) { return backend_.allocate(bytes); };
  pages = std::make_unique<PagePool>(specs, sizes.pages, sizes.page_tokens, allocate);
  slots = std::make_unique<SlotPool>(specs, kHiddenSize, DType::kF32, sizes.slots, sizes.pending_capacity, allocate);
  for (int layer = 0; layer < static_cast<int>(specs.size()); ++layer)
    caches_.layers.push_back({pages->layer(layer), slots->layer(layer)});
  caches_.slots = {slots->N(), slots->accepted(), slots->hidden()};

  Workspace measured;
  ExecContext ctx{backend_, measured, communicator_};
  ctx.dry_run = true;
  const Batch batch =
      lay_out(nullptr, {.rows = sizes.rows, .sequences = 1, .segments = 1, .pages_per_sequence = 1}, {});
  model.forward(ctx, batch, caches_);
  workspace_ = Workspace(measured, backend_.allocate(measured.bytes()));
}

Batch HashRig::begin_batch(size_t parts, int64_t rows, int64_t segments, int64_t table, bool mtp) {
  const BatchSizes sizes{.rows = rows,
                         .sequences = static_cast<int64_t>(parts),
                         .segments = segments,
                         .pages_per_sequence = table,
                         .mtp = mtp};
  block_.assign(batch_ints(sizes), 0);
  return lay_out(block_.data(), sizes, {});
}

namespace {

// What both kinds of batch have in common; `b` sequences stand before this one, `row` rows.
template <class Part>
void put_rows(Batch& batch, const Part& part, int64_t b, int64_t row) {
  const int64_t P = batch.block_table.size(1), rows = static_cast<int64_t>(part.tokens.size());
  std::fill_n(batch.block_table.as<int32_t>() + b * P, P, -1);
  std::copy(part.table.begin(), part.table.end(), batch.block_table.as<int32_t>() + b * P);
  batch.query_start.as<int32_t>()[b] = static_cast<int32_t>(row);
  batch.query_start.as<int32_t>()[b + 1] = static_cast<int32_t>(row + rows);
  batch.active.as<int32_t>()[b] = part.active;
  batch.seq_len.as<int32_t>()[b] = static_cast<int32_t>(part.begin + rows);
  for (int64_t i = 0; i < rows; ++i) {
    batch.token_ids.as<int32_t>()[row + i] = part.tokens[i];
    batch.token_index.as<int32_t>()[row + i] = static_cast<int32_t>(part.begin + i);
    batch.row_sequence.as<int32_t>()[row + i] = static_cast<int32_t>(b);
  }
  batch.max_query_len = std::max(batch.max_query_len, rows);
  batch.max_seq_len = std::max(batch.max_seq_len, part.begin + rows);
}

void put_positions(const Tensor& to, int64_t row, int64_t begin, int64_t rows) {
  for (int64_t i = 0; i < rows; ++i)
    for (int axis = 0; axis < 3; ++axis)
      to.as<int32_t>()[axis * to.size(1) + row + i] = static_cast<int32_t>(begin + i);
}

}  // namespace

std::vector<HiddenRow> HashRig::step(const std::vector<RigPart>& parts, const Change& change) {
  int64_t T = 0, S = 0, P = 1;
  for (const RigPart& part : parts) {
    T += static_cast<int64_t>(part.tokens.size());
    S += static_cast<int64_t>(part.segments.size());
    P = std::max(P, static_cast<int64_t>(part.table.size()));
  }
  Batch batch = begin_batch(parts.size(), T, S, P, false);
  int64_t row = 0, segment = 0;
  for (size_t b = 0; b < parts.size(); ++b) {
    const RigPart& part = parts[b];
    put_rows(batch, part, static_cast<int64_t>(b), row);
    put_positions(batch.positions, row, part.begin, static_cast<int64_t>(part.tokens.size()));
    batch.draft_count.as<int32_t>()[b] = part.drafts;
    batch.max_drafts = std::max<int64_t>(batch.max_drafts, part.drafts);
    int64_t at = row;
    for (const RigPart::Segment& s : part.segments) {
      batch.segment_start.as<int32_t>()[segment] = static_cast<int32_t>(at);
      batch.segment_sequence.as<int32_t>()[segment] = static_cast<int32_t>(b);
      batch.state_src.as<int32_t>()[segment] = s.src;
      batch.state_dst.as<int32_t>()[segment++] = s.dst;
      at += s.rows;
    }
    row += static_cast<int64_t>(part.tokens.size());
    CHECK_EQ(at, row);
  }
  batch.segment_start.as<int32_t>()[segment] = static_cast<int32_t>(row);
  if (change) change(batch);

  workspace_.reset();
  ExecContext ctx{backend_, workspace_, communicator_};
  const Tensor hidden = model.forward(ctx, batch, caches_);
  Tensor ring;
  ops::commit_slots(ctx, hidden, caches_.slots, ring, batch);
  return rows_of(hidden);
}

std::vector<HiddenRow> HashRig::draft(const std::vector<RigEntries>& parts, int64_t pass, const Change& change) {
  int64_t T = 0, P = 1;
  for (const RigEntries& part : parts) {
    CHECK_EQ(part.tokens.size(), part.hidden.size());
    T += static_cast<int64_t>(part.tokens.size());
    P = std::max(P, static_cast<int64_t>(part.table.size()));
  }
  Batch batch = begin_batch(parts.size(), T, 1, P, true);
  hidden_.resize(T * kHiddenSize);
  int64_t row = 0;
  for (size_t b = 0; b < parts.size(); ++b) {
    const RigEntries& part = parts[b];
    const auto rows = static_cast<int64_t>(part.tokens.size());
    put_rows(batch, part, static_cast<int64_t>(b), row);
    put_positions(batch.mtp.positions, row, part.begin - 1, rows);
    batch.mtp.first_key.as<int32_t>()[b] = part.first_key;
    for (int64_t i = 0; i < rows; ++i) put_hidden(&hidden_[(row + i) * kHiddenSize], part.hidden[i]);
    row += rows;
  }
  if (change) change(batch);
  workspace_.reset();
  ExecContext ctx{backend_, workspace_, communicator_};
  const Tensor hidden(hidden_.data(), DType::kF32, {T, kHiddenSize});
  return rows_of(model.drafter()->forward(ctx, batch, caches_, hidden, pass));
}

std::vector<HiddenRow> HashRig::rows_of(const Tensor& hidden) const {
  std::vector<HiddenRow> rows;
  for (int64_t t = 0; t < hidden.size(0); ++t) rows.push_back(get_hidden(hidden.as<float>() + t * kHiddenSize));
  return rows;
}

int32_t HashRig::greedy(const HiddenRow& row) const {
  std::vector<float> logits(model.config().vocab_size);
  logits_of(model.config(), row.pick, logits);
  return HashShadow::choose_greedy(logits, 0);
}

}  // namespace calandra::hashsim

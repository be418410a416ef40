// ModelRunner's hidden rows that outlive their step, for the drafter: the ring of each lane, the rows of a step that do
// not fit into it, and what is gathered of both for a pass.
#include <algorithm>
#include <numeric>

#include "engine/model_runner.h"

namespace calandra {

int32_t ModelRunner::ring_row(const Sequence& s, int64_t token) const {
  return static_cast<int32_t>(s.lane * (limits_.hidden_ring + 1) + token % limits_.hidden_ring);
}

int32_t ModelRunner::row_before(const Sequence& s) const {
  return static_cast<int32_t>((s.lane + 1) * (limits_.hidden_ring + 1) - 1);
}

int32_t ModelRunner::step_row(int64_t row) const {
  return static_cast<int32_t>(limits_.max_num_seqs * (limits_.hidden_ring + 1) + row);
}

// Rows from_rows_ of `from` to the places to_rows_ of `to`; empties the lists.
void ModelRunner::copy_listed_rows(const Tensor& from, Tensor to) {
  const auto count = static_cast<int64_t>(from_rows_.size());
  if (count == 0) return;
  CHECK_LE(count, limits_.max_num_batched_tokens);
  CHECK_EQ(to_rows_.size(), from_rows_.size());
  auto* lists = uploads_->take<int32_t>(2 * count);
  std::copy(from_rows_.begin(), from_rows_.end(), lists);
  std::copy(to_rows_.begin(), to_rows_.end(), lists + count);
  from_rows_.clear();
  to_rows_.clear();
  ExecContext ctx = context(nullptr);
  uploads_->send(ctx, lists_.data());
  const Tensor both = lists_.tensor(DType::kI32, {2 * count});
  ops::copy_rows(ctx, from, both.slice(0, 0, count), to, both.slice(0, count, 2 * count));
}

const ModelRunner::StepRows* ModelRunner::step_rows(const Sequence& s) const {
  const StepRows& rows = step_rows_[s.lane];
  return steps_ > 0 && rows.step == steps_ ? &rows : nullptr;
}

// A step is about to write the rows of tokens [begin, begin + count) of a sequence, those of its drafts too: those that
// are accepted count from then on, the others are overwritten. What does not fit into the ring together with the row
// before it will be kept beside.
void ModelRunner::keep_step_rows(const Sequence& s, int64_t begin, int64_t count, int64_t row) {
  if (limits_.hidden_ring == 0 || count < limits_.hidden_ring) return;
  const bool before = begin > 0 && s.ring_begin < begin;
  if (before) {
    from_rows_.push_back(ring_row(s, begin - 1));
    to_rows_.push_back(row_before(s));
  }
  step_rows_[s.lane] = {steps_, begin, begin + count, row, before};
}

// Listed, so that the device copies them behind the step: nobody waits for it here.
void ModelRunner::list_step_rows(const Sequence& s) {
  const StepRows* rows = step_rows(s);
  if (rows == nullptr) return;
  for (int64_t row = rows->row; row < rows->row + rows->end - rows->begin; ++row) {
    from_rows_.push_back(static_cast<int32_t>(row));
    to_rows_.push_back(step_row(row));
  }
}

// Rows of drafts took the places of the oldest ones, accepted or not.
void ModelRunner::ring_written(Sequence& s, int64_t drafts) const {
  s.ring_begin = std::max(s.ring_begin, s.computed + drafts - limits_.hidden_ring);
}

Tensor ModelRunner::set_aside(const Tensor& hidden) {
  for (int64_t row = 0; row < hidden.size(0); ++row) {
    from_rows_.push_back(static_cast<int32_t>(row));
    to_rows_.push_back(step_row(row));
  }
  copy_listed_rows(hidden, kept_);
  return kept_.slice(0, step_row(0), step_row(0) + hidden.size(0));
}

int64_t ModelRunner::first_hidden(const Sequence& s) const {
  const StepRows* step = step_rows(s);
  return step == nullptr ? s.ring_begin : std::min(s.ring_begin, step->begin - step->row_before);
}

Tensor ModelRunner::gather_hidden(std::span<const HiddenRows> parts) {
  int32_t rows = 0;
  for (const HiddenRows& part : parts) {
    const Sequence& s = *part.sequence;
    CHECK_LE(first_hidden(s), part.begin);
    CHECK_LE(part.end, s.computed + limits_.pending_capacity);
    const StepRows* step = step_rows(s);
    for (int64_t token = part.begin; token < part.end; ++token, ++rows) {
      CHECK_LT(rows, limits_.max_num_batched_tokens);
      int32_t from = ring_row(s, token);
      if (step != nullptr && token >= step->begin)
        from = step_row(step->row + token - step->begin);
      else if (step != nullptr && step->row_before && token == step->begin - 1)
        from = row_before(s);
      from_rows_.push_back(from);
      to_rows_.push_back(rows);
    }
  }
  const Tensor gathered = hidden_.tensor(model_.dtype(), {rows, model_.hidden_size()});
  copy_listed_rows(kept_, gathered);
  return gathered;
}

void ModelRunner::load_hidden(Sequence& s) {
  CHECK_GE(s.source, 0);
  backend_.copy_bytes(&s.accepted, &slots_->accepted().as<int32_t>()[s.source], sizeof s.accepted);
  s.ring_begin = s.computed - 1;
  backend_.copy_bytes(kept_[ring_row(s, s.ring_begin)].data(), slots_->hidden()[s.source][s.accepted].data(),
                      kept_[0].bytes());
}

void ModelRunner::copy_ring(const Sequence& from, Sequence& to) {
  to.ring_begin = from.ring_begin;
  for (int64_t token = to.ring_begin; token < from.computed; ++token)
    backend_.copy_bytes(kept_[ring_row(to, token)].data(), kept_[ring_row(from, token)].data(), kept_[0].bytes());
}

Tensor ModelRunner::keep_hidden(const Tensor& hidden) {
  CHECK_LE(static_cast<size_t>(hidden.bytes()), hidden_.bytes());
  backend_.copy_bytes(hidden_.data(), hidden.data(), hidden.bytes());
  return hidden_.tensor(hidden.dtype(), hidden.shape());
}

Tensor ModelRunner::keep_hidden(const Tensor& hidden, std::span<const int32_t> rows) {
  CHECK_LE(static_cast<int64_t>(rows.size()), limits_.max_num_batched_tokens);
  from_rows_.assign(rows.begin(), rows.end());
  for (size_t i = 0; i < rows.size(); ++i) to_rows_.push_back(static_cast<int32_t>(i));
  const Tensor kept = hidden_.tensor(hidden.dtype(), {std::ssize(rows), hidden.size(1)});
  copy_listed_rows(hidden, kept);
  return kept;
}

Tensor ModelRunner::keep_hidden(const Tensor& hidden, LastEntries rows) {
  auto* to_rows = uploads_->take<int32_t>(rows.count);
  std::iota(to_rows, to_rows + rows.count, 0);
  ExecContext ctx = context(nullptr);
  uploads_->send(ctx, lists_.data());
  Tensor kept = hidden_.tensor(hidden.dtype(), {rows.count, hidden.size(1)});
  ops::copy_rows(ctx, hidden, last_entries(rows.count), kept, lists_.tensor(DType::kI32, {rows.count}));
  return kept;
}

}  // namespace calandra

#include "tests/hashsim/batch_contract.h"

#include <fmt/format.h>

#include <algorithm>

namespace calandra::hashsim {
namespace {

constexpr size_t kMostViolations = 100;

int64_t at(const Tensor& tensor, int64_t i) { return tensor.as<int32_t>()[i]; }

// Rows of a sequence that do something in this step: none of an inactive one.
struct Rows {
  Rows(const Batch& batch, int64_t b) : begin(at(batch.query_start, b)), end(at(batch.query_start, b + 1)) {
    if (!at(batch.active, b)) end = begin;
  }
  bool empty() const { return begin == end; }
  int64_t begin, end;
};

}  // namespace

template <class... Args>
void BatchContract::expect(bool holds, const char* format, const Args&... args) {
  if (!holds && violations_.size() < kMostViolations) violations_.push_back(fmt::format(fmt::runtime(format), args...));
}

// The shape of the batch; false when nothing else can be looked at.
bool BatchContract::check_rows(const Batch& batch) {
  const size_t before = violations_.size();
  const int64_t B = batch.sequences(), T = batch.rows();
  expect(at(batch.query_start, 0) == 0 && at(batch.query_start, B) == T, "query_start does not span the {} rows", T);
  for (int64_t b = 0; b < B; ++b)
    expect(at(batch.query_start, b) <= at(batch.query_start, b + 1), "query_start falls at sequence {}", b);
  if (violations_.size() > before) return false;
  for (int64_t b = 0; b < B; ++b) {
    const Rows rows(batch, b);
    if (rows.empty()) continue;
    const int64_t count = rows.end - rows.begin, first = at(batch.token_index, rows.begin);
    expect(first >= 0, "sequence {} has token index {}", b, first);
    for (int64_t t = rows.begin; t < rows.end; ++t) {
      expect(at(batch.row_sequence, t) == b, "row {} names sequence {}, not {}", t, at(batch.row_sequence, t), b);
      expect(at(batch.token_index, t) == first + t - rows.begin, "row {}: token index {} does not follow {}", t,
             at(batch.token_index, t), first);
    }
    expect(count <= batch.max_query_len, "sequence {}: {} rows, bound {}", b, count, batch.max_query_len);
    expect(first + count <= batch.max_seq_len, "sequence {}: length {}, bound {}", b, first + count, batch.max_seq_len);
  }
  return violations_.size() == before;
}

// A page that a sequence writes is in no other table.
void BatchContract::check_pages(const Batch& batch, int64_t pages, int64_t page_tokens) {
  const int64_t B = batch.sequences(), P = batch.block_table.size(1);
  writer_.resize(pages, -1);
  written_.clear();
  const auto visit = [&](int64_t b, auto&& each) {
    const Rows rows(batch, b);
    if (rows.empty()) return;
    const int64_t first_written = at(batch.token_index, rows.begin) / page_tokens;
    const int64_t last = at(batch.token_index, rows.end - 1) / page_tokens;
    expect(last < P, "sequence {}: block table of {} pages for page {}", b, P, last);
    for (int64_t i = 0; i <= std::min(last, P - 1); ++i) {
      const int64_t page = at(batch.block_table, b * P + i);
      expect(page >= 0 && page < pages, "sequence {}: block table has page {} at {}", b, page, i);
      if (page >= 0 && page < pages) each(page, i >= first_written);
    }
  };
  for (int64_t b = 0; b < B; ++b)
    visit(b, [&](int64_t page, bool writes) {
      if (!writes) return;
      expect(writer_[page] < 0, "page {} is written by sequences {} and {}, or twice", page, writer_[page], b);
      writer_[page] = static_cast<int32_t>(b);
      written_.push_back(static_cast<int32_t>(page));
    });
  for (int64_t b = 0; b < B; ++b)
    visit(b, [&](int64_t page, bool writes) {
      expect(writes || writer_[page] < 0, "page {} is read by sequence {} and written by {}", page, b, writer_[page]);
    });
  for (const int32_t page : written_) writer_[page] = -1;
}

void BatchContract::check_segments(const Batch& batch, const SlotCounts& slots) {
  const int64_t S = batch.segments(), capacity = slots.hidden.size(1) - 1, slot_count = slots.N.size(0);
  expect(at(batch.segment_start, 0) == 0 && at(batch.segment_start, S) == batch.rows(),
         "segment_start does not span the rows");
  for (int64_t s = 0; s < S; ++s) {
    const int64_t b = at(batch.segment_sequence, s), begin = at(batch.segment_start, s),
                  end = at(batch.segment_start, s + 1), src = at(batch.state_src, s), dst = at(batch.state_dst, s);
    const bool first = s == 0 || at(batch.segment_sequence, s - 1) != b;
    const bool last = s + 1 == S || at(batch.segment_sequence, s + 1) != b;
    expect(b >= 0 && b < batch.sequences() && (s == 0 || at(batch.segment_sequence, s - 1) <= b),
           "segment {} names sequence {}", s, b);
    if (b < 0 || b >= batch.sequences() || !at(batch.active, b) || Rows(batch, b).empty()) continue;
    expect(begin <= end, "segment {} ends before it begins", s);
    expect(begin < end || first, "segment {} is empty", s);
    expect(!first || begin == at(batch.query_start, b), "segment {} begins at row {}", s, begin);
    expect(!last || end == at(batch.query_start, b + 1), "segment {} ends at row {}", s, end);
    expect(first || src == at(batch.state_dst, s - 1), "segment {} does not go on from slot {}, but from {}", s,
           at(batch.state_dst, s - 1), src);
    expect(src >= -1 && src < slot_count && dst >= 0 && dst < slot_count, "segment {}: slots {} to {}", s, src, dst);
    if (src < -1 || src >= slot_count) continue;
    if (first) {
      const int64_t P = src < 0 ? 0 : at(slots.N, src) + at(slots.accepted, src);
      expect(at(batch.token_index, begin) == P, "sequence {}: slot {} stands at {}, its rows begin at {}", b, src, P,
             at(batch.token_index, begin));
      expect(src < 0 || (at(slots.accepted, src) >= 0 && at(slots.accepted, src) <= capacity),
             "slot {} has {} accepted", src, src < 0 ? 0 : at(slots.accepted, src));
    }
    const int64_t drafts = at(batch.draft_count, b);
    expect(!last || (drafts >= 0 && drafts <= end - begin && drafts <= capacity && drafts <= batch.max_drafts),
           "sequence {}: {} drafts in {} rows, capacity {}, bound {}", b, drafts, end - begin, capacity,
           batch.max_drafts);
    if (last)
      expect(at(batch.seq_len, b) == at(batch.token_index, end - 1) + 1, "sequence {}: length {}, last index {}", b,
             at(batch.seq_len, b), at(batch.token_index, end - 1));
  }
}

// A slot is never the source of one sequence and the destination of another, nor the destination of two.
void BatchContract::check_slots_apart(const Batch& batch) {
  const int64_t S = batch.segments();
  const auto counts = [&](int64_t s) {
    const int64_t b = at(batch.segment_sequence, s);
    return at(batch.active, b) && !Rows(batch, b).empty();
  };
  for (int64_t s = 0; s < S; ++s) {
    if (!counts(s)) continue;
    const int64_t b = at(batch.segment_sequence, s), dst = at(batch.state_dst, s);
    for (int64_t other = 0; other < S; ++other) {
      const int64_t owner = at(batch.segment_sequence, other);
      if (owner == b || !counts(other)) continue;
      expect(other < s || dst != at(batch.state_dst, other), "slot {} is written by sequences {} and {}", dst, b,
             owner);
      expect(dst != at(batch.state_src, other), "slot {} is written by sequence {} and read by {}", dst, b, owner);
    }
  }
}

void BatchContract::check_forward(const Batch& batch, const SlotCounts& slots, int64_t pages, int64_t page_tokens) {
  if (!check_rows(batch)) return;
  check_pages(batch, pages, page_tokens);
  const size_t before = violations_.size();
  check_segments(batch, slots);
  if (violations_.size() == before) check_slots_apart(batch);
}

void BatchContract::check_draft(const Batch& batch, int64_t pages, int64_t page_tokens) {
  if (!check_rows(batch)) return;
  check_pages(batch, pages, page_tokens);
  for (int64_t b = 0; b < batch.sequences(); ++b) {
    const Rows rows(batch, b);
    if (rows.empty()) continue;
    expect(at(batch.mtp.first_key, b) >= 1, "sequence {}: first key {}", b, at(batch.mtp.first_key, b));
    expect(at(batch.token_index, rows.begin) >= 1, "sequence {} has entry 0", b);
  }
}

}  // namespace calandra::hashsim

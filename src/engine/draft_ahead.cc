// Speculator's drafts for a step behind one whose tokens the host does not know yet.
//
// Of a sequence with L known tokens the step runs the last one and drafts, of which a are kept, so that it goes on with
// L + a + 1 tokens. The first pass has the entries of all that may be: those that are missing below L, and one for each
// sampled row. Of these the first a + 1 are true, whoever ends or not; the others are provisional, and written again.
// So the pass is the same whatever a is, but for the row that gives the first draft. Further passes stand a entries
// further, and so does the place whose noise a draft is chosen with.
#include <algorithm>
#include <numeric>

#include "engine/speculator.h"

namespace calandra {
namespace {

int64_t size_with_drafts(const AheadMember& m) { return m.choice->sequence.size() + m.verified + 1; }

}  // namespace

bool Speculator::can_draft_ahead(const Choice& choice) const {
  const Sequence& s = choice.sequence;
  return !reads_drafts(s, context_) && s.outputs() + 1 >= s.params.min_tokens;
}

bool Speculator::choose_ahead(std::span<AheadMember> members) {
  chosen_ahead_.clear();
  candidates_.clear();
  const int most_of_batch = config_.drafts_for(std::ssize(members));
  for (const AheadMember& m : members) {
    const Sequence& s = m.choice->sequence;
    const int64_t begin = std::max(s.mtp_end, runner_.first_hidden(s) + 1);
    candidates_.push_back(
        {&m.choice->acceptance, s.size(), std::min(m.most_drafts, most_of_batch), size_with_drafts(m) - begin - 1});
  }
  length_.choose(candidates_, false, k_);
  for (size_t i = 0; i < members.size(); ++i) {
    if (k_[i] == 0 || can_draft_ahead(*members[i].choice)) continue;
    for (size_t j = 0; config_.adaptive && j < members.size(); ++j)  // else it is chosen the same again
      chosen_ahead_.emplace_back(members[j].choice, k_[j]);
    std::ranges::sort(chosen_ahead_);
    return false;
  }
  plain_ahead_ = length_.measures_plain();
  int64_t rows = 0;
  for (size_t i = 0; i < members.size(); ++i) {
    const int64_t entries = candidates_[i].catch_up_rows + 1;
    const bool fits = rows + entries <= runner_.limits().max_num_batched_tokens;
    members[i].k = fits ? k_[i] : 0;
    if (members[i].k > 0) rows += entries;
  }
  std::stable_sort(members.begin(), members.end(),
                   [](const AheadMember& a, const AheadMember& b) { return a.k > b.k; });
  entries_.clear();
  rows = 0;
  for (AheadMember& m : members) {
    if (m.k == 0) break;
    const Entries& entries = entries_.emplace_back(entries_of(*m.choice, size_with_drafts(m)));
    m.entry_row = rows + m.choice->sequence.size() - entries.begin;
    rows += entries.end - entries.begin;
  }
  return true;
}

bool Speculator::draft_ahead(std::span<const AheadMember> members) {
  started_ = read_ = 0;
  passes_.clear();
  for (const AheadMember& m : members) m.choice->ahead_drafts_at.clear();
  if (entries_.empty()) return true;
  timer_.launch();
  hidden_.clear();
  tokens_.clear();
  tokens_at_.clear();
  StepShape& first = passes_.emplace_back();
  for (size_t i = 0; i < entries_.size(); ++i) {
    const Entries& e = entries_[i];
    Sequence& s = e.choice->sequence;
    hidden_.push_back({&s, e.begin - 1, e.end - 1});
    tokens_.insert(tokens_.end(), s.tokens.begin() + e.begin, s.tokens.end());
    tokens_.resize(tokens_.size() + static_cast<size_t>(members[i].verified + 1));
    for (int64_t j = 0; j <= members[i].verified; ++j)
      tokens_at_.push_back(ModelRunner::sampled_at(0, members[i].sampled + j));
    first.add(e.end - e.begin, e.end, 1);
  }
  parts_.clear();
  size_t token = 0, at = 0;
  for (size_t i = 0; i < entries_.size(); ++i) {
    const Entries& e = entries_[i];
    const auto count = static_cast<size_t>(e.end - e.begin), unknown = static_cast<size_t>(members[i].verified + 1);
    parts_.push_back({&e.choice->sequence, e.begin, std::span(tokens_).subspan(token, count),
                      std::span(tokens_at_).subspan(at, unknown)});
    token += count;
    at += unknown;
  }
  Tensor hidden = runner_.draft(parts_, runner_.gather_hidden(hidden_), 0);

  auto drafting = static_cast<int64_t>(entries_.size());  // the first of the members
  for (int64_t pass = 1;; ++pass) {
    Drafts& drafts = sampling_[static_cast<size_t>(pass - 1)];
    drafts.clear(runner_.model().drafter()->token_ids());
    drafts.batch.moves = runner_.accepted_ahead(drafting);
    for (int32_t i = 0; i < drafting; ++i) {
      Choice& choice = *members[static_cast<size_t>(i)].choice;
      CHECK(add_sampling_row(drafts.batch, choice.sequence, kUnknown.first(static_cast<size_t>(pass)), i, context_,
                             false));
      drafts.batch.rows.back().moved_by = i;
      drafts.choices.push_back(&choice);
      choice.ahead_drafts_at.push_back(ModelRunner::sampled_at(static_cast<int>(pass), i));
    }
    rows_.resize(static_cast<size_t>(drafting));
    std::iota(rows_.begin(), rows_.end(), 0);
    const ModelRunner::LastEntries last{drafting};
    const Tensor logits = pass == 1 ? runner_.draft_logits(hidden, last) : runner_.draft_logits(hidden, rows_);
    if (!runner_.start_sample(logits, drafts.batch, static_cast<int>(pass))) return false;
    ++started_;
    while (drafting > 0 && members[static_cast<size_t>(drafting - 1)].k == pass) --drafting;
    if (drafting == 0) return true;
    rows_.resize(static_cast<size_t>(drafting));
    const Tensor before = pass == 1 ? runner_.keep_hidden(hidden, ModelRunner::LastEntries{drafting})
                                    : runner_.keep_hidden(hidden, rows_);
    parts_.clear();
    StepShape& shape = passes_.emplace_back();
    for (int64_t i = 0; i < drafting; ++i) {
      const AheadMember& m = members[static_cast<size_t>(i)];
      Sequence& s = m.choice->sequence;
      parts_.push_back(
          {&s, s.size() + pass, kUnknown.first(1), std::span(m.choice->ahead_drafts_at).last(1), m.verified});
      shape.add(1, s.size() + pass, 1);
    }
    hidden = runner_.draft(parts_, before, pass);
  }
}

bool Speculator::begin_ahead() {
  plain_ = plain_ahead_;
  if (started_ == 0) return false;
  read_started();
  started_ = read_ = 0;
  observe_drafting();
  return true;
}

void Speculator::drop_ahead() {
  for (size_t i = 0; i < started_; ++i) std::ranges::fill(sampling_[i].choices, nullptr);
  read_started();
  started_ = read_ = 0;
}

void Speculator::drop_ahead(const Choice& choice) {
  for (size_t i = 0; i < started_; ++i)
    std::ranges::replace(sampling_[i].choices, const_cast<Choice*>(&choice), static_cast<Choice*>(nullptr));
}

}  // namespace calandra

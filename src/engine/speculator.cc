#include "engine/speculator.h"

#include <algorithm>
#include <random>

namespace calandra {
namespace {

// Looking up costs nothing beside a step.
StepCost pass_cost(const CausalLM& model, const SpeculativeConfig& config) {
  return config.method == DraftMethod::kMtp ? model.drafter()->step_cost() : StepCost{};
}

}  // namespace

Speculator::Speculator(ModelRunner& runner, const SpeculativeConfig& config, const SamplingContext& context,
                       const Clock& clock, bool chains)
    : runner_(runner),
      config_(config),
      context_(context),
      hash_seed_(std::random_device{}()),
      chains_(chains),
      length_(runner.model().step_cost(), pass_cost(runner.model(), config),
              {config.num_speculative_tokens, config.adaptive, first_guess(runner.backend().device())}),
      timer_(runner, clock),
      entry_timer_(runner, clock) {
  CHECK_LE(config.num_speculative_tokens, runner.limits().pending_capacity);
  CHECK(!uses_mtp() || runner.limits().hidden_ring > 0);
}

void Speculator::observe(Choice& choice, int accepted) {
  if (!choice.drafts.empty())
    length_.observe_drafts(choice.acceptance, static_cast<int>(choice.drafts.size()), accepted);
}

void Speculator::look_up(Choice& choice, int most) {
  const Sequence& s = choice.sequence;
  if (!choice.ngrams) {
    choice.ngrams.emplace(config_.prompt_lookup_min, config_.prompt_lookup_max, hash_seed_);
    choice.ngrams->reserve(choice.longest);
  }
  choice.ngrams->append(std::span(s.tokens).subspan(static_cast<size_t>(choice.ngrams->size())));
  choice.ngrams->propose(most, choice.drafts);
}

void Speculator::draft(std::span<const Scheduler::Planned> step) {
  candidates_.clear();
  choices_.clear();
  int64_t running = 0;
  for (const Scheduler::Planned& planned : step) running += planned.choice->decodes();
  const int most_of_batch = config_.drafts_for(running);
  for (const Scheduler::Planned& planned : step) {
    Choice& choice = *planned.choice;
    const Sequence& s = choice.sequence;
    choice.drafts.clear();
    choice.drafts_at.clear();
    if (!choice.decodes()) continue;
    DraftCandidate candidate{&choice.acceptance, s.size(), std::min(planned.most_drafts, most_of_batch), 0};
    if (candidate.most_drafts > 0 && uses_mtp()) {
      candidate.catch_up_rows = s.computed - std::max(s.mtp_end, runner_.first_hidden(s) + 1);
    } else if (candidate.most_drafts > 0) {
      look_up(choice, candidate.most_drafts);
      candidate.most_drafts = static_cast<int>(choice.drafts.size());
    }
    candidates_.push_back(candidate);
    choices_.push_back(&choice);
  }
  if (chosen_ahead_.empty()) {
    length_.choose(candidates_, candidates_.size() < step.size(), k_);
    plain_ = length_.measures_plain();
  } else {  // those who came since get none yet
    k_.assign(candidates_.size(), 0);
    for (size_t i = 0; i < k_.size(); ++i) {
      const auto chosen = std::ranges::lower_bound(chosen_ahead_, choices_[i], {}, &ChosenAhead::first);
      if (chosen != chosen_ahead_.end() && chosen->first == choices_[i])
        k_[i] = std::min(chosen->second, candidates_[i].most_drafts);
    }
    plain_ = false;
    chosen_ahead_.clear();
  }
  if (!uses_mtp()) {
    for (size_t i = 0; i < k_.size(); ++i) choices_[i]->drafts.resize(static_cast<size_t>(k_[i]));
    return;
  }
  drafting_.clear();
  for (size_t i = 0; i < k_.size(); ++i)
    if (k_[i] > 0) drafting_.push_back({choices_[i], k_[i], 0});
  if (!drafting_.empty()) run_drafter();
}

// The first pass writes the true entries up to that of the last token, whose result gives the first draft; each further
// pass is one provisional entry of those who get another.
void Speculator::run_drafter() {
  timer_.launch();
  chained_ = chains_ && drafting_.size() <= static_cast<size_t>(ModelRunner::kLogitRows);
  started_ = read_ = 0;
  passes_.clear();
  const int64_t most_rows = runner_.limits().max_num_batched_tokens;
  entries_.clear();
  for (const Drafting& drafting : drafting_)
    entries_.push_back(entries_of(*drafting.choice, drafting.choice->sequence.size()));
  // What does not fit into one pass with all last entries is written before.
  int64_t rows = 0;
  for (const Entries& entries : entries_) rows += entries.end - entries.begin;
  StepShape& first = passes_.emplace_back();
  for (Entries& entries : entries_) {
    while (rows > most_rows && entries.end - entries.begin > 1) {
      const int64_t count = std::min({most_rows, entries.end - entries.begin - 1, rows - most_rows});
      const Entries early{entries.choice, entries.begin, entries.begin + count};
      write({&early, 1}, count);
      entries.begin += count;
      rows -= count;
    }
  }
  Tensor hidden = write(entries_, rows);
  int32_t row = -1;
  for (size_t i = 0; i < drafting_.size(); ++i) {
    row += static_cast<int32_t>(entries_[i].end - entries_[i].begin);
    drafting_[i].row = row;
    first.add(entries_[i].end - entries_[i].begin, entries_[i].end, 1);
  }
  for (int64_t pass = 1;; ++pass) {
    chained_ ? start_drafts(hidden, pass) : choose_drafts(hidden, pass);
    // A choice drops out when it has what it gets, or could choose nothing.
    std::erase_if(drafting_, [&](const Drafting& drafting) {
      const int64_t have = drafting.choice->draft_rows();
      return have < pass || have == drafting.k;
    });
    if (drafting_.empty()) break;
    rows_.clear();
    parts_.clear();
    StepShape& shape = passes_.emplace_back();
    for (Drafting& drafting : drafting_) {
      const Choice& choice = *drafting.choice;
      rows_.push_back(drafting.row);
      drafting.row = static_cast<int32_t>(rows_.size() - 1);
      const int64_t entry = choice.sequence.size() - 1 + pass;
      if (chained_)
        parts_.push_back({&drafting.choice->sequence, entry, kUnknown.first(1), std::span(choice.drafts_at).last(1)});
      else
        parts_.push_back({&drafting.choice->sequence, entry, std::span(choice.drafts).last(1)});
      shape.add(1, choice.sequence.size() + pass, 1);
    }
    const Tensor before = runner_.keep_hidden(hidden, rows_);
    hidden = runner_.draft(parts_, before, pass);
  }
  if (!chained_) observe_drafting();
}

void Speculator::Drafts::clear(std::span<const int32_t> token_ids) {
  choices.clear();
  batch.clear();
  batch.token_ids = token_ids;
}

// The next draft of each choice from its row of the last pass. Who gets none, has none: its grammar ended, or its row
// leaves no token.
void Speculator::choose_drafts(const Tensor& hidden, int64_t pass) {
  Drafts& drafts = sampling_.front();
  for (size_t first = 0; first < drafting_.size(); first += ModelRunner::kLogitRows) {
    const size_t end = std::min(first + static_cast<size_t>(ModelRunner::kLogitRows), drafting_.size());
    rows_.clear();
    drafts.clear(runner_.model().drafter()->token_ids());
    for (size_t i = first; i < end; ++i) {
      Choice& choice = *drafting_[i].choice;
      if (!add_sampling_row(drafts.batch, choice.sequence, choice.drafts, static_cast<int32_t>(rows_.size()), context_,
                            false))
        continue;
      rows_.push_back(drafting_[i].row);
      drafts.choices.push_back(&choice);
    }
    if (rows_.empty()) continue;
    runner_.sample(runner_.draft_logits(hidden, rows_), drafts.batch, result_);
    take_drafts(drafts, pass - 1);
  }
}

// The same, but the device chooses them when it comes to that.
void Speculator::start_drafts(const Tensor& hidden, int64_t pass) {
  const auto reads = [&](const Drafting& drafting) { return reads_drafts(drafting.choice->sequence, context_); };
  if (std::any_of(drafting_.begin(), drafting_.end(), reads)) read_started();
  Drafts& drafts = sampling_[static_cast<size_t>(pass - 1)];
  drafts.clear(runner_.model().drafter()->token_ids());
  rows_.clear();
  for (const Drafting& drafting : drafting_) {
    Choice& choice = *drafting.choice;
    const bool known = std::ssize(choice.drafts) == pass - 1;
    if (!known && reads(drafting)) continue;  // one before is no token
    const auto before = known ? std::span<const int32_t>(choice.drafts) : kUnknown.first(static_cast<size_t>(pass - 1));
    if (!add_sampling_row(drafts.batch, choice.sequence, before, static_cast<int32_t>(rows_.size()), context_, false))
      continue;
    choice.drafts_at.push_back(ModelRunner::sampled_at(static_cast<int>(pass), std::ssize(rows_)));
    rows_.push_back(drafting.row);
    drafts.choices.push_back(&choice);
  }
  if (rows_.empty()) return;
  const Tensor logits = runner_.draft_logits(hidden, rows_);
  if (runner_.start_sample(logits, drafts.batch, static_cast<int>(pass))) {
    ++started_;
    return;
  }
  // The device does not do it: from here on without it.
  read_started();
  chained_ = false;
  for (size_t i = 0; i < static_cast<size_t>(pass); ++i)
    for (Choice* choice : sampling_[i].choices) choice->drafts_at.clear();
  runner_.sample(logits, drafts.batch, result_);
  take_drafts(drafts, pass - 1);
}

// Those of result_. What stands behind a draft that is no token is none either.
void Speculator::take_drafts(const Drafts& drafts, int64_t position) {
  for (size_t i = 0; i < drafts.choices.size(); ++i) {
    if (drafts.choices[i] == nullptr) continue;
    std::vector<int32_t>& to = drafts.choices[i]->drafts;
    if (std::ssize(to) == position && result_.rows[i].status == ops::RowStatus::kOk)
      to.push_back(result_.rows[i].token);
  }
}

void Speculator::read_started() {
  for (; read_ < started_; ++read_) {
    Drafts& drafts = sampling_[read_];
    runner_.finish_sample(drafts.batch, static_cast<int>(read_ + 1), result_);
    take_drafts(drafts, static_cast<int64_t>(read_));
  }
}

bool Speculator::finish() {
  if (started_ == 0 || !chained_) return false;
  read_started();
  started_ = read_ = 0;
  observe_drafting();
  return true;
}

void Speculator::observe_drafting() {
  if (const auto seconds = timer_.seconds()) length_.observe_drafting(passes_, *seconds);
}

// Entries up to `end` that are still to be written. Those whose hidden rows are gone are given up, and with them those
// before.
Speculator::Entries Speculator::entries_of(Choice& choice, int64_t end) {
  Sequence& s = choice.sequence;
  const int64_t first = std::min(runner_.first_hidden(s) + 1, end);
  if (first > s.mtp_end) s.mtp_begin = s.mtp_end = first;
  return {&choice, std::min(s.mtp_end, end), end};
}

Tensor Speculator::write(std::span<const Entries> entries, int64_t rows) {
  parts_.clear();
  hidden_.clear();
  for (const Entries& e : entries) {
    Sequence& s = e.choice->sequence;
    parts_.push_back(
        {&s, e.begin, std::span(s.tokens).subspan(static_cast<size_t>(e.begin), static_cast<size_t>(e.end - e.begin))});
    hidden_.push_back({&s, e.begin - 1, e.end - 1});
    s.mtp_end = e.end;
  }
  CHECK_LE(rows, runner_.limits().max_num_batched_tokens);
  return runner_.draft(parts_, runner_.gather_hidden(hidden_), 0);
}

void Speculator::complete_entries(std::span<Choice* const> choices, const std::function<void()>& before_pass) {
  if (!uses_mtp()) return;
  const int64_t most_rows = runner_.limits().max_num_batched_tokens;
  entries_.clear();
  int64_t rows = 0;
  bool first = true;
  const auto flush = [&] {
    if (rows > 0 && std::exchange(first, false)) {
      entry_timer_.launch();
      if (before_pass) before_pass();
    }
    if (rows > 0) write(entries_, rows);
    entries_.clear();
    rows = 0;
  };
  for (Choice* choice : choices) {
    Entries left = entries_of(*choice, choice->sequence.computed);
    StepShape pass;
    pass.add(left.end - left.begin, left.end, 0);
    // Pictures are let go when their prompt was read.
    if (pass.rows == 0 || (choice->sequence.images.empty() && !length_.fills(pass))) continue;
    while (left.begin < left.end) {
      const int64_t count = std::min(left.end - left.begin, most_rows - rows);
      entries_.push_back({choice, left.begin, left.begin + count});
      rows += count;
      left.begin += count;
      if (rows == most_rows) flush();
    }
  }
  flush();
  if (!first) length_.observe_filling(entry_timer_.seconds());
}

}  // namespace calandra

#include "engine/look_ahead.h"

#include <algorithm>

namespace calandra {

LookAhead::LookAhead(ModelRunner& runner, Scheduler& scheduler, Speculator* speculator,
                     std::span<const int32_t> eos_token_ids, const Clock& clock)
    : runner_(runner),
      scheduler_(scheduler),
      speculator_(speculator),
      eos_token_ids_(eos_token_ids),
      timer_(runner, clock),
      begun_{{}, {}, {}, {}, timer_} {}

void LookAhead::sample(std::span<const Scheduler::Planned> step, const Tensor& logits, const ops::SamplingBatch& batch,
                       ops::SamplingResult& result) {
  if (!runner_.start_sample(logits, batch, kFlight)) return runner_.sample(logits, batch, result);
  // While the device samples: pages may be taken from checkpoints.
  if (plan(step, batch.rows.size())) launch();
  runner_.finish_sample(batch, kFlight, result);
  if (!pending()) {
    if (speculator_ != nullptr) speculator_->drop_ahead();
    return;
  }
  timer_.start();
  if (speculator_ != nullptr) speculator_->start_ahead();
}

// Can the step behind this one be launched, before it has its tokens? Then its members, with their pages.
bool LookAhead::plan(std::span<const Scheduler::Planned> step, size_t sampling_rows) {
  members_.clear();
  stop_ids_.clear();
  const std::span<Choice* const> running = scheduler_.running();
  // Every choice that runs has its rows in the step, and nobody can join them.
  if (step.size() != running.size()) return false;
  const RunnerLimits& limits = runner_.limits();
  if (scheduler_.waiting() > 0 && std::ssize(running) < limits.max_num_seqs) return false;
  // The ring has all rows that the first pass behind reads, and those of a step never lie beside it.
  if (speculator_ != nullptr && limits.hidden_ring <= limits.pending_capacity + 1) return false;
  const auto cannot = [&] {
    members_.clear();
    return false;
  };
  int64_t left = std::ssize(step), budget = scheduler_.draft_budget(left);
  int32_t row = 0;
  for (const Scheduler::Planned& planned : step) {
    Choice& choice = *planned.choice;
    const Sequence& s = choice.sequence;
    const int64_t verified = std::ssize(choice.drafts), first_row = row;
    row += static_cast<int32_t>(1 + verified);
    if (s.outputs() == 0 || choice.left() != 0 || scheduler_.will_publish(planned, verified)) return cannot();
    // Who has read many rows gets their entries first.
    if (speculator_ != nullptr && planned.rows > 1) return cannot();
    if (choice.request.cancelled || s.size() + 1 >= choice.longest) continue;
    const int64_t size = s.size() + verified + 1;  // at most
    int64_t most = 0;
    if (speculator_ != nullptr)
      most = std::min({static_cast<int64_t>(speculator_->most_drafts()), budget / left, choice.longest - size - 1});
    while (most > 0 && !runner_.reserve(choice.sequence, size + most)) --most;
    most = std::max<int64_t>(0, most);
    budget -= most;
    --left;
    if (!scheduler_.reserve(choice, size)) return cannot();
    AheadMember& member = members_.emplace_back();
    member = {&choice, static_cast<int32_t>(first_row), verified, static_cast<int>(most), 0, 0, stop_ids_.size(), 0};
    if (s.outputs() + 1 >= s.params.min_tokens) {
      if (!s.params.ignore_eos) stop_ids_.insert(stop_ids_.end(), eos_token_ids_.begin(), eos_token_ids_.end());
      stop_ids_.insert(stop_ids_.end(), s.params.stop_token_ids.begin(), s.params.stop_token_ids.end());
    }
    member.stop_end = stop_ids_.size();
  }
  if (static_cast<size_t>(row) != sampling_rows) return cannot();
  if (std::ssize(stop_ids_) > runner_.limits().max_num_seqs * ModelRunner::kStopIds) return cannot();
  return !members_.empty();
}

// Nothing, if drafts are wanted that are made when the tokens are known, or the device does not make them.
void LookAhead::launch() {
  if (speculator_ != nullptr && !speculator_->choose_ahead(members_)) return members_.clear();
  timer_.launch();
  verified_.clear();
  for (const AheadMember& m : members_) {
    const Choice& choice = *m.choice;
    verified_.push_back({&choice.sequence, ModelRunner::sampled_at(kFlight, m.sampled), choice.drafts,
                         std::span(stop_ids_).subspan(m.stop_begin, m.stop_end - m.stop_begin),
                         choice.longest - choice.sequence.size() - 1, m.entry_row});
  }
  runner_.accept_ahead(verified_);
  if (speculator_ != nullptr && !speculator_->draft_ahead(members_)) {
    for (const AheadMember& m : members_) m.choice->ahead_drafts_at.clear();
    return members_.clear();
  }
  parts_.clear();
  shape_ = {};
  for (const AheadMember& m : members_) {
    parts_.push_back({&m.choice->sequence, m.verified, m.choice->ahead_drafts_at});
    shape_.add(1 + m.k, m.choice->sequence.size() + 1 + m.k, 1 + m.k);
  }
  hidden_ = runner_.forward_ahead(parts_);
}

AheadMember* LookAhead::find(const Choice& choice) {
  const auto found =
      std::find_if(members_.begin(), members_.end(), [&](const AheadMember& m) { return m.choice == &choice; });
  return found == members_.end() ? nullptr : &*found;
}

void LookAhead::forget(AheadMember& member) {
  if (speculator_ != nullptr) speculator_->drop_ahead(*member.choice);
  member.choice = nullptr;
}

bool LookAhead::took(Choice& choice, int accepted) {
  const AheadMember* member = find(choice);
  if (member == nullptr) return false;
  Sequence& s = choice.sequence;
  s.computed += accepted;
  s.accepted = accepted;
  if (member->k > 0) s.mtp_end = s.size();
  return true;
}

void LookAhead::ended(Choice& choice, int32_t token) {
  AheadMember* const member = find(choice);
  if (member == nullptr) return;
  const auto stop_ids = std::span(stop_ids_).subspan(member->stop_begin, member->stop_end - member->stop_begin);
  const bool inactive = token < 0 || choice.sequence.size() >= choice.longest ||
                        std::find(stop_ids.begin(), stop_ids.end(), token) != stop_ids.end();
  if (!inactive) return drop(choice);
  --choice.sequence.computed;
  forget(*member);
}

void LookAhead::drop(Choice& choice) {
  AheadMember* const member = find(choice);
  if (member == nullptr) return;
  choice.finite = false;  // nobody will look at the row: there is no checkpoint of it
  runner_.ring_written(choice.sequence, member->k);
  forget(*member);
}

LookAhead::Launched& LookAhead::begin() {
  begun_.plan.clear();
  begun_.rows.clear();
  begun_.hidden = hidden_;
  begun_.timer = timer_;
  begun_.shape = shape_;
  int64_t row = 0;
  for (const AheadMember& m : members_) {
    const int64_t first_row = row;
    row += 1 + m.k;
    if (m.choice == nullptr) continue;
    Choice& choice = *m.choice;
    choice.sequence.accepted = 0;
    choice.drafts.clear();
    choice.drafts_at.clear();
    std::swap(choice.drafts_at, choice.ahead_drafts_at);
    begun_.plan.push_back({&choice, 1});
    begun_.rows.push_back(first_row);
    runner_.ring_written(choice.sequence, m.k);
  }
  members_.clear();
  if (speculator_ != nullptr && speculator_->begin_ahead()) begun_.timer.start();
  return begun_;
}

}  // namespace calandra

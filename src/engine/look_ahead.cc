#include "engine/look_ahead.h"

#include <algorithm>

namespace calandra {

void LookAhead::sample(std::span<const Scheduler::Planned> step, const Tensor& logits, const ops::SamplingBatch& batch,
                       ops::SamplingResult& result) {
  if (plan(step, batch.rows.size())) {
    if (runner_.start_sample(logits, batch, kFlight)) {
      launch();
      return runner_.finish_sample(batch, kFlight, result);
    }
    members_.clear();
  }
  runner_.sample(logits, batch, result);
}

// Can the step behind this one be launched, before it has its tokens? Then its members, with their pages.
bool LookAhead::plan(std::span<const Scheduler::Planned> step, size_t sampling_rows) {
  members_.clear();
  stop_ids_.clear();
  const std::span<Choice* const> running = scheduler_.running();
  // Every choice that runs has one row in the step, and nobody can join them.
  if (step.size() != running.size() || step.size() != sampling_rows) return false;
  if (scheduler_.waiting() > 0 && std::ssize(running) < runner_.limits().max_num_seqs) return false;
  const auto cannot = [&] {
    members_.clear();
    return false;
  };
  for (size_t i = 0; i < step.size(); ++i) {
    Choice& choice = *step[i].choice;
    const Sequence& s = choice.sequence;
    if (s.outputs() == 0 || choice.left() != 0 || scheduler_.will_publish(step[i])) return cannot();
    if (choice.request.cancelled || s.size() + 1 >= choice.longest) continue;
    if (!scheduler_.reserve(choice, s.size() + 1)) return cannot();
    const size_t begin = stop_ids_.size();
    if (s.outputs() + 1 >= s.params.min_tokens) {
      if (!s.params.ignore_eos) stop_ids_.insert(stop_ids_.end(), eos_token_ids_.begin(), eos_token_ids_.end());
      stop_ids_.insert(stop_ids_.end(), s.params.stop_token_ids.begin(), s.params.stop_token_ids.end());
    }
    members_.push_back({&choice, static_cast<int32_t>(i), begin, stop_ids_.size()});
  }
  if (std::ssize(stop_ids_) > runner_.limits().max_num_seqs * ModelRunner::kStopIds) return cannot();
  return !members_.empty();
}

void LookAhead::launch() {
  parts_.clear();
  for (const Member& m : members_)
    parts_.push_back({&m.choice->sequence, ModelRunner::sampled_at(kFlight, m.sampled),
                      std::span(stop_ids_).subspan(m.stop_begin, m.stop_end - m.stop_begin)});
  hidden_ = runner_.forward_ahead(parts_);
}

LookAhead::Member* LookAhead::find(const Choice& choice) {
  const auto found =
      std::find_if(members_.begin(), members_.end(), [&](const Member& m) { return m.choice == &choice; });
  return found == members_.end() ? nullptr : &*found;
}

void LookAhead::ended(Choice& choice, int32_t token) {
  Member* const member = find(choice);
  if (member == nullptr) return;
  const auto stop_ids = std::span(stop_ids_).subspan(member->stop_begin, member->stop_end - member->stop_begin);
  if (token >= 0 && std::find(stop_ids.begin(), stop_ids.end(), token) == stop_ids.end()) return drop(choice);
  --choice.sequence.computed;  // the row was inactive
  member->choice = nullptr;
}

void LookAhead::drop(Choice& choice) {
  Member* const member = find(choice);
  if (member == nullptr) return;
  choice.finite = false;  // nobody will look at the row: there is no checkpoint of it
  member->choice = nullptr;
}

LookAhead::Launched& LookAhead::begin() {
  begun_.plan.clear();
  begun_.rows.clear();
  begun_.hidden = hidden_;
  for (size_t i = 0; i < members_.size(); ++i) {
    if (members_[i].choice == nullptr) continue;
    begun_.plan.push_back({members_[i].choice, 1});
    begun_.rows.push_back(static_cast<int64_t>(i));
  }
  members_.clear();
  return begun_;
}

}  // namespace calandra

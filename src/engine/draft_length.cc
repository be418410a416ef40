#include "engine/draft_length.h"

#include <algorithm>
#include <cmath>
#include <numeric>
#include <utility>

#include "base/check.h"

namespace calandra {
namespace {

constexpr double kGainToBegin = 0.02;   // of predicted tokens per second without drafts, to begin with them
constexpr double kProbeShare = 0.0015;  // of all time, for probes that nothing came of
constexpr double kTrialShare = 0.001;   // of all time, for other numbers of drafts
constexpr double kPlainShare = 0.004;   // of all time, for steps without drafts while there are some
constexpr double kLeastPlain = 0.2;     // of such a step, for one of them
constexpr int kFirstPlain = 4;          // steps with drafts before the first of them
constexpr int kSettling = 4;            // steps behind drafts that take longer than those that follow ...
constexpr double kMostSettling = 1.3;   // ... so many times at most,
constexpr int kMeasured = 2;            // and so many of those
constexpr int kMostAgain = 4;           // measured steps in a row, when they are faster than was predicted ...
constexpr double kFaster = 0.95;        // ... by so much
constexpr double kFillShare = 0.0005;   // of all time, for entries that no draft waits for
constexpr double kLoseInterest = 0.1;   // in probes and such entries, at a probe of each sequence without drafts ...
constexpr double kLeastInterest = 0.1;  // ... down to so much of their shares, as what is best changes
constexpr double kKeepDrafted = 0.999;  // per step, of what such entries took while drafts were made
constexpr double kSteps = 200;          // without any, that this begins with
constexpr double kMostTrialCost = 0.3;  // of the step: what is predicted to be so much slower is not tried
constexpr double kLeastCost = 0.01;     // of a plain step, for a probe or a trial: predictions are not exact
constexpr double kMostSaved = 2;        // plain steps, so that probes come one by one
constexpr double kMostCredit = 0.5;     // plain steps, for probes of sequences whose last one was accepted
constexpr int kRoom = 64;       // choices without drafts, or without room for any, before it is wanted less, or again
constexpr int kStands = 8;      // steps that a choice of no drafts stands for, twice as many if they read prompts
constexpr int kMostProbes = 8;  // sequences probed together: a draft pass costs little more for several

}  // namespace

DraftLength::DraftLength(const StepCost& target, const StepCost& draft_pass, const DraftLengthOptions& options)
    : target_(target), draft_pass_(draft_pass), options_(options) {
  CHECK_LE(0, options.most_drafts);
  CHECK_LE(options.most_drafts, kMostDraftPositions);
  CHECK_MSG(target.weight_bytes > 0, "a step that costs nothing");
  CHECK(options.speed.bytes_per_second > 0 && options.speed.flops_per_second > 0);
}

double DraftLength::step_seconds(const StepShape& shape) const {
  if (shape.rows == 0) return 0;
  return step_correction_.factor(shape.rows) * roofline_seconds(target_, options_.speed, shape);
}

double DraftLength::drafting_seconds(std::span<const StepShape> passes) const {
  double sum = 0;
  for (const StepShape& pass : passes) sum += roofline_seconds(draft_pass_, options_.speed, pass);
  return sum > 0 ? drafting_correction_.factor(passes[0].rows) * sum : 0;
}

void DraftLength::observe_step(const StepShape& shape, double seconds, bool plain) {
  const bool drafted = shape.rows > shape.sequences, settles = !drafted && settling_ > 0;
  settling_ = drafted ? kSettling : std::max(0, settling_ - 1);
  if (settles && !plain) return;
  if (plain) {
    const bool faster = seconds < kFaster * step_seconds(shape);
    plain_again_ = faster && plain_again_ < kMostAgain ? plain_again_ + 1 : 0;
  }
  if (shape.rows > 0) step_correction_.observe(shape.rows, roofline_seconds(target_, options_.speed, shape), seconds);
}

void DraftLength::observe_drafting(std::span<const StepShape> passes, double seconds) {
  double sum = 0;
  for (const StepShape& pass : passes) sum += roofline_seconds(draft_pass_, options_.speed, pass);
  if (sum > 0) drafting_correction_.observe(passes[0].rows, sum, seconds);
}

void DraftLength::observe_drafts(SequenceAcceptance& sequence, int drafted, int accepted) {
  stands_ = 0;
  acceptance_.observe(sequence, drafted, accepted);
  if (sequence.probe_seconds == 0) return;
  probe_seconds_ += accepted * token_seconds_;  // probes that pay are not rare
  interest_ = std::max(kLeastInterest, interest_ * (1 - kLoseInterest / plain_.tokens));
  sequence.probe_seconds = 0;
  sequence.probe_succeeded = accepted > 0;
}

void DraftLength::add(Plan& plan, const DraftCandidate& candidate, const Draft& draft) const {
  ++plan.step.rows;
  ++plan.step.logit_rows;
  plan.step.row_keys += candidate.context;
  plan.tokens += draft.gain;
  if (plan.passes.size() <= static_cast<size_t>(draft.position)) plan.passes.resize(draft.position + 1);
  plan.passes[draft.position].add(draft.position == 0 ? 1 + candidate.catch_up_rows : 1, candidate.context, 1);
}

// More rows never take less time, whatever noise was measured.
double DraftLength::seconds(const Plan& plan) const {
  return std::max(plain_seconds_, step_seconds(plan.step)) + drafting_seconds(plan.passes);
}

void DraftLength::begin(std::span<const DraftCandidate> candidates) {
  plain_.step = {};
  plain_.passes.clear();
  plain_.tokens = static_cast<double>(candidates.size());
  for (const DraftCandidate& candidate : candidates) plain_.step.add(1, candidate.context, 1);
  plain_seconds_ = step_seconds(plain_.step);
  token_seconds_ = plain_seconds_ / plain_.tokens;
}

// All drafts that could be made, the best first; of one sequence in order, since gains do not grow with the position.
void DraftLength::rank(std::span<const DraftCandidate> candidates) {
  drafts_.clear();
  for (size_t i = 0; i < candidates.size(); ++i) {
    const int count = std::min(options_.most_drafts, candidates[i].most_drafts);
    const PerPosition probabilities = acceptance_.estimate(*candidates[i].acceptance);
    double gain = 1;
    for (int j = 0; j < count; ++j) drafts_.push_back({gain *= probabilities[j], static_cast<int32_t>(i), j});
  }
  std::sort(drafts_.begin(), drafts_.end(), [](const Draft& a, const Draft& b) {
    if (a.gain != b.gain) return a.gain > b.gain;
    return a.position != b.position ? a.position < b.position : a.candidate < b.candidate;
  });
}

// What a probe or a trial may take: passes of more rows than ever are come to by doubling, as steps are.
bool DraftLength::reaches_pass(int64_t rows) const {
  return draft_pass_.weight_bytes == 0 || drafting_correction_.reaches(rows);
}

// How much of a step is uncertain of the difference between its time with so many rows and without drafts.
double DraftLength::doubt(int64_t rows) const {
  return std::hypot(step_correction_.doubt(plain_.step.rows), step_correction_.doubt(rows));
}

// For every number of draft passes, the best drafts that it allows are taken one by one. Long lists are looked at in
// steps of an eighth, finer than the times are known. Steps of more rows than ever are come to by doubling.
void DraftLength::choose_best(std::span<const DraftCandidate> candidates, std::vector<int>& k) {
  int depth = 0;
  for (const Draft& draft : drafts_) depth = std::max(depth, draft.position + 1);
  const double plain = plain_.tokens / plain_seconds_;
  double best = plain;
  int64_t best_rows = 0;
  int best_depth = 0, best_count = 0;
  for (int d = 1; d <= depth; ++d) {
    plan_ = plain_;
    const auto all = std::count_if(drafts_.begin(), drafts_.end(), [&](const Draft& x) { return x.position < d; });
    int count = 0, next = 1;
    bool deeper = false;  // than the plans of fewer passes, which were looked at before
    for (const Draft& draft : drafts_) {
      if (draft.position >= d) continue;
      add(plan_, candidates[draft.candidate], draft);
      deeper |= draft.position + 1 == d;
      if (++count < next && count < all) continue;
      next = count + 1 + count / 8;
      if (!deeper) continue;
      if (!step_correction_.reaches(plan_.step.rows)) break;
      const double speed = plan_.tokens / seconds(plan_);
      if (speed > best) {
        best = speed;
        best_depth = d;
        best_count = count;
        best_rows = plan_.step.rows;
      }
    }
  }
  const double least = drafting_ ? 0 : kGainToBegin;
  // What is not sure to be faster is not taken. Drafts also take the entries of all prompts that are read meanwhile.
  const double entries = entry_seconds_ / (drafted_seconds_ + kSteps * plain_seconds_);
  if (best_count > 0 && best < plain * (1 + least + entries + doubt(best_rows))) best_count = best_depth = 0;
  chosen_ = plain_;
  for (const Draft& draft : drafts_) {
    if (best_count == 0) break;
    if (draft.position >= best_depth) continue;
    add(chosen_, candidates[draft.candidate], draft);
    ++k[draft.candidate];
    --best_count;
  }
  if (best_depth > 0 && !drafting_) {
    drafted_steps_ = 0;
    next_plain_ = kFirstPlain;
    plain_steps_ = plain_again_ = 0;
  }
  drafting_ = best_depth > 0;
  if (!drafting_) return;
  since_drafts_ = 0;
  interest_ = 1;
  entry_seconds_ *= kKeepDrafted;
  drafted_seconds_ = kKeepDrafted * drafted_seconds_ + seconds(chosen_);
}

// Now and then no drafts: all is compared with the time without, which changes as machines do. When it was less than
// was predicted, at once again: one step could be chance. After drafts have begun it is soon, unless time is owed for
// such steps, and then after twice as many each time: a time that was measured too long must not make its own
// correction look expensive. Caches still hold what drafts needed: where they gain no more than that may cost, a few
// steps are let go by before one is measured.
bool DraftLength::measure_plain() {
  const double without = seconds(chosen_), speed = chosen_.tokens / without;
  const bool surely = speed * plain_seconds_ > kMostSettling * plain_.tokens;
  const int steps = surely ? 1 : settling_ + kMeasured;
  const double cost = steps * std::max(plain_seconds_ - plain_.tokens / speed, kLeastPlain * plain_seconds_);
  plain_saved_ = std::min(plain_saved_ + kPlainShare * without, std::max(cost, kMostSaved * plain_seconds_));
  if (plain_steps_ == 0) {
    const bool due = ++drafted_steps_ >= next_plain_;
    const bool pays = due ? surely || plain_saved_ >= 0 : plain_saved_ >= cost;
    if (plain_again_ == 0 && !pays) return false;
    plain_saved_ = std::max(surely ? 0 : -cost, plain_saved_ - cost);
    if (due) next_plain_ = 2 * drafted_steps_;
    plain_steps_ = steps;
  }
  measuring_plain_ = --plain_steps_ < kMeasured;
  return true;
}

// Now and then another number of drafts, the same for all sequences, in turn: how long it takes is known from measuring
// only, and a wrong belief that keeps it from being chosen would keep it from being measured.
bool DraftLength::try_another(std::span<const DraftCandidate> candidates, std::vector<int>& k) {
  const double without = seconds(chosen_), speed = chosen_.tokens / without;
  trial_seconds_ += kTrialShare * without;
  for (int tried = 0; tried < options_.most_drafts; ++tried, next_trial_ = 1 + next_trial_ % options_.most_drafts) {
    plan_ = plain_;
    for (const Draft& draft : drafts_)
      if (draft.position < next_trial_) add(plan_, candidates[draft.candidate], draft);
    const double added = seconds(plan_) - plan_.tokens / speed + doubt(plan_.step.rows) * plain_seconds_;
    const double cost = std::max(added, kLeastCost * plain_seconds_);
    if (plan_.step.rows == chosen_.step.rows || cost > kMostTrialCost * without) continue;
    if (!reaches_pass(plan_.passes[0].rows)) continue;
    trial_seconds_ = std::min(trial_seconds_, std::max(cost, kMostSaved * plain_seconds_));
    if (trial_seconds_ < cost) return false;
    trial_seconds_ -= cost;
    for (size_t i = 0; i < k.size(); ++i) k[i] = std::min(next_trial_, candidates[i].most_drafts);
    next_trial_ = 1 + next_trial_ % options_.most_drafts;
    return true;
  }
  return false;
}

// One draft for the sequences that have been without the longest, when enough time is saved up for it; and for those
// whose last probe was accepted, at once and on credit: a sequence that has become good shows it in a few steps.
void DraftLength::probe(std::span<const DraftCandidate> candidates, std::vector<int>& k) {
  idle_.clear();
  for (size_t i = 0; i < candidates.size(); ++i)
    if (k[i] == 0 && candidates[i].most_drafts > 0) idle_.push_back(static_cast<int32_t>(i));
  const auto again =
      std::partition(idle_.begin(), idle_.end(), [&](int32_t i) { return candidates[i].acceptance->probe_succeeded; });
  const auto count = std::min<int64_t>(kMostProbes, idle_.end() - again);
  std::partial_sort(again, again + count, idle_.end(), [&](int32_t a, int32_t b) {
    const int64_t a_steps = candidates[a].acceptance->idle_steps, b_steps = candidates[b].acceptance->idle_steps;
    return a_steps != b_steps ? a_steps > b_steps : a < b;
  });
  auto end = again;
  for (int64_t rows = 0; end != again + count; ++end) {
    rows += 1 + candidates[*end].catch_up_rows;
    if (end != again && !reaches_pass(rows)) break;
  }
  idle_.erase(end, idle_.end());
  probe_seconds_ += interest_ * kProbeShare * seconds(chosen_);
  const std::span<const int32_t> all(idle_);
  const auto succeeded = static_cast<size_t>(again - idle_.begin());
  pay_for_probes(candidates, all.first(succeeded), true, k);
  pay_for_probes(candidates, all.subspan(succeeded), false, k);
}

void DraftLength::pay_for_probes(std::span<const DraftCandidate> candidates, std::span<const int32_t> probes,
                                 bool on_credit, std::vector<int>& k) {
  if (probes.empty()) return;
  const auto count = static_cast<double>(probes.size());
  plan_ = chosen_;
  for (const int32_t i : probes) add(plan_, candidates[i], {0, i, 0});
  const double added = seconds(plan_) - seconds(chosen_) + doubt(plan_.step.rows) * plain_seconds_;
  const double each = std::max(added / count, kLeastCost * plain_seconds_);
  const double cost = each * count;
  probe_seconds_ = std::min(probe_seconds_, std::max(cost, kMostSaved * plain_seconds_));
  if (probe_seconds_ < (on_credit ? -interest_ * kMostCredit * plain_seconds_ : cost)) return;
  probe_seconds_ -= cost;
  for (const int32_t i : probes) {
    k[i] = 1;
    candidates[i].acceptance->probe_seconds = each;
    candidates[i].acceptance->probe_succeeded = false;
  }
  std::swap(chosen_, plan_);
}

bool DraftLength::fills(const StepShape& pass) {
  if (!options_.adaptive || !decided_) return true;
  const double cost = drafting_seconds({&pass, 1});
  if (!drafting_ && fill_seconds_ < cost) return false;
  filling_seconds_ += cost;
  pay_for_filling(cost);
  return true;
}

void DraftLength::observe_filling(std::optional<double> seconds) {
  const double predicted = std::exchange(filling_seconds_, 0);
  if (seconds && decided_) pay_for_filling(*seconds - predicted);
}

void DraftLength::pay_for_filling(double seconds) {
  if (drafting_)
    entry_seconds_ += seconds;
  else
    fill_seconds_ -= seconds;
}

bool DraftLength::wants_room() const {
  return !options_.adaptive || !decided_ || since_drafts_ < kRoom || without_room_ >= kRoom;
}

// No drafts stay the best for some steps, unless others can be had or something was learned of them: a choice costs as
// much as a draft saves, over the many steps without. The next one is made in a step without prompts, if there is one,
// as only there other numbers of drafts can be tried.
bool DraftLength::stands(std::span<const DraftCandidate> candidates, bool reads_prompts) {
  int64_t could_be = 0;
  for (const DraftCandidate& candidate : candidates) could_be += candidate.most_drafts;
  without_room_ = could_be > 0 ? 0 : without_room_ + 1;
  const bool same = std::ssize(candidates) == idle_sequences_ && could_be == idle_drafts_;
  idle_sequences_ = std::ssize(candidates);
  idle_drafts_ = could_be;
  if (!same) stands_ = 0;
  if (stands_ <= (reads_prompts ? 0 : kStands)) return false;
  --stands_;
  return true;
}

void DraftLength::choose(std::span<const DraftCandidate> candidates, bool reads_prompts, std::vector<int>& k) {
  k.assign(candidates.size(), 0);
  measuring_plain_ = false;
  for (const DraftCandidate& candidate : candidates) CHECK_LE(0, candidate.most_drafts);
  if (candidates.empty() || options_.most_drafts == 0) return;
  if (!options_.adaptive) {
    for (size_t i = 0; i < k.size(); ++i) k[i] = std::min(options_.most_drafts, candidates[i].most_drafts);
    return;
  }
  begin(candidates);
  if (step_correction_.guesses(plain_.step.rows)) return;
  fill_seconds_ += interest_ * kFillShare * plain_seconds_;
  decided_ = true;
  ++since_drafts_;
  if (stands(candidates, reads_prompts)) {
    probe_seconds_ += interest_ * kProbeShare * plain_seconds_;
    if (!reads_prompts) trial_seconds_ += kTrialShare * plain_seconds_;
    age(candidates, k);
    return;
  }
  rank(candidates);
  choose_best(candidates, k);
  stands_ = drafting_ ? 0 : 2 * kStands;
  for (size_t i = 0; i < k.size(); ++i)
    if (k[i] > 0) {
      candidates[i].acceptance->probe_seconds = 0;
      candidates[i].acceptance->probe_succeeded = false;
    }
  if (drafting_ && !reads_prompts && measure_plain())
    std::fill(k.begin(), k.end(), 0);
  else if (reads_prompts || !try_another(candidates, k))
    probe(candidates, k);
  age(candidates, k);
}

void DraftLength::age(std::span<const DraftCandidate> candidates, const std::vector<int>& k) {
  int most = 0;
  for (size_t i = 0; i < k.size(); ++i) {
    if (candidates[i].most_drafts > 0) acceptance_.age(*candidates[i].acceptance, k[i]);
    most = std::max(most, k[i]);
  }
  acceptance_.age_means(most);
}

}  // namespace calandra

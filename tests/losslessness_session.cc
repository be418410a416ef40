#include "tests/losslessness_session.h"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>

#include "base/philox.h"

namespace calandra::lossless {

int64_t Dice::in(int64_t low, int64_t high) {
  const auto words = philox4x32({static_cast<uint32_t>(state_ >> 32), 0, 0, 2}, state_);
  state_ = words[0] | uint64_t{words[1]} << 32;
  return low + static_cast<int64_t>(words[2] % static_cast<uint64_t>(high - low + 1));
}

std::string Drafting::name() const {
  if (k == 0) return "no drafts";
  return fmt::format("{} {}{}{}", method == DraftMethod::kMtp ? "MTP" : "n-gram",
                     adaptive ? "adaptive, at most " : "k = ", k, ranges.empty() ? "" : ", by batch");
}

std::string Setting::name() const {
  return fmt::format(
      "{}{}; cache {}; batch {}; {} preemptions; seed {} (page {}, {} pages, budget {}, {} slots, ring {})",
      drafting.name(), async ? ", ahead" : "", cache ? "on" : "off", batch, preemptions, seed, limits.block_size,
      limits.num_blocks, limits.max_num_batched_tokens, limits.num_state_slots, limits.hidden_ring);
}

void ample_limits(Setting& setting, int64_t longest) {
  const Drafting& drafting = setting.drafting;
  const int64_t sequences = std::max<int64_t>(setting.batch, 1);
  RunnerLimits& l = setting.limits;
  l.max_num_seqs = sequences;
  l.max_num_batched_tokens = std::max<int64_t>(128, 10 * sequences);
  l.max_model_len = longest + 8;
  l.block_size = 16;
  l.num_state_slots = sequences + 1 + 24;
  l.num_blocks = (sequences + 24) * ((l.max_model_len + 15) / 16);
  l.pending_capacity = drafting.k;
  l.max_cuts = 16;
  l.hidden_ring = drafting.k > 0 && drafting.method == DraftMethod::kMtp ? 32 : 0;
  setting.checkpoint_bytes = setting.cache ? int64_t{1} << 30 : 0;
  setting.checkpoint_interval = 16;
}

void draw_limits(Setting& setting, int64_t longest) {
  ample_limits(setting, longest);
  Dice dice(setting.seed * 977 + 1);
  const Drafting& drafting = setting.drafting;
  RunnerLimits& l = setting.limits;
  const int64_t sequences = l.max_num_seqs;
  l.block_size = dice.chance(50) ? 16 : dice.chance(50) ? 4 : 1;
  const int64_t whole = (l.max_model_len + l.block_size - 1) / l.block_size;
  // Sometimes too few for all, so that the scheduler preempts by itself.
  l.num_blocks = dice.chance(60) ? (sequences + 8) * whole : (sequences + 1) * whole / 2 + 1;
  l.num_blocks = std::max(l.num_blocks, whole);
  l.num_state_slots = sequences + (dice.chance(50) ? 24 : dice.in(0, 3));
  l.max_num_batched_tokens = dice.chance(40) ? dice.in(1, 20) : dice.in(40, 200);
  l.max_cuts = dice.chance(50) ? 16 : dice.in(0, 2);
  if (l.hidden_ring > 0) l.hidden_ring = dice.chance(70) ? 32 : drafting.k + dice.in(1, 3);
  setting.checkpoint_interval = dice.chance(50) ? 4096 : dice.in(3, 20);
  if (setting.cache && dice.chance(30)) setting.host_checkpoint_bytes = int64_t{1} << 30;
}

std::string DraftLedger::note(const std::string& request, int32_t choice, int64_t known,
                              const std::vector<int32_t>& drafts) {
  const auto [at, is_new] = drafts_.try_emplace({request, choice, known}, drafts);
  if (is_new) return "";
  ++compared_;
  std::vector<int32_t>& before = at->second;
  const size_t both = std::min(before.size(), drafts.size());
  if (!std::equal(before.begin(), before.begin() + static_cast<std::ptrdiff_t>(both), drafts.begin()))
    return fmt::format("'{}', choice {}, after {} tokens: drafts {} and before {}", request, choice, known,
                       fmt::join(drafts, " "), fmt::join(before, " "));
  if (drafts.size() > before.size()) before = drafts;
  return "";
}

void Tally::differs(const std::string& what) {
  if (differences++ == 0) first = what;  // also where a draft's is noted
}

void Tally::draft_differs(const std::string& what) {
  ++draft_differences;
  if (first.empty()) first = what;
}

std::string Tally::words() const {
  double widest = 0, share = 0;
  for (const Parting& p : partings) widest = std::max(widest, p.gap), share = std::max(share, p.gap / p.explained);
  std::string parted = partings.empty()
                           ? ""
                           : fmt::format(", {} part at near ties (gaps up to {:.3f}, {:.2f} of what rounding explains)",
                                         partings.size(), widest, share);
  if (left > 0) parted += fmt::format(", {} broken off", left);
  if (at_edges > 0) parted += fmt::format(", {} at the edge of a filter", at_edges);
  if (at_jumps > 0) parted += fmt::format(", {} where a disturbed run jumps as far", at_jumps);
  return fmt::format(
      "{} runs, {} differences{}; {} tokens, {} steps, {} of them launched ahead, {} preemptions, {} hits of {} "
      "tokens, "
      "{} evictions, {} restores, "
      "{} of {} drafts accepted; {} runs of drafts compared, {} differ, {} with incomplete entries",
      runs, differences, parted, tokens, steps, steps_ahead, preemptions, hits, hit_tokens, evictions, restores,
      accepted, drafted, drafts_compared, draft_differences, incomplete);
}

Session::Session(Subject& subject, Setting setting, Tally& tally, DraftLedger* ledger)
    : subject_(subject),
      setting_(std::move(setting)),
      tally_(tally),
      ledger_(ledger),
      dice_(setting_.seed * 31 + 7),
      runner_(*subject.model, *subject.backend, setting_.limits) {
  EngineOptions options;
  options.eos_token_ids = subject.config.eos_token_ids;
  options.seed = 1;
  options.thinking = thinking_of(subject);
  options.async_scheduling = setting_.async;
  options.scheduler.checkpoint_interval = setting_.checkpoint_interval;
  if (setting_.cache) options.checkpoint_bytes = setting_.checkpoint_bytes;
  if (setting_.cache) options.host_checkpoint_bytes = setting_.host_checkpoint_bytes;
  const Drafting& drafting = setting_.drafting;
  if (drafting.k > 0) {
    SpeculativeConfig& config = options.speculative.emplace();
    config.method = drafting.method;
    config.num_speculative_tokens = drafting.k;
    config.adaptive = drafting.adaptive;
    config.batch_ranges = drafting.ranges;
    config.prompt_lookup_min = 2;
    config.prompt_lookup_max = 4;
  }
  // Every look at the clock finds another duration, so that adaptive lengths change.
  options.clock = [this, dice = Dice(setting_.seed + 3)]() mutable {
    return now_ += 1e-6 * static_cast<double>(dice.in(1, 400));
  };
  core_ = std::make_unique<EngineCore>(runner_, subject.text(), options);
}

Session::~Session() {
  const EngineStats& stats = core_->stats();
  tally_.steps += stats.steps;
  tally_.steps_ahead += stats.steps_ahead;
  tally_.preemptions += stats.preemptions;
  tally_.hits += stats.prefix.hits;
  tally_.hit_tokens += stats.prefix.hit_tokens;
  tally_.evictions += stats.prefix.evictions;
  tally_.restores += stats.prefix.restores;
  tally_.drafted += stats.draft_tokens;
  tally_.accepted += stats.accepted_tokens;
  if (core_->cache() != nullptr) {
    if (const std::string wrong = core_->cache()->check_invariants(); !wrong.empty()) tally_.differs("cache: " + wrong);
    core_->cache()->clear();
  }
  // Everything was given back.
  if (runner_.pages().free_pages() != runner_.pages().pages() ||
      runner_.slots().free_slots() != runner_.slots().slots())
    tally_.differs(setting_.name() + ": pages or slots are missing at the end");
}

void Session::run(const std::vector<const AskedRequest*>& requests, bool together) {
  size_t next = 0;
  int64_t stood = 0;
  while (next < requests.size() || !core_->idle()) {
    if (setting_.batch == 1 && !together) {
      if (core_->idle()) submit(*requests[next++]);
    } else {
      while (next < requests.size() && (together || dice_.chance(setting_.arrivals))) submit(*requests[next++]);
    }
    if (setting_.leave > 0) cancel_some();
    if (before_step) before_step(*this);
    const bool ran = core_->step();
    stood = ran || core_->idle() ? 0 : stood + 1;
    if (stood > 3) {
      tally_.differs(setting_.name() + ": requests wait, and nothing runs");
      return;
    }
    ++step_;
    if (after_step) after_step(*this);
    if (setting_.preemptions > 0) preempt_some();
    if (evicts && dice_.chance(20)) core_->cache()->reclaim(0, runner_.slots().free_slots() + dice_.in(1, 3), "");
  }
  explain_partings();
}

void Session::evict_some() {
  PrefixCache& cache = *core_->cache();
  cache.reclaim(0, std::min(runner_.slots().slots(), runner_.slots().free_slots() + cache.size() / 2), "");
}

void Session::submit(const AskedRequest& asked) {
  const auto added =
      core_->add(copy_of(asked.request), [this](const TokenEvent& event) { return hear(event.request, event); });
  if (const auto* error = std::get_if<RequestError>(&added)) {
    tally_.differs(fmt::format("{}: '{}' was refused: {}", setting_.name(), asked.name, error->message));
    return;
  }
  const auto n = static_cast<size_t>(asked.request.params.n);
  Running& running = running_[std::get<RequestId>(added)];
  running = {&asked, std::vector<std::string>(n), std::vector<int64_t>(n, -1), std::vector<int>(n)};
  if (setting_.leave > 0 && dice_.chance(setting_.leave)) running.leaves_at = step_ + dice_.in(0, 30);
}

// Half of those who leave are noticed when the next token is told.
void Session::cancel_some() {
  for (const auto& [id, running] : running_)
    if (running.leaves_at <= step_ && id % 2 == 0) core_->cancel(id);
}

bool Session::hear(RequestId id, const TokenEvent& event) {
  Running& running = running_.at(id);
  const auto choice = static_cast<size_t>(event.choice - running.asked->request.first_choice);
  running.text[choice] += event.text;
  ++tally_.tokens;
  if (ledger_ != nullptr && running.noted_step[choice] != step_) note_drafts(running, event);
  running.noted_step[choice] = step_;
  const bool leaves = running.leaves_at <= step_;
  if (!event.finished) return !leaves;
  if (leaves && event.answer.finish_reason == FinishReason::kCancelled) {
    ++tally_.left;
    const std::vector<int32_t>& got = event.answer.token_ids;
    const std::vector<int32_t>& plain = running.asked->plain[choice].token_ids;
    if (got.size() > plain.size() || !std::equal(got.begin(), got.end(), plain.begin()))
      tally_.differs(fmt::format("{}: '{}', choice {}: what came before it was cancelled", setting_.name(),
                                 running.asked->name, choice));
  } else {
    ++tally_.runs;
    compare(running, choice, event.answer);
  }
  if (++running.finished == running.asked->request.params.n) running_.erase(id);
  return !leaves;
}

void Session::compare(const Running& running, size_t choice, const Answer& got) {
  const Answer& plain = running.asked->plain[choice];
  std::string what;
  if (subject_.one_order || got.error)
    what = difference(got, plain);
  else if (got.token_ids != plain.token_ids)
    parted_.push_back({running.asked, choice, got});
  if (what.empty() && running.text[choice] != got.text) what = "streamed text differs from the answer's";
  if (!what.empty())
    tally_.differs(fmt::format("{}: '{}', choice {}: {}", setting_.name(), running.asked->name, choice, what));
}

void Session::explain_partings() {
  for (const Parted& parted : parted_) {
    const Parting parting = parting_of(subject_, *parted.asked, parted.choice, parted.got);
    if (!parting.is_near_tie())
      tally_.differs(fmt::format(
          "{}: '{}', choice {}: token {} by a gap of {}, of which rounding explains {}, and {} in disturbed runs",
          setting_.name(), parting.request, parted.choice, parting.token, parting.gap, parting.explained,
          parting.disturbed));
    else if (parting.edge)
      ++tally_.at_edges;
    else if (parting.gap > parting.explained)
      ++tally_.at_jumps;
    else
      tally_.partings.push_back(parting);
  }
  parted_.clear();
}

// At the first token of a step: the drafts that the step verifies.
void Session::note_drafts(Running& running, const TokenEvent& event) {
  for (const Choice* choice : core_->scheduler().running()) {
    if (choice->request.id != event.request || choice->sequence.choice != event.choice || choice->drafts.empty())
      continue;
    if (choice->sequence.mtp_begin > 1) {
      ++tally_.incomplete;
      if (!strict) continue;
    }
    const int64_t before = ledger_->compared();
    const std::string what =
        ledger_->note(running.asked->name, event.choice, choice->sequence.size() - 1, choice->drafts);
    tally_.drafts_compared += ledger_->compared() - before;
    if (!what.empty()) tally_.draft_differs(setting_.name() + ": " + what);
  }
}

void Session::preempt_some() {
  std::vector<std::pair<RequestId, int32_t>> chosen;
  for (const Choice* choice : core_->scheduler().running()) {
    Running& running = running_.at(choice->request.id);
    const auto at = static_cast<size_t>(choice->sequence.choice - running.asked->request.first_choice);
    if (running.preempted[at] >= setting_.preemptions || !dice_.chance(35)) continue;
    ++running.preempted[at];
    chosen.push_back({choice->request.id, static_cast<int32_t>(at)});
  }
  for (const auto& [id, at] : chosen) core_->preempt(id, at);
}

}  // namespace calandra::lossless

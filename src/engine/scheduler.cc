#include "engine/scheduler.h"

#include <algorithm>

namespace calandra {
namespace {

// Tokens that a checkpoint must save beyond the one before it, to be taken at a place that nobody asked for.
constexpr int64_t kLeastSaved = 16;

bool reads_prompt(const Choice& choice) {
  return choice.sequence.outputs() == 0 && choice.sequence.computed < choice.sequence.prompt_size;
}

// Nothing else, or nothing of another's making, will do: something is wanted of every row of the prompt, or the request
// asks for it.
bool computes_all_rows(const Choice& choice) {
  const Request& request = choice.request.request;
  return choice.sequence.params.prompt_logprobs || request.pooling == Pooling::kMean ||
         request.skip_reading_prefix_cache;
}

int64_t common_prefix(std::span<const TokenKey> a, std::span<const TokenKey> b) {
  const size_t size = std::min(a.size(), b.size());
  return std::mismatch(a.begin(), a.begin() + static_cast<std::ptrdiff_t>(size), b.begin()).first - a.begin();
}

}  // namespace

Scheduler::Scheduler(ModelRunner& runner, PrefixCache* cache, SchedulerOptions options,
                     CompleteEntries complete_entries, Prepare prepare)
    : runner_(runner),
      cache_(cache),
      options_(options),
      complete_entries_(std::move(complete_entries)),
      prepare_(std::move(prepare)),
      longest_(std::min(runner.limits().max_model_len, runner.limits().num_blocks * runner.limits().block_size)),
      waiting_(Earlier{options.policy == SchedulingPolicy::kPriority}) {}

Scheduler::~Scheduler() { drop_plan(); }

// Slots for checkpoints that were not published: the step did not come to its end.
void Scheduler::drop_plan() {
  for (const Planned& planned : plan_)
    for (const ModelRunner::Cut& cut : planned.cuts) runner_.slots().release(cut.slot);
  plan_.clear();
}

int64_t Scheduler::pages_for(int64_t tokens) const { return calandra::pages_for(tokens, runner_.limits().block_size); }

std::span<const TokenKey> Scheduler::keys_of(Choice& choice, int64_t tokens) {
  const Sequence& s = choice.sequence;
  if (choice.keys.empty()) {
    std::vector<PictureKey> pictures;
    for (const PictureRows& p : choice.request.request.pictures)
      pictures.push_back({p.begin, p.count, p.input->content_hash, p.input->grid, p.first_row});
    choice.keys = prefix_keys(std::span(s.tokens).first(s.prompt_size), pictures);
  }
  for (int64_t i = std::ssize(choice.keys); i < tokens; ++i)
    choice.keys.push_back(static_cast<TokenKey>(static_cast<uint32_t>(s.tokens[i])));
  return std::span(choice.keys).first(static_cast<size_t>(tokens));
}

void Scheduler::add(Choice& choice) {
  choice.status = Choice::Status::kWaiting;
  waiting_.insert(&choice);
}

void Scheduler::unpin(Choice& choice) {
  if (choice.source) cache_->unpin(*choice.source);
  choice.source.reset();
}

bool Scheduler::wants_checkpoint(const Choice& choice) const {
  const Sequence& s = choice.sequence;
  // A slot that others read too, or that the next step has yet to write, is not this choice's to give away.
  return cache_ != nullptr && choice.request.caches && choice.finite && !choice.answer.error && s.computed > 0 &&
         s.source == s.slot && runner_.slots().references(s.slot) == 1;
}

// The cache takes the slot over, and references to the pages.
void Scheduler::insert(Choice& choice, int64_t P, int32_t slot) {
  cache_->insert(choice.request.space, keys_of(choice, P), runner_.checkpoint(choice.sequence, P, slot));
}

void Scheduler::remove(Choice& choice, bool keep) {
  if (choice.status == Choice::Status::kWaiting) waiting_.erase(&choice);
  if (choice.status == Choice::Status::kRunning) {
    std::erase(running_, &choice);
    unpin(choice);
    if (keep && wants_checkpoint(choice)) {
      runner_.slots().add_reference(choice.sequence.slot);
      insert(choice, choice.sequence.computed, choice.sequence.slot);
    }
    runner_.release(choice.sequence);
    if (cache_ != nullptr) cache_->enforce_limits(choice.request.space);
  }
  choice.status = Choice::Status::kFinished;
}

void Scheduler::preempt(Choice& choice) {
  CHECK(choice.status == Choice::Status::kRunning);
  Choice* const one = &choice;
  if (wants_checkpoint(choice)) complete_entries_({&one, 1});
  remove(choice, true);
  ++stats_.preemptions;
  ++choice.answer.preemptions;
  preempted_ = true;
  add(choice);
}

void Scheduler::fork(Choice& prompt, std::span<Choice* const> choices) {
  const auto room = [&] { return running().size() < static_cast<size_t>(runner_.limits().max_num_seqs); };
  // Whoever goes on from the prompt's slot needs another one to write, the first choice too.
  const auto fresh = take_slot(prompt);
  if (fresh) runner_.separate(prompt.sequence, *fresh);
  for (Choice* choice : choices) {
    if (choice == &prompt) continue;
    bool runs = fresh && room() && runner_.fork(prompt.sequence, choice->sequence);
    if (fresh && room() && !runs && cache_ != nullptr && cache_->reclaim(1, 1, choice->request.space))
      runs = runner_.fork(prompt.sequence, choice->sequence);
    if (!runs) {
      add(*choice);
      continue;
    }
    choice->status = Choice::Status::kRunning;
    choice->next_interval = prompt.next_interval;
    running_.insert(std::upper_bound(running_.begin(), running_.end(), choice, waiting_.key_comp()), choice);
  }
}

std::optional<int32_t> Scheduler::take_slot(const Choice& choice) {
  if (auto slot = runner_.slots().take()) return slot;
  if (cache_ == nullptr || !cache_->reclaim(0, 1, choice.request.space)) return std::nullopt;
  return runner_.slots().take();
}

bool Scheduler::reserve(Choice& choice, int64_t tokens) {
  while (!runner_.reserve(choice.sequence, tokens)) {
    const int64_t missing = pages_for(tokens) - std::ssize(choice.sequence.block_table);
    if (cache_ == nullptr || !cache_->reclaim(missing, 0, choice.request.space)) return false;
  }
  return true;
}

// Pages for the choice's tokens, whatever others lose. False: the choice itself was preempted.
bool Scheduler::grow(Choice& choice, int64_t tokens) {
  while (!reserve(choice, tokens)) {
    Choice& last = *running_.back();
    preempt(last);
    if (&last == &choice) return false;
  }
  return true;
}

std::span<Scheduler::Planned> Scheduler::schedule(bool room_for_drafts) {
  plan_step(room_for_drafts);
  // Who ran alone may have lost its pages to its own pinned checkpoint; it starts again at once.
  if (plan_.empty() && preempted_) plan_step(room_for_drafts);
  return plan_;
}

void Scheduler::plan_step(bool room_for_drafts) {
  drop_plan();
  preempted_ = false;
  int64_t budget = runner_.limits().max_num_batched_tokens;
  for (size_t i = 0; i < running_.size(); ++i) {  // grow() may take away those behind
    Choice& choice = *running_[i];
    if (!choice.decodes() || !grow(choice, choice.sequence.size())) continue;
    plan_.push_back({&choice, 1});
    --budget;
  }
  plan_drafts(room_for_drafts);
  for (const Planned& planned : plan_) budget -= planned.most_drafts;
  int64_t reading = 0;
  for (const Choice* choice : running_) reading += !choice->decodes();
  for (Choice* choice : running_)
    if (!choice->decodes()) plan_prompt(*choice, budget, --reading > 0 || !waiting_.empty());
  if (!preempted_) admit(budget);
  plan_rest(budget);
  plan_cuts();
}

// What decoding left, but never more than half of it while others read prompts.
int64_t Scheduler::draft_budget(int64_t decoding) const {
  const int64_t budget = runner_.limits().max_num_batched_tokens - decoding;
  return others_than(decoding) ? budget / 2 : budget;
}

// Are there others than those that decode?
bool Scheduler::others_than(int64_t decoding) const { return decoding < std::ssize(running_) || !waiting_.empty(); }

// Drafts never take a page that is not free.
void Scheduler::plan_drafts(bool beside_prompts) {
  int64_t left = std::ssize(plan_), budget = draft_budget(left);
  if (options_.most_drafts == 0 || (!beside_prompts && others_than(left))) return;
  for (Planned& planned : plan_) {
    const Choice& choice = *planned.choice;
    Sequence& s = planned.choice->sequence;
    int64_t most =
        std::min({static_cast<int64_t>(options_.most_drafts), budget / left--, choice.longest - s.size() - 1});
    while (most > 0 && !runner_.reserve(s, s.size() + most)) --most;
    planned.most_drafts = static_cast<int>(std::max<int64_t>(0, most));
    budget -= planned.most_drafts;
  }
}

void Scheduler::plan_prompt(Choice& choice, int64_t& budget, bool others) {
  if (budget <= 0) return;
  const int64_t share = others ? (budget + 1) / 2 : budget;
  const int64_t rows = prepare_(choice, std::min(share, choice.left()));
  if (rows == 0) return;
  plan_.push_back({&choice, rows});
  budget -= rows;
}

// What was left for others, and none of them could take, goes to the prompts that are read.
void Scheduler::plan_rest(int64_t budget) {
  for (Planned& planned : plan_) {
    if (budget <= 0) return;
    Choice& choice = *planned.choice;
    const int64_t most = std::min(planned.rows + budget, choice.left());
    if (most == planned.rows) continue;
    const int64_t rows = std::max(planned.rows, prepare_(choice, most));
    budget -= rows - planned.rows;
    planned.rows = rows;
  }
}

void Scheduler::admit(int64_t& budget) {
  readers_.clear();
  for (Choice* choice : running_)
    if (reads_prompt(*choice) && choice->request.caches) readers_.push_back(choice);
  for (auto next = waiting_.begin(); next != waiting_.end() && budget > 0;) {
    if (std::ssize(running_) >= runner_.limits().max_num_seqs) return;
    Choice& choice = **next++;
    PrefixMatch match;
    if (cache_ != nullptr && choice.request.caches && !computes_all_rows(choice)) {
      bool waits = still_waits_for_prefix(choice);
      if (!waits) {
        const int64_t size = choice.sequence.size();
        match = cache_->find(choice.request.space, keys_of(choice, size), size - 1);
        waits = waits_for_prefix(choice, match);
      }
      if (waits) {
        ++stats_.waits_for_prefix;
        continue;
      }
    }
    if (choice.answer.preemptions >= kMostPreemptions && !has_room_for_all(choice)) return;
    if (!start(choice, match)) return;
    waiting_.erase(&choice);
    choice.status = Choice::Status::kRunning;
    running_.insert(std::upper_bound(running_.begin(), running_.end(), &choice, waiting_.key_comp()), &choice);
    choose_cuts(choice, match);
    if (reads_prompt(choice) && choice.request.caches) readers_.push_back(&choice);
    plan_prompt(choice, budget, next != waiting_.end());
  }
}

// Pages, slot and lane for all known tokens, with what the cache has of them.
bool Scheduler::start(Choice& choice, const PrefixMatch& match) {
  if (match.checkpoint && start_from(choice, *match.checkpoint)) return true;
  // Making room for the first may have cost the second its place.
  const bool another = match.on_device && match.on_device != match.checkpoint && cache_->contains(*match.on_device);
  if (another && start_from(choice, *match.on_device)) return true;
  // With a hit, the checkpoint itself may be what takes the last pages. Alone, it must go without.
  if (match.on_device && !running_.empty()) return false;
  Sequence& s = choice.sequence;
  if (cache_ != nullptr) {
    if (!cache_->reclaim(pages_for(s.size()), 1, choice.request.space)) return false;
    if (choice.request.caches) cache_->note_use(s.size(), std::nullopt);
  }
  return runner_.reserve(s, s.size());
}

bool Scheduler::start_from(Choice& choice, CheckpointId id) {
  Sequence& s = choice.sequence;
  const std::string& space = choice.request.space;
  cache_->pin(id);
  const bool on_host = cache_->checkpoint(id).tier == Tier::kHost;
  const int64_t fresh = pages_for(s.size()) - cache_->checkpoint(id).P / runner_.limits().block_size;
  const bool runs = (!on_host || (cache_->reclaim(cache_->pages_to_restore(id), 1, space) && cache_->restore(id))) &&
                    cache_->reclaim(fresh, 1, space) && runner_.resume(s, cache_->checkpoint(id), s.size());
  if (!runs) {
    cache_->unpin(id);
    return false;
  }
  choice.source = id;
  cache_->note_use(s.size(), id, on_host);
  if (s.outputs() == 0 && choice.answer.preemptions == 0)
    choice.answer.cached_tokens = s.computed;  // later it may be its own work
  return true;
}

// Could every running choice, and this one, reach its end without preempting anybody?
bool Scheduler::has_room_for_all(const Choice& choice) const {
  int64_t pages = pages_for(choice.longest);
  for (const Choice* other : running_) pages += pages_for(other->longest) - std::ssize(other->sequence.block_table);
  return pages <= runner_.pages().free_pages() + runner_.pages().cached_only_pages();
}

// So that many that wait for one prefix need not be compared with it in every step.
bool Scheduler::still_waits_for_prefix(const Choice& choice) const {
  const Choice::Awaited& awaited = choice.awaited;
  return awaited.tokens > 0 && std::any_of(readers_.begin(), readers_.end(), [&](const Choice* other) {
           return other->request.id == awaited.request && other->sequence.choice == awaited.choice &&
                  other->sequence.computed < awaited.tokens;
         });
}

// Does a running choice compute a longer prefix than the cache has? Then that one leaves a checkpoint at its end.
bool Scheduler::waits_for_prefix(Choice& choice, const PrefixMatch& match) {
  const int64_t found = match.checkpoint ? cache_->checkpoint(*match.checkpoint).P : 0;
  const int64_t most = choice.sequence.size() - 1;
  choice.awaited = {};
  for (Choice* other : readers_) {
    if (other->request.space != choice.request.space) continue;
    const int64_t most_of_both = std::min(most, other->sequence.prompt_size - 1);
    const int64_t common =
        std::min(most_of_both, common_prefix(choice.keys, keys_of(*other, other->sequence.prompt_size)));
    if (common < found + kLeastSaved || common <= other->sequence.computed) continue;
    std::vector<int64_t>& cuts = other->cuts;
    const auto behind = std::upper_bound(cuts.begin(), cuts.end(), common);
    if (behind == cuts.begin() || *(behind - 1) + kLeastSaved < common) cuts.insert(behind, common);
    choice.awaited = {other->request.id, other->sequence.choice, common};
    return true;
  }
  return false;
}

// Places for checkpoints in what is still to be read, the ones that are most likely used again first.
void Scheduler::choose_cuts(Choice& choice, const PrefixMatch& match) {
  const Sequence& s = choice.sequence;
  choice.cuts.clear();
  const int64_t interval = options_.checkpoint_interval;
  choice.next_interval = interval > 0 ? (s.size() / interval + 1) * interval : 0;
  if (cache_ == nullptr || !choice.request.caches) return;
  const auto want = [&](int64_t place) {
    if (place > s.computed && place < s.size() && std::ssize(choice.cuts) < options_.checkpoints_per_prompt &&
        std::find(choice.cuts.begin(), choice.cuts.end(), place) == choice.cuts.end())
      choice.cuts.push_back(place);
  };
  want(s.prompt_size - 1);
  if (match.branch >= s.computed + kLeastSaved) want(match.branch);
  const std::vector<int64_t>& hints = choice.request.request.checkpoint_hints;
  for (auto hint = hints.rbegin(); hint != hints.rend(); ++hint) want(*hint);
  if (interval > 0)
    for (int64_t place = (s.computed / interval + 1) * interval; place < s.size(); place += interval) want(place);
  std::sort(choice.cuts.begin(), choice.cuts.end());
}

// Slots for the checkpoints inside this step's rows. Where the step can write no more of them, a prompt's rows end.
void Scheduler::plan_cuts() {
  int64_t left = runner_.limits().max_cuts;
  for (Planned& planned : plan_) {
    const Choice& choice = *planned.choice;
    const Sequence& s = choice.sequence;
    for (const int64_t place : choice.cuts) {
      if (place <= s.computed || place >= s.computed + planned.rows) continue;
      if (left-- <= 0) {
        planned.rows = place - s.computed;
        break;
      }
      if (const auto slot = take_slot(choice))
        planned.cuts.push_back({place, *slot});
      else
        ++stats_.checkpoints_skipped;
    }
  }
}

void Scheduler::after_forward() {
  for (const Planned& planned : plan_) unpin(*planned.choice);
}

bool Scheduler::will_publish(const Planned& planned, int64_t more) const {
  const Choice& choice = *planned.choice;
  const Sequence& s = choice.sequence;
  if (!planned.cuts.empty()) return true;
  if (!wants_checkpoint(choice)) return false;
  return std::binary_search(choice.cuts.begin(), choice.cuts.end(), s.computed) ||
         (s.outputs() > 0 && choice.next_interval > 0 && s.computed + more >= choice.next_interval);
}

void Scheduler::publish(std::span<Planned> step) {
  for (Planned& planned : step) {
    Choice& choice = *planned.choice;
    for (size_t i = 0; i < planned.cuts.size(); ++i) {
      const ModelRunner::Cut& cut = planned.cuts[i];
      if (planned.finite[i])
        insert(choice, cut.end, cut.slot);
      else
        runner_.slots().release(cut.slot);
    }
    planned.cuts.clear();
    if (will_publish(planned)) leave_checkpoint(choice);
    if (choice.next_interval > 0 && choice.sequence.computed >= choice.next_interval)
      choice.next_interval =
          (choice.sequence.computed / options_.checkpoint_interval + 1) * options_.checkpoint_interval;
  }
}

// The slot becomes a checkpoint's; the choice reads it once more and goes on in another one.
void Scheduler::leave_checkpoint(Choice& choice) {
  Sequence& s = choice.sequence;
  const auto fresh = take_slot(choice);
  if (!fresh) {
    ++stats_.checkpoints_skipped;
    return;
  }
  const int32_t slot = s.slot;
  runner_.slots().add_reference(slot);
  const auto id =
      cache_->insert(choice.request.space, keys_of(choice, s.computed), runner_.checkpoint(s, s.computed, slot));
  if (runner_.slots().references(slot) == 1) {  // another one stands there already, or there is no room
    runner_.slots().release(*fresh);
    return;
  }
  cache_->pin(*id);
  choice.source = id;
  runner_.separate(s, *fresh);
}

}  // namespace calandra

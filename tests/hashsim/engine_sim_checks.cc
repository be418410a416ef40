// What EngineSim looks at between the steps.
#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <cstring>

#include "tests/hashsim/engine_sim.h"

namespace calandra::hashsim {
namespace {

int32_t at(const Tensor& tensor, int64_t i) { return tensor.as<int32_t>()[i]; }

std::string name_of(const Choice& choice) {
  return fmt::format("request {} choice {}", choice.request.id, choice.sequence.choice);
}

}  // namespace

void EngineSim::note_drafts(const Batch& batch) {
  for (int64_t segment = 0; segment < batch.segments(); ++segment) {
    const int32_t b = at(batch.segment_sequence, segment), end = at(batch.query_start, b + 1);
    const bool last = segment + 1 == batch.segments() || at(batch.segment_sequence, segment + 1) != b;
    const int32_t* ids = batch.token_ids.as<int32_t>();
    const int32_t drafts = at(batch.draft_count, b);
    if (last && drafts > 0 && at(batch.active, b))
      verified_.push_back(
          {step_, at(batch.state_dst, segment), at(batch.token_index, end - drafts), {ids + end - drafts, ids + end}});
  }
}

// When a choice is told its first token of a step: the rows behind the certain ones were its drafts, and those are what
// the drafter must propose.
void EngineSim::check_drafts(const Choice& choice) {
  if (!world_.options.speculative || !violation_.empty() || choice.draft_rows() == 0) return;
  const SpeculativeConfig& config = *world_.options.speculative;
  const Sequence& s = choice.sequence;
  const auto ran = std::find_if(verified_.rbegin(), verified_.rend(),
                                [&](const Verified& v) { return v.slot == s.slot && v.place == s.size() - 1; });
  if (ran == verified_.rend()) return violation(name_of(choice) + ": its drafts did not run");
  const std::vector<int32_t>& rows = ran->drafts;
  counts_.drafted += std::ssize(choice.drafts);
  SoloAnswer& solo = solo_of(choice);
  const std::vector<int32_t>& before = solo.so_far.tokens;
  if (s.size() - 1 != std::ssize(before) || !std::equal(before.begin(), before.end(), s.tokens.begin()))
    return violation(name_of(choice) + " has other tokens than were told");
  const auto k = std::ssize(rows);
  std::vector<int32_t> want;
  if (config.method == DraftMethod::kNgram) {
    want = solo.ngram_drafts(config.prompt_lookup_min, config.prompt_lookup_max, k);
  } else {
    // An adaptive number of drafts gives up entries while drafts do not pay.
    const bool complete = world_.long_ring && !config.adaptive;
    if (complete && s.mtp_begin > 1)
      violation(fmt::format("{}: MTP entries below {} were given up", name_of(choice), s.mtp_begin));
    want = solo.mtp_drafts(world_.rules, world_.sampler, k, complete ? 1 : std::max<int64_t>(1, s.mtp_begin));
  }
  if (choice.drafts != want)
    return violation(fmt::format("{} at {}: drafts [{}], not [{}]", name_of(choice), std::ssize(before),
                                 fmt::join(choice.drafts, " "), fmt::join(want, " ")));
  if (!std::equal(want.begin(), want.end(), rows.begin())) violation(name_of(choice) + ": the batch has other drafts");
}

void EngineSim::check_step() {
  if (!violation_.empty() || !waits()) return;
  stream_.queue().run_all();
  if (options_.states) {
    if (!model_.violations().empty()) return violation("batch: " + model_.violations().front());
    for (const Choice* choice : core_.scheduler().running()) check_states(*choice);
  }
  if (options_.ownership) check_ownership();
  if (violation_.empty()) scribble();
}

// The hidden row of nan_token equals nothing.
bool EngineSim::row_is_nan(const SoloAnswer& solo, int32_t slot) {
  const int32_t nan = world_.rules.model.nan_token;
  const std::vector<int32_t>& tokens = solo.so_far.tokens;
  const int64_t first = std::clamp<int64_t>(at(runner_.slots().N(), slot) - 1, 0, std::ssize(tokens));
  return nan >= 0 && std::find(tokens.begin() + first, tokens.end(), nan) != tokens.end();
}

void EngineSim::check_states(const Choice& choice) {
  const Sequence& s = choice.sequence;
  SoloAnswer& solo = solo_of(choice);
  const HashShadow& shadow = solo.shadow;
  const auto expect = [&](const std::string& found) {
    if (!found.empty())
      violation(fmt::format("{} at {} of {}, prompt {}, MTP entries {} to {}, preempted {} times: {}", name_of(choice),
                            s.computed, s.size(), s.prompt_size, s.mtp_begin, s.mtp_end, choice.answer.preemptions,
                            found));
  };
  ++counts_.states_compared;
  if (s.computed > s.size()) return expect("more tokens were run than there are");
  if (s.outputs() > 0 && choice.left() < (options_.async ? 0 : 1)) return expect("stands behind its last token");
  if (s.source >= 0 && !row_is_nan(solo, s.source))
    expect(slot_difference(shadow, runner_.slots(), s.source, s.computed));
  expect(page_difference(shadow, runner_.pages(), s.block_table, 0, s.computed));
  if (s.mtp_end > s.size() || s.mtp_begin > s.mtp_end) expect("impossible range of MTP entries");
  const int64_t first = std::max<int64_t>(1, s.mtp_begin);
  if (first < s.mtp_end) expect(entry_difference(shadow, runner_.pages(), s.block_table, first, s.mtp_end));
}

// Every reference has its owner: block tables, sources and slots of running choices, checkpoints, and what the
// simulation took away.
void EngineSim::check_ownership() {
  const PagePool& pages = runner_.pages();
  const SlotPool& slots = runner_.slots();
  std::vector<int> page_owners(static_cast<size_t>(pages.pages())), slot_owners(static_cast<size_t>(slots.slots()));
  for (const Choice* choice : core_.scheduler().running()) {
    const Sequence& s = choice->sequence;
    for (const int32_t page : s.block_table) ++page_owners[page];
    ++slot_owners[s.slot];
    if (s.source >= 0 && s.source != s.slot) ++slot_owners[s.source];
  }
  for (const int32_t page : pages_taken_) ++page_owners[page];
  for (const int32_t slot : slots_taken_) ++slot_owners[slot];
  if (PrefixCache* cache = core_.cache()) {
    if (const std::string found = cache->check_invariants(); !found.empty()) return violation("cache: " + found);
    for (CheckpointId id = 0; id < cache->stats().inserted; ++id) {
      if (!cache->contains(id) || cache->checkpoint(id).tier != Tier::kDevice) continue;
      const Checkpoint& held = cache->checkpoint(id);
      ++slot_owners[held.slot];
      for (const int32_t page : held.pages) ++page_owners[page];
      const int32_t accepted = at(slots.accepted(), held.slot);
      if (at(slots.N(), held.slot) + accepted != held.P)
        return violation(fmt::format("checkpoint {} of {} tokens: its slot stands elsewhere", id, held.P));
      if (accepted <= slots.pending_capacity() && std::isnan(slots.hidden()[held.slot][accepted].as<float>()[0]))
        return violation(fmt::format("checkpoint {} of {} tokens holds NaN", id, held.P));
    }
  }
  for (int32_t page = 0; page < pages.pages(); ++page)
    if (pages.references(page) != page_owners[page])
      return violation(
          fmt::format("page {}: {} references, {} owners", page, pages.references(page), page_owners[page]));
  for (int32_t slot = 0; slot < slots.slots(); ++slot)
    if (slots.references(slot) != slot_owners[slot])
      return violation(
          fmt::format("slot {}: {} references, {} owners", slot, slots.references(slot), slot_owners[slot]));
}

// What came free, and what running choices hold behind their last tokens.
void EngineSim::scribble() {
  for (int32_t page = 0; page < runner_.pages().pages(); ++page) {
    const bool is_free = runner_.pages().references(page) == 0;
    if (is_free && !page_was_free_[page]) scribble_page(world_.rules.model, runner_.pages(), page, draw_.word());
    page_was_free_[page] = is_free;
  }
  for (int32_t slot = 0; slot < runner_.slots().slots(); ++slot) {
    const bool is_free = !runner_.slots().taken(slot);
    if (is_free && !slot_was_free_[slot]) scribble_slot(world_.rules.model, runner_.slots(), slot, draw_.word());
    slot_was_free_[slot] = is_free;
  }
  const int64_t page_tokens = runner_.limits().block_size;
  for (const Choice* choice : core_.scheduler().running()) {
    const Sequence& s = choice->sequence;
    const int64_t end = std::max(s.computed, s.mtp_end) + std::ssize(choice->ahead_drafts_at);
    for (int64_t i = end / page_tokens; i < std::ssize(s.block_table); ++i)
      if (runner_.pages().references(s.block_table[i]) == 1)
        scribble_page(world_.rules.model, runner_.pages(), s.block_table[i], draw_.word(),
                      std::max<int64_t>(0, end - i * page_tokens));
  }
}

void EngineSim::check_checkpoint(const Checkpoint& held, std::span<const TokenKey> keys) {
  HashShadow shadow(world_.rules.model);
  bool nan_near = false;
  for (int64_t i = 0; i < held.P; ++i) {
    if (keys[i] >> 63 != 0) return;  // an image's content is not in its key
    const auto token = static_cast<int32_t>(keys[i]);
    shadow.append(token);
    nan_near = nan_near || (token == world_.rules.model.nan_token && i + 1 >= at(runner_.slots().N(), held.slot));
  }
  const auto expect = [&](const std::string& found) {
    if (!found.empty()) violation(fmt::format("checkpoint of {} tokens: {}", held.P, found));
  };
  ++counts_.checkpoints;
  if (!nan_near) expect(slot_difference(shadow, runner_.slots(), held.slot, held.P));
  expect(page_difference(shadow, runner_.pages(), held.pages, 0, held.P));
  const int64_t first = std::max<int64_t>(1, held.mtp_begin);
  if (first < held.P) expect(entry_difference(shadow, runner_.pages(), held.pages, first, held.P));
}

// All that stand at the end, in both tiers.
void EngineSim::check_checkpoints() {
  PrefixCache& cache = *core_.cache();
  CheckpointStore reading(runner_.pages(), runner_.slots(), runner_.backend(), 0);
  for (CheckpointId id = 0; id < cache.stats().inserted && violation_.empty(); ++id) {
    if (!cache.contains(id)) continue;
    if (cache.checkpoint(id).tier == Tier::kHost) {
      cache.pin(id);
      const bool there = cache.reclaim(cache.pages_to_restore(id), 1, "") && cache.restore(id);
      cache.unpin(id);
      if (!there || !cache.contains(id) || cache.checkpoint(id).tier == Tier::kHost) continue;
    }
    const std::vector<std::byte> bytes = cache.save(id);
    try {
      check_checkpoint(cache.checkpoint(id), read_checkpoint(reading, {}, bytes, "at the end").keys);
    } catch (const LoadError& error) {
      violation(error.what());
    }
  }
}

void EngineSim::finish() {
  for (const SimRequest& request : world_.requests)
    for (const SimRequest::Told& told : request.told)
      if (!told.ended) violation(fmt::format("request {} never ended", request.id));
  give_back();
  stream_.queue().run_all();
  const EngineStats& stats = core_.stats();
  counts_.steps_ahead = stats.steps_ahead;
  for (const int64_t value : {stats.prompt_rows, stats.generation_tokens, stats.draft_tokens, stats.accepted_tokens,
                              stats.preemptions, stats.prefix.hit_tokens, stats.prefix.inserted})
    note(static_cast<uint64_t>(value));
  counts_.seeds = 1;
  counts_.accepted = stats.accepted_tokens;
  counts_.hits = stats.prefix.hits;
  counts_.hit_tokens = stats.prefix.hit_tokens;
  counts_.restores = stats.prefix.restores;
  counts_.evictions = stats.prefix.evictions + stats.prefix.host_evictions;
  counts_.preemptions = stats.preemptions;
  counts_.waits = stats.waits_for_prefix;
  if (stats.requests_running + stats.requests_waiting != 0) violation("idle, and requests run or wait");
  if (core_.cache() != nullptr) {
    if (options_.states) check_checkpoints();
    core_.cache()->clear();
    if (core_.cache()->size() != 0) violation("a checkpoint is pinned for nobody");
  }
  if (runner_.pages().free_pages() != runner_.pages().pages()) violation("idle, and pages are taken");
  if (runner_.slots().free_slots() != runner_.slots().slots()) violation("idle, and slots are taken");
}

}  // namespace calandra::hashsim

// Thousands of random operations on a PrefixCache over real pools, against a list of all checkpoints; after each one
// the invariants, the ledger, every byte and every lookup.
#include <algorithm>
#include <map>
#include <random>
#include <set>

#include "engine/prefix_cache_for_test.h"

namespace calandra {
namespace {

struct Known {
  std::string space;
  Keys keys;
  int64_t mtp_begin;
  int pins = 0;
};

int64_t common(const Keys& a, const Keys& b) {
  const size_t size = std::min(a.size(), b.size());
  return std::mismatch(a.begin(), a.begin() + size, b.begin()).first - a.begin();
}

class Scenario {
 public:
  Scenario(uint32_t seed, int64_t page_tokens, int64_t checkpoint_bytes, int64_t host_bytes)
      : random_(seed),
        limit_(checkpoint_bytes),
        world_(page_tokens == 1 ? 120 : 40, 12, page_tokens),
        cache_(std::in_place, world_.pages, world_.slots,
               PrefixCacheOptions{checkpoint_bytes, host_bytes, &World::backend(), {{1, 2, 3, 4}, 0, 1}}) {}

  void run(int steps) {
    for (step_ = 0; step_ < steps && !testing::Test::HasFailure(); ++step_) {
      const uint32_t what = pick(100);
      if (what < 12)
        begin();
      else if (what < 42)
        extend();
      else if (what < 56)
        checkpoint();
      else if (what < 66)
        finish();
      else if (what < 69)
        abandon();
      else if (what < 76)
        pin();
      else if (what < 83)
        reclaim();
      else if (what < 92)
        restore();
      else if (what < 94)
        save_and_load();
      else if (what < 99)
        look_up();
      else if (pick(10) == 0)
        cache_->clear();
      check();
    }
    // Nothing is left when everybody has gone.
    for (RunningSequence& run : runs_) world_.release(run);
    cache_.reset();
    EXPECT_EQ(world_.pages.free_pages(), world_.pages.pages());
    EXPECT_EQ(world_.slots.free_slots(), world_.slots.slots());
    EXPECT_EQ(world_.pages.cached_only_pages(), 0);
  }

  PrefixCacheStats stats;

 private:
  uint32_t pick(size_t n) { return static_cast<uint32_t>(random_() % n); }
  std::string space() { return prefix_space(std::string(1, static_cast<char>('a' + pick(3))), ""); }
  Keys keys() {
    Keys keys;
    if (!known_.empty() && pick(4) > 0) {
      const Known& from = std::next(known_.begin(), pick(known_.size()))->second;
      keys.assign(from.keys.begin(), from.keys.begin() + pick(from.keys.size() + 1));
    }
    for (uint32_t more = 1 + pick(12); more > 0; --more) keys.push_back(pick(2));
    return keys;
  }
  std::optional<CheckpointId> any(bool (*fits)(const PrefixCache&, CheckpointId)) {
    std::vector<CheckpointId> ids;
    for (const auto& [id, known] : known_)
      if (fits(*cache_, id)) ids.push_back(id);
    return ids.empty() ? std::nullopt : std::optional(ids[pick(ids.size())]);
  }

  void begin() {
    if (runs_.size() == 4) return;
    RunningSequence run{space(), {}, {}, 0};
    const Keys wanted = keys();
    if (const auto found = cache_->find(run.space, wanted, std::ssize(wanted) - 1).on_device) {
      if (!world_.resume(run, cache_->checkpoint(*found), wanted)) return;
      cache_->note_use(std::ssize(wanted), *found);
    }
    const bool mtp = pick(4) > 0;
    while (run.P() < std::ssize(wanted) && world_.extend(run, wanted[run.P()], mtp)) {
    }
    runs_.push_back(run);
  }
  void extend() {
    if (runs_.empty()) return;
    RunningSequence& run = runs_[pick(runs_.size())];
    const bool mtp = pick(6) > 0;
    for (uint32_t more = 1 + pick(5); more > 0 && run.P() < 40; --more) world_.extend(run, pick(2), mtp);
  }
  void checkpoint() {
    if (runs_.empty() || world_.slots.free_slots() == 0) return;
    const RunningSequence& run = runs_[pick(runs_.size())];
    if (run.P() > 0) insert(run.space, run.keys, world_.checkpoint(run));
  }
  void finish() {
    if (runs_.empty() || world_.slots.free_slots() == 0) return;
    const auto run = runs_.begin() + pick(runs_.size());
    if (run->P() == 0) return;
    const std::string space = run->space;
    const Keys keys = run->keys;
    insert(space, keys, world_.finish(*run));
    runs_.erase(run);
  }
  void abandon() {
    if (runs_.empty()) return;
    const auto run = runs_.begin() + pick(runs_.size());
    const std::string space = run->space;
    world_.release(*run);
    runs_.erase(run);
    cache_->enforce_limits(space);
    expect_limits();
  }
  void insert(const std::string& space, Keys keys, const Checkpoint& given) {
    const int64_t evictions = cache_->stats().evictions, hosted = cache_->stats().host_evictions;
    keys.resize(static_cast<size_t>(given.P));
    keys.push_back(9);  // what follows P does not matter
    const auto id = cache_->insert(space, keys, given);
    keys.pop_back();
    expect_limits();
    if (!id) {
      EXPECT_GT(cache_->stats().evictions + (limit_ == 0), evictions);
      return;
    }
    const Checkpoint& held = cache_->checkpoint(*id);
    ASSERT_EQ(held.P, given.P);
    const auto old = known_.find(*id);
    if (old != known_.end()) {
      ASSERT_EQ(old->second.keys, keys);
      ASSERT_EQ(held.mtp_begin,
                old->second.pins > 0 ? old->second.mtp_begin : std::min(old->second.mtp_begin, given.mtp_begin));
      old->second.mtp_begin = held.mtp_begin;
    } else {
      ASSERT_EQ(held.mtp_begin, given.mtp_begin);
      known_[*id] = {space, keys, held.mtp_begin};
    }
    if (cache_->stats().evictions == evictions && cache_->stats().host_evictions == hosted && old == known_.end())
      expect_shared(*id);
  }
  // Each full page that another checkpoint could stand in for is one that another holds.
  void expect_shared(CheckpointId id) {
    const Checkpoint& mine = cache_->checkpoint(id);
    for (int64_t i = 0; i < mine.P / world_.pages.page_tokens(); ++i) {
      const int64_t end = (i + 1) * world_.pages.page_tokens();
      bool possible = false, shared = false;
      for (const auto& [other_id, other] : known_) {
        if (other_id == id || !cache_->contains(other_id) || other.space != known_[id].space) continue;
        const Checkpoint& held = cache_->checkpoint(other_id);
        if (held.tier != Tier::kDevice || common(other.keys, known_[id].keys) < end) continue;
        possible = possible || held.mtp_begin <= std::max<int64_t>(1, end - world_.pages.page_tokens());
        shared = shared || held.pages[i] == mine.pages[i];
      }
      ASSERT_TRUE(shared || !possible) << "page " << i;
    }
  }
  void pin() {
    const auto id = any([](const PrefixCache&, CheckpointId) { return true; });
    if (!id) return;
    int& pins = known_[*id].pins;
    if (pins == 0 || pick(4) == 0) {
      if (pick(3) > 0) return;
      cache_->pin(*id);
      ++pins;
    } else {
      cache_->unpin(*id);
      --pins;
    }
  }
  void reclaim() {
    const int64_t pages = pick(world_.pages.pages() / 2), slots = pick(5);
    std::set<int32_t> stay;
    int64_t stay_slots = 0;
    for (const RunningSequence& run : runs_) stay.insert(run.pages.begin(), run.pages.end());
    for (const auto& [id, known] : known_) {
      const Checkpoint& held = cache_->checkpoint(id);
      if (known.pins == 0 || held.tier == Tier::kHost) continue;
      stay.insert(held.pages.begin(), held.pages.end());
      ++stay_slots;
    }
    const bool possible =
        world_.pages.pages() - std::ssize(stay) >= pages && world_.slots.slots() - stay_slots >= slots;
    const int64_t evictions = cache_->stats().evictions;
    const bool enough = world_.pages.free_pages() >= pages && world_.slots.free_slots() >= slots;
    ASSERT_EQ(cache_->reclaim(pages, slots, space()), possible);
    if (!possible || enough)
      EXPECT_EQ(cache_->stats().evictions, evictions);
    else
      EXPECT_TRUE(world_.pages.free_pages() >= pages && world_.slots.free_slots() >= slots);
  }
  void restore() {
    const auto id =
        any([](const PrefixCache& cache, CheckpointId id) { return cache.checkpoint(id).tier == Tier::kHost; });
    if (!id) return;
    const int64_t pages = cache_->pages_to_restore(*id), free = world_.pages.free_pages();
    const bool possible = free >= pages && world_.slots.free_slots() > 0;
    cache_->pin(*id);
    ASSERT_EQ(cache_->restore(*id), possible);
    ASSERT_EQ(cache_->checkpoint(*id).tier, possible ? Tier::kDevice : Tier::kHost);
    cache_->unpin(*id);
  }
  void save_and_load() {
    const auto id = any([](const PrefixCache&, CheckpointId) { return true; });
    if (!id) return;
    const Known source = known_[*id];
    const auto bytes = cache_->save(*id);
    const std::string to = space();
    const auto loaded = cache_->load(to, bytes, "memory");
    if (!loaded) return;
    const auto [place, fresh] = known_.try_emplace(*loaded, Known{to, source.keys, source.mtp_begin});
    ASSERT_EQ(place->second.keys, source.keys);
    place->second.mtp_begin = cache_->checkpoint(*loaded).mtp_begin;
    ASSERT_TRUE(!fresh || place->second.mtp_begin == source.mtp_begin);
  }
  void look_up() {
    const std::string where = space();
    const Keys wanted = keys();
    const int64_t max_P = pick(3) == 0 ? pick(wanted.size()) : std::ssize(wanted) - 1;
    std::optional<CheckpointId> best, on_device;
    int64_t matched = 0;
    bool at_matched = false;
    const auto depth = [&](std::optional<CheckpointId> id) { return id ? std::ssize(known_[*id].keys) : 0; };
    for (const auto& [id, known] : known_)
      if (known.space == where) matched = std::max(matched, common(known.keys, wanted));
    for (const auto& [id, known] : known_) {
      const int64_t P = std::ssize(known.keys);
      if (known.space != where || common(known.keys, wanted) < P) continue;
      at_matched = at_matched || P == matched;
      if (P > max_P) continue;
      if (P > depth(best)) best = id;
      if (P > depth(on_device) && cache_->checkpoint(id).tier == Tier::kDevice) on_device = id;
    }
    const PrefixMatch match = cache_->find(where, wanted, max_P);
    EXPECT_EQ(match.checkpoint, best);
    EXPECT_EQ(match.on_device, on_device);
    EXPECT_EQ(match.matched, matched);
    const bool branches = matched < std::ssize(wanted) && matched <= max_P && !at_matched;
    EXPECT_EQ(match.branch, branches ? matched : 0);
  }

  void expect_limits() {
    if (cache_->bytes(Tier::kDevice) <= limit_) return;
    for (const auto& [id, known] : known_) {
      const bool on_device = cache_->contains(id) && cache_->checkpoint(id).tier == Tier::kDevice;
      EXPECT_TRUE(!on_device || known.pins > 0) << "above the limit, step " << step_;
    }
  }

  void check() {
    ASSERT_EQ(cache_->check_invariants(), "") << "step " << step_;
    std::map<int32_t, int> references;
    std::set<int32_t> run_pages;
    int64_t slots = 0, bytes = 0;
    for (auto next = known_.begin(); next != known_.end();) {
      const auto& [id, known] = *next;
      if (!cache_->contains(id)) {
        ASSERT_EQ(known.pins, 0) << "a pinned checkpoint was evicted, step " << step_;
        next = known_.erase(next);
        continue;
      }
      ++next;
      const Checkpoint& held = cache_->checkpoint(id);
      ASSERT_EQ(held.mtp_begin, known.mtp_begin);
      if (held.tier == Tier::kHost) {
        if (step_ % 5 != 0) continue;
        const auto saved = cache_->save(id);
        verify_content(saved, known);
        continue;
      }
      ++slots;
      for (const int32_t page : held.pages) ++references[page];
      world_.verify(held, known.keys);
    }
    ASSERT_EQ(cache_->size(), std::ssize(known_)) << "step " << step_;
    for (const RunningSequence& run : runs_) {
      run_pages.insert(run.pages.begin(), run.pages.end());
      for (const int32_t page : run.pages) ++references[page];
    }
    for (const auto& [page, count] : references) {
      ASSERT_EQ(world_.pages.references(page), count) << "page " << page << ", step " << step_;
      bytes += run_pages.contains(page) ? 0 : world_.pages.bytes_per_page();
    }
    EXPECT_EQ(cache_->bytes(Tier::kDevice), bytes + slots * world_.slots.bytes_per_slot());
    ASSERT_EQ(world_.pages.free_pages(), world_.pages.pages() - std::ssize(references));
    ASSERT_EQ(world_.slots.free_slots(), world_.slots.slots() - slots);
    stats = cache_->stats();
  }
  // The byte form, read back into a slot and pages outside the cache.
  void verify_content(const std::vector<std::byte>& saved, const Known& known) {
    const SavedCheckpoint read = read_checkpoint(world_.reading, {{1, 2, 3, 4}, 0, 1}, saved, "memory");
    ASSERT_EQ(read.keys, known.keys);
    ASSERT_EQ(read.content.mtp_begin, known.mtp_begin);
    const std::vector<std::byte> slot = world_.slot_content(known.keys);
    ASSERT_EQ(std::memcmp(read.content.slot, slot.data(), slot.size()), 0);
  }

  std::mt19937 random_;
  int64_t limit_;
  World world_;
  std::optional<PrefixCache> cache_;
  std::vector<RunningSequence> runs_;
  std::map<CheckpointId, Known> known_;
  int step_ = 0;
};

TEST(PrefixCacheModel, EqualsAListOfAllCheckpoints) {
  PrefixCacheStats sum;
  uint32_t seed = 0;
  for (const int64_t page_tokens : {1, 4}) {
    for (const int64_t device : {0, 3000, 100000}) {
      for (const int64_t host : {0, 2500, 20000}) {
        SCOPED_TRACE("page " + std::to_string(page_tokens) + ", device " + std::to_string(device) + ", host " +
                     std::to_string(host));
        Scenario scenario(++seed, page_tokens, device, host);
        scenario.run(1500);
        if (HasFailure()) return;
        sum.evictions += scenario.stats.evictions;
        sum.demotions += scenario.stats.demotions;
        sum.restores += scenario.stats.restores;
        sum.host_evictions += scenario.stats.host_evictions;
        sum.hits += scenario.stats.hits;
        sum.duplicates_freed += scenario.stats.duplicates_freed;
        sum.duplicate_pages_freed += scenario.stats.duplicate_pages_freed;
      }
    }
  }
  // The scenarios must reach what they are there for.
  EXPECT_GT(sum.evictions, 1000);
  EXPECT_GT(sum.demotions, 500);
  EXPECT_GT(sum.restores, 100);
  EXPECT_GT(sum.host_evictions, 100);
  EXPECT_GT(sum.hits, 150);
  EXPECT_GT(sum.duplicates_freed, 50);
  EXPECT_GT(sum.duplicate_pages_freed, 100);
}

}  // namespace
}  // namespace calandra

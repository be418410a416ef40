// Eviction. priority = clock + uses * saved / bytes (GreedyDual-Size-Frequency); saved: tokens from the next shallower
// checkpoint of the path to P; bytes: what the tier would get back now; clock: at the last use, and of the tier, where
// it rises to the priority of whatever is evicted. The lowest goes, of equals the oldest; pinned ones never. What
// leaves the device goes to the host if it is worth more than what must leave there for it.
//
// Fairness. Whoever needs room pays first: while the space on whose behalf bytes are freed holds more than its share of
// the tier's bytes (one of as many parts as there are spaces, at most 8 parts), it loses its own checkpoints before any
// other's. So a flood evicts itself, and unused room can be used by anybody. The floor of an eighth is for those whose
// share others would thin by inventing salts: below it only the common rule holds.
#include "engine/prefix_cache.h"

#include <algorithm>
#include <utility>

namespace calandra {
namespace {

constexpr int64_t kMostShares = 8;  // a space that holds less than this part of a tier never pays first

}  // namespace

PrefixCache::PrefixCache(PagePool& pages, SlotPool& slots, PrefixCacheOptions options)
    : store_(pages, slots, *options.backend, options.host_checkpoint_bytes), options_(std::move(options)) {
  CHECK_LE(0, options_.checkpoint_bytes);
  CHECK_LE(0, options_.host_checkpoint_bytes);
}

PrefixCache::~PrefixCache() {
  for (const auto& [id, entry] : entries_) store_.release(entry.held);
}

const PrefixCache::Entry& PrefixCache::at(CheckpointId id) const {
  const auto found = entries_.find(id);
  CHECK_MSG(found != entries_.end(), "no checkpoint " + std::to_string(id));
  return found->second;
}

PrefixCache::Entry& PrefixCache::at(CheckpointId id) { return const_cast<Entry&>(std::as_const(*this).at(id)); }

const PrefixCache::Space* PrefixCache::find_space(std::string_view name) const {
  const auto found = spaces_.find(name);
  return found == spaces_.end() ? nullptr : found->second.get();
}

PrefixCache::Space& PrefixCache::make_space(std::string_view name) {
  auto found = spaces_.find(name);
  if (found == spaces_.end()) {
    found = spaces_.emplace(std::string(name), std::make_unique<Space>()).first;
    found->second->name = name;
  }
  return *found->second;
}

void PrefixCache::prune(Space& space, PrefixNode* node) {
  space.tree.prune(node);
  if (space.checkpoints == 0) spaces_.erase(spaces_.find(space.name));
}

PrefixMatch PrefixCache::find(std::string_view space_name, std::span<const TokenKey> keys, int64_t max_P) const {
  PrefixMatch match;
  const Space* space = find_space(space_name);
  if (space == nullptr) return match;
  const auto [deepest, matched] = space->tree.walk(keys);
  match.matched = matched;
  for (const PrefixNode* node = deepest; node->parent != nullptr && !match.on_device; node = node->parent) {
    if (node->checkpoint < 0 || node->depth > max_P) continue;
    if (!match.checkpoint) match.checkpoint = node->checkpoint;
    if (at(node->checkpoint).held.tier == Tier::kDevice) match.on_device = node->checkpoint;
  }
  const bool leaves = matched > 0 && matched < std::ssize(keys) && matched <= max_P;
  const bool stands_here = deepest->depth == matched && deepest->checkpoint >= 0;
  if (leaves && !stands_here) match.branch = matched;
  return match;
}

void PrefixCache::note_use(int64_t query_tokens, std::optional<CheckpointId> checkpoint, bool restored) {
  ++stats_.queries;
  stats_.query_tokens += query_tokens;
  if (!checkpoint) return;
  Entry& entry = at(*checkpoint);
  ++entry.uses;
  entry.clock = clocks_[static_cast<int>(entry.held.tier)];
  ++stats_.hits;
  stats_.hit_tokens += entry.held.P;
  if (restored) stats_.host_hit_tokens += entry.held.P;
}

void PrefixCache::pin(CheckpointId id) { ++at(id).pins; }

void PrefixCache::unpin(CheckpointId id) {
  Entry& entry = at(id);
  CHECK_GT(entry.pins, 0);
  --entry.pins;
}

// For each page of a checkpoint of P tokens at `node`: a page of the tier that can stand in for it, or -1. From the
// node upwards every subtree covers more of the path's later pages than the next: the checkpoints below a node all hold
// the pages that end on its edge.
std::vector<int32_t> PrefixCache::shareable(const PrefixNode* node, int64_t P, int64_t mtp_begin, Tier tier) const {
  const int64_t page_tokens = store_.pages().page_tokens();
  std::vector<int32_t> pages(static_cast<size_t>(store_.pages_of(P)), -1);
  const Checkpoint* best = nullptr;  // the one with the most MTP entries; of equals the one met first
  const auto consider = [&](const PrefixNode& other) {
    if (other.checkpoint < 0) return;
    const Checkpoint& held = at(other.checkpoint).held;
    if (held.tier == tier && (best == nullptr || held.mtp_begin < best->mtp_begin)) best = &held;
  };
  PrefixTree::for_each_below(node, consider);
  for (; node->parent != nullptr; node = node->parent) {
    const int64_t begin = node->parent->depth / page_tokens, end = node->depth / page_tokens;
    for (int64_t i = begin; best != nullptr && i < end; ++i) {
      const auto index = static_cast<size_t>(i);
      if (store_.first_mtp_entry(best->mtp_begin, index) <= store_.first_mtp_entry(mtp_begin, index))
        pages[index] = best->pages[index];
    }
    if (node->parent->parent == nullptr) break;
    consider(*node->parent);
    for (const auto& [key, sibling] : node->parent->children)
      if (sibling.get() != node) PrefixTree::for_each_below(sibling.get(), consider);
  }
  return pages;
}

// Does the checkpoint that stands at the node stay when another one comes?
bool PrefixCache::keeps(const PrefixNode& node, int64_t mtp_begin) const {
  if (node.checkpoint < 0) return false;
  const Entry& old = at(node.checkpoint);
  if (old.pins > 0 || old.held.mtp_begin < mtp_begin) return true;
  return old.held.mtp_begin == mtp_begin && old.held.tier == Tier::kDevice;
}

std::optional<CheckpointId> PrefixCache::insert(std::string_view space_name, std::span<const TokenKey> keys,
                                                Checkpoint checkpoint) {
  CHECK(checkpoint.tier == Tier::kDevice);
  CHECK_GE(checkpoint.P, 1);
  CHECK_LE(checkpoint.P, std::ssize(keys));
  CHECK_EQ(std::ssize(checkpoint.pages), store_.pages_of(checkpoint.P));
  CHECK_LE(0, checkpoint.mtp_begin);
  CHECK_LE(checkpoint.mtp_begin, checkpoint.P);
  store_.adopt(checkpoint);
  if (options_.checkpoint_bytes == 0 && options_.host_checkpoint_bytes == 0) {
    store_.release(checkpoint);
    return std::nullopt;
  }
  Space& space = make_space(space_name);
  PrefixNode* node = space.tree.make(keys.first(static_cast<size_t>(checkpoint.P)));
  if (keeps(*node, checkpoint.mtp_begin)) {
    ++stats_.duplicates_freed;
    store_.release(checkpoint);
    return still_there(node->checkpoint, space_name);
  }
  const std::vector<int32_t> shared = shareable(node, checkpoint.P, checkpoint.mtp_begin, Tier::kDevice);
  for (size_t i = 0; i < shared.size(); ++i) {
    if (shared[i] < 0 || shared[i] == checkpoint.pages[i]) continue;
    store_.share(checkpoint, i, shared[i]);
    ++stats_.duplicate_pages_freed;
  }
  return settle(space, node, std::move(checkpoint));
}

// Puts an adopted checkpoint at its node, in the place of the one that stands there.
std::optional<CheckpointId> PrefixCache::settle(Space& space, PrefixNode* node, Checkpoint checkpoint) {
  ++stats_.inserted;
  const CheckpointId id = node->checkpoint >= 0 ? node->checkpoint : next_id_++;
  const double clock = clocks_[static_cast<int>(Tier::kDevice)];
  if (node->checkpoint >= 0) {
    Entry& entry = at(id);
    ++stats_.duplicates_freed;
    store_.release(entry.held);
    entry.held = std::move(checkpoint);
    entry.clock = clock;
  } else {
    node->checkpoint = id;
    ++space.checkpoints;
    entries_.emplace(id, Entry{id, &space, node, std::move(checkpoint), clock});
  }
  return still_there(id, std::string(space.name));  // a copy: the space itself may go
}

std::optional<CheckpointId> PrefixCache::still_there(CheckpointId id, std::string_view space) {
  enforce_limits(space);
  return contains(id) ? std::optional(id) : std::nullopt;
}

double PrefixCache::value(const Entry& entry, Tier tier, int64_t bytes) const {
  const PrefixNode* shallower = entry.node->parent;
  while (shallower->parent != nullptr && shallower->checkpoint < 0) shallower = shallower->parent;
  const auto saved = static_cast<double>(entry.held.P - shallower->depth);
  const double clock = entry.held.tier == tier ? entry.clock : clocks_[static_cast<int>(tier)];
  return clock + static_cast<double>(entry.uses) * saved / static_cast<double>(bytes);
}

double PrefixCache::priority(const Entry& entry) const {
  return value(entry, entry.held.tier, store_.freed_bytes(entry.held));
}

int64_t PrefixCache::bytes_of(const Space& space, Tier tier) const {
  int64_t bytes = 0;
  std::vector<int32_t> pages;
  PrefixTree::for_each_below(&space.tree.root(), [&](const PrefixNode& node) {
    if (node.checkpoint < 0) return;
    const Checkpoint& held = at(node.checkpoint).held;
    if (held.tier != tier) return;
    bytes += store_.slot_bytes();
    pages.insert(pages.end(), held.pages.begin(), held.pages.end());
  });
  std::sort(pages.begin(), pages.end());
  pages.erase(std::unique(pages.begin(), pages.end()), pages.end());
  for (const int32_t page : pages) bytes += store_.page_bytes(tier, page);
  return bytes;
}

// The unpinned checkpoint of the tier that passes the filter and has the lowest priority; those of `space` first while
// it holds more than its share.
PrefixCache::Entry* PrefixCache::victim(Tier tier, std::string_view space_name, const Filter& filter) {
  const Space* space = find_space(space_name);
  const int64_t shares = std::min(spaces(), kMostShares);
  const bool pays_first = space != nullptr && shares > 1 && bytes_of(*space, tier) * shares > store_.bytes(tier);
  Entry* lowest[2] = {nullptr, nullptr};  // of any space; of that one
  double priorities[2] = {0, 0};
  for (auto& [id, entry] : entries_) {
    if (entry.held.tier != tier || entry.pins > 0 || !filter(entry)) continue;
    const double p = priority(entry);
    for (int i = 0; i < (entry.space == space ? 2 : 1); ++i) {
      if (lowest[i] != nullptr && priorities[i] <= p) continue;
      lowest[i] = &entry;
      priorities[i] = p;
    }
  }
  return pays_first && lowest[1] != nullptr ? lowest[1] : lowest[0];
}

void PrefixCache::evict(Entry& entry) {
  CHECK_EQ(entry.pins, 0);
  double& clock = clocks_[static_cast<int>(entry.held.tier)];
  clock = std::max(clock, priority(entry));
  if (entry.held.tier == Tier::kHost) {
    ++stats_.host_evictions;
    drop(entry);
    return;
  }
  ++stats_.evictions;
  if (!demote(entry)) drop(entry);
}

// Moves a checkpoint to the host, if there is room for it or less valuable ones can make room.
bool PrefixCache::demote(Entry& entry) {
  const Checkpoint& held = entry.held;
  for (;;) {
    const std::vector<int32_t> shared = shareable(entry.node, held.P, held.mtp_begin, Tier::kHost);
    const int64_t bytes = store_.bytes_on_host(held.P, shared);
    if (bytes > options_.host_checkpoint_bytes) return false;
    if (store_.bytes(Tier::kHost) + bytes <= options_.host_checkpoint_bytes) {
      std::optional<Checkpoint> copy = store_.to_host(held, shared);
      if (!copy) return false;
      store_.release(held);
      entry.held = std::move(*copy);
      entry.clock = clocks_[static_cast<int>(Tier::kHost)];
      ++stats_.demotions;
      return true;
    }
    Entry* lowest = victim(Tier::kHost, entry.space->name, [](const Entry&) { return true; });
    if (lowest == nullptr || priority(*lowest) >= value(entry, Tier::kHost, bytes)) return false;
    evict(*lowest);
  }
}

void PrefixCache::drop(Entry& entry) {
  Space& space = *entry.space;
  PrefixNode* node = entry.node;
  store_.release(entry.held);
  node->checkpoint = -1;
  --space.checkpoints;
  entries_.erase(entry.id);
  prune(space, node);
}

void PrefixCache::clear() {
  for (auto next = entries_.begin(); next != entries_.end();) {
    Entry& entry = (next++)->second;
    if (entry.pins == 0) drop(entry);
  }
  if (store_.bytes(Tier::kHost) == 0) store_.give_back_memory();
}

void PrefixCache::enforce_limits(std::string_view space) {
  while (store_.bytes(Tier::kDevice) > options_.checkpoint_bytes) {
    Entry* lowest = victim(Tier::kDevice, space, [](const Entry&) { return true; });
    if (lowest == nullptr) return;
    evict(*lowest);
  }
}

bool PrefixCache::reclaim(int64_t pages, int64_t slots, std::string_view space) {
  const PagePool& pool = store_.pages();
  if (pool.free_pages() >= pages && store_.slots().free_slots() >= slots) return true;
  std::vector<bool> stays(static_cast<size_t>(pool.pages()), false);  // pages that pinned checkpoints hold
  int64_t can_free_pages = pool.free_pages() + pool.cached_only_pages();
  int64_t can_free_slots = store_.slots().free_slots();
  for (const auto& [id, entry] : entries_) {
    if (entry.held.tier != Tier::kDevice) continue;
    if (entry.pins == 0) {
      ++can_free_slots;
      continue;
    }
    for (const int32_t page : entry.held.pages) {
      if (!stays[page]) can_free_pages -= pool.only_cached(page);
      stays[page] = true;
    }
  }
  if (can_free_pages < pages || can_free_slots < slots) return false;

  // Where only pages are missing: whoever gives one at once, else whoever shares one that can come free.
  const auto gives_page = [&](const Entry& entry) { return store_.freed_pages(entry.held) > 0; };
  const auto shares_page = [&](const Entry& entry) {
    return std::any_of(entry.held.pages.begin(), entry.held.pages.end(),
                       [&](int32_t page) { return pool.only_cached(page) && !stays[page]; });
  };
  while (pool.free_pages() < pages || store_.slots().free_slots() < slots) {
    Entry* lowest = nullptr;
    if (store_.slots().free_slots() < slots)
      lowest = victim(Tier::kDevice, space, [](const Entry&) { return true; });
    else if ((lowest = victim(Tier::kDevice, space, gives_page)) == nullptr)
      lowest = victim(Tier::kDevice, space, shares_page);
    CHECK(lowest != nullptr);
    evict(*lowest);
  }
  return true;
}

int64_t PrefixCache::pages_to_restore(CheckpointId id) const {
  const Entry& entry = at(id);
  const auto shared = shareable(entry.node, entry.held.P, entry.held.mtp_begin, Tier::kDevice);
  return std::count(shared.begin(), shared.end(), -1);
}

bool PrefixCache::restore(CheckpointId id) {
  Entry& entry = at(id);
  CHECK(entry.held.tier == Tier::kHost);
  const auto shared = shareable(entry.node, entry.held.P, entry.held.mtp_begin, Tier::kDevice);
  std::optional<Checkpoint> copy = store_.to_device(entry.held, shared);
  if (!copy) return false;
  store_.release(entry.held);
  entry.held = std::move(*copy);
  entry.clock = clocks_[static_cast<int>(Tier::kDevice)];
  ++stats_.restores;
  enforce_limits(std::string(entry.space->name));
  return true;
}

std::vector<std::byte> PrefixCache::save(CheckpointId id) const {
  const Entry& entry = at(id);
  return save_checkpoint(store_, options_.identity, entry.held, PrefixTree::path(entry.node));
}

std::optional<CheckpointId> PrefixCache::load(std::string_view space_name, std::span<const std::byte> bytes,
                                              std::string_view source) {
  const SavedCheckpoint saved = read_checkpoint(store_, options_.identity, bytes, source);
  if (options_.checkpoint_bytes == 0 && options_.host_checkpoint_bytes == 0) return std::nullopt;
  Space& space = make_space(space_name);
  PrefixNode* node = space.tree.make(saved.keys);
  if (keeps(*node, saved.content.mtp_begin)) return still_there(node->checkpoint, space_name);
  const auto shared = shareable(node, saved.content.P, saved.content.mtp_begin, Tier::kDevice);
  std::optional<Checkpoint> copy = store_.to_device(saved.content, shared);
  if (!copy) {
    prune(space, node);
    return std::nullopt;
  }
  return settle(space, node, std::move(*copy));
}

}  // namespace calandra

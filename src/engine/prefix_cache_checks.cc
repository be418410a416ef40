// What must hold between the trees, the checkpoints, the pools and the ledger of a PrefixCache.
#include <algorithm>
#include <map>
#include <set>
#include <utility>

#include "engine/prefix_cache.h"

namespace calandra {
namespace {

// Tokens that the paths of two nodes of one tree have in common.
int64_t common_depth(const PrefixNode* a, const PrefixNode* b) {
  while (a != b) {
    if (a->depth < b->depth) std::swap(a, b);
    a = a->parent;
  }
  return a->depth;
}

}  // namespace

std::string PrefixCache::check_invariants() const {
  int64_t standing = 0;
  for (const auto& [name, space] : spaces_) {
    if (const std::string found = space->tree.violation(); !found.empty()) return "space " + name + ": " + found;
    int64_t here = 0;
    std::string wrong;
    const auto* const owner = space.get();
    PrefixTree::for_each_below(&owner->tree.root(), [&](const PrefixNode& node) {
      if (node.checkpoint < 0) return;
      ++here;
      const auto found = entries_.find(node.checkpoint);
      if (found == entries_.end() || found->second.node != &node || found->second.space != owner)
        wrong = "checkpoint " + std::to_string(node.checkpoint) + " is not where the tree says";
    });
    if (!wrong.empty()) return wrong;
    if (here == 0) return "space " + name + " is empty";
    if (here != space->checkpoints || space->name != name) return "space " + name + " counts wrongly";
    standing += here;
  }
  if (standing != size()) return "trees and entries hold different numbers of checkpoints";

  struct Held {
    const Entry* entry;  // the one that needs the most of the page
    size_t index;
    int64_t end;  // tokens of its path up to which it needs the page
    int holders;
  };
  std::map<int32_t, Held> pages[2];  // by tier
  std::set<int32_t> slots[2];
  for (const auto& [id, entry] : entries_) {
    const std::string name = "checkpoint " + std::to_string(id);
    const Checkpoint& held = entry.held;
    const auto tier = static_cast<size_t>(held.tier);
    if (entry.id != id || id >= next_id_ || entry.pins < 0 || entry.uses < 1) return name + ": bad entry";
    if (held.P != entry.node->depth || held.P < 1) return name + " stands at another depth than its P";
    if (held.mtp_begin < 0 || held.mtp_begin > held.P) return name + ": bad mtp_begin";
    if (std::ssize(held.pages) != store_.pages_of(held.P)) return name + ": wrong number of pages";
    if (!slots[tier].insert(held.slot).second) return name + " shares its slot";
    if (held.tier == Tier::kDevice && !store_.slots().taken(held.slot)) return name + ": its slot is free";
    for (size_t i = 0; i < held.pages.size(); ++i) {
      const int64_t end = static_cast<int64_t>(i) * store_.pages().page_tokens() + store_.entries(held.P, i);
      const auto [place, first] = pages[tier].try_emplace(held.pages[i], Held{&entry, i, end, 0});
      Held& page = place->second;
      ++page.holders;
      if (page.index != i || page.entry->space != entry.space ||
          common_depth(page.entry->node, entry.node) < std::min(page.end, end))
        return name + " shares page " + std::to_string(held.pages[i]) + " with a checkpoint of other tokens";
      if (page.end < end) page = {&entry, i, end, page.holders};
    }
  }

  for (const Tier tier : {Tier::kDevice, Tier::kHost}) {
    const auto t = static_cast<size_t>(tier);
    int64_t bytes = std::ssize(slots[t]) * store_.slot_bytes();
    for (const auto& [page, held] : pages[t]) {
      if (store_.holders(tier, page) != held.holders)
        return "page " + std::to_string(page) + " has other holders than the checkpoints";
      bytes += store_.page_bytes(tier, page);
    }
    if (bytes != store_.bytes(tier))
      return "the ledger says " + std::to_string(store_.bytes(tier)) + " bytes, a recount " + std::to_string(bytes);
  }
  const PagePool& pool = store_.pages();
  for (int32_t page = 0; page < pool.pages(); ++page) {
    if (pool.references(page) < pool.cached_references(page))
      return "page " + std::to_string(page) + " was freed early";
    if (pool.cached_references(page) > 0 && !pages[0].contains(page))
      return "page " + std::to_string(page) + " is held by no checkpoint";
  }
  if (store_.bytes(Tier::kHost) > options_.host_checkpoint_bytes) return "the host tier exceeds its limit";
  return {};
}

}  // namespace calandra

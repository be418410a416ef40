// PrefixCache: saved states of token prefixes, so that a request starts at the deepest one that it shares with an
// earlier request. One radix tree per space over token keys (prefix_tree.h), checkpoints at its nodes, each in the
// device tier or in the host tier (checkpoint_store.h). One thread, deterministic.
//
// Pages. Every full page is a function of the tokens it covers, so checkpoints of one path share them: on insertion the
// page that the tree has is kept, the newcomer's freed. The exception are MTP entries, of which a page may lack some:
// a page replaces another only if its valid entries include the other's (first_mtp_entry). The last partial page
// stays with its checkpoint, valid up to P.
//
// Eviction by tokens saved per byte, age and use, and a fair share for each space: prefix_cache.cc.
//
// Sizes. Checkpoints are bounded by the slots and by the two limits; nodes by twice the checkpoints; keys take 8 bytes
// per token of every distinct path (not on the ledger, a small part of what pages take).
#pragma once

#include <functional>
#include <map>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "engine/checkpoint_bytes.h"
#include "engine/checkpoint_store.h"
#include "engine/prefix_tree.h"

namespace calandra {

struct PrefixCacheOptions {
  int64_t checkpoint_bytes = 0;       // limit of the device tier; 0: off
  int64_t host_checkpoint_bytes = 0;  // limit of the host tier; 0: off
  Backend* backend = nullptr;         // of the pools; not null
  CheckpointIdentity identity;        // of the byte form
};

using CheckpointId = int64_t;  // never used twice

struct PrefixMatch {
  std::optional<CheckpointId> checkpoint;  // the deepest one with P <= max_P, of either tier
  std::optional<CheckpointId> on_device;   // the deepest of the device tier, if the host's cannot be restored
  int64_t matched = 0;                     // tokens of the path that the tree knows
  // A branch point seen again: the path leaves what the tree knows here (= matched), earlier requests went on
  // differently, and no checkpoint stands here. One would serve both. 0: no such place, or it lies beyond max_P. It may
  // be small: the caller decides from where on it is worth a slot.
  int64_t branch = 0;
};

struct PrefixCacheStats {
  int64_t queries = 0, query_tokens = 0;
  int64_t hits = 0, hit_tokens = 0, host_hit_tokens = 0;  // host_hit_tokens are part of hit_tokens
  int64_t inserted = 0;
  int64_t duplicates_freed = 0, duplicate_pages_freed = 0;  // whole checkpoints; single pages
  int64_t evictions = 0;                                    // from the device tier, demotions included
  int64_t demotions = 0, restores = 0, host_evictions = 0;
};

class PrefixCache {
 public:
  // The pools must outlive the cache.
  PrefixCache(PagePool& pages, SlotPool& slots, PrefixCacheOptions options);
  ~PrefixCache();  // gives everything back, pinned or not

  // Changes nothing, so a waiting request may look again. max_P: the request's token count - 1, so that a token is left
  // to run. `space`: prefix_space().
  PrefixMatch find(std::string_view space, std::span<const TokenKey> keys, int64_t max_P) const;
  // Once per request, when it starts: counts the query. The checkpoint it starts from, if any, is worth more from now;
  // `restored`: for this request.
  void note_use(int64_t query_tokens, std::optional<CheckpointId> checkpoint, bool restored = false);

  // Takes over the slot and one reference of each page, whatever the result; no step in flight may still write them
  // below P. keys [>= P]. Where a checkpoint stands at P already, the one with more MTP entries is kept (of equals the
  // old one, but the device's rather than the host's; a pinned one always).
  //   returns the one that stands at P now; nothing if the limits left no room for it
  std::optional<CheckpointId> insert(std::string_view space, std::span<const TokenKey> keys, Checkpoint checkpoint);

  // A pinned checkpoint stays as and where it is; restore() may still move it. Pins are counted.
  void pin(CheckpointId id);
  void unpin(CheckpointId id);

  bool contains(CheckpointId id) const { return entries_.contains(id); }
  const Checkpoint& checkpoint(CheckpointId id) const { return at(id).held; }

  // Evicts until so many pages and slots are free. False, and nothing evicted, when that cannot be reached.
  bool reclaim(int64_t pages, int64_t slots, std::string_view space);
  // Evicts down to the limits; pinned ones may stand above. insert, load and restore do it; call it after a sequence
  // has let go of pages, which then weigh on the checkpoints alone.
  void enforce_limits(std::string_view space);
  // Drops all that is not pinned, in both tiers.
  void clear();

  // Free pages that restore() takes, and one slot.
  int64_t pages_to_restore(CheckpointId id) const;
  // Moves a checkpoint from the host to the device; pin it first, as others may then have to leave. False, and nothing
  // changed, when the pools have too little free.
  bool restore(CheckpointId id);

  // The byte form (checkpoint_bytes.h). load throws LoadError for bad bytes, naming `source`; it needs free pages and a
  // slot, and returns nothing without them or where the limits leave no room.
  std::vector<std::byte> save(CheckpointId id) const;
  std::optional<CheckpointId> load(std::string_view space, std::span<const std::byte> bytes, std::string_view source);

  int64_t bytes(Tier tier) const { return store_.bytes(tier); }
  const PrefixCacheStats& stats() const { return stats_; }
  int64_t size() const { return std::ssize(entries_); }
  int64_t spaces() const { return std::ssize(spaces_); }
  // The first violation of what must hold between trees, checkpoints, pools and ledger, or nothing. For tests; slow.
  std::string check_invariants() const;

 private:
  struct Space;
  struct Entry {
    CheckpointId id;
    Space* space;
    PrefixNode* node;
    Checkpoint held;
    double clock;  // of its tier, at the last use
    int64_t uses = 1;
    int pins = 0;
  };
  struct Space {
    std::string name;
    PrefixTree tree;
    int64_t checkpoints = 0;
  };
  using Filter = std::function<bool(const Entry&)>;

  const Entry& at(CheckpointId id) const;
  Entry& at(CheckpointId id);
  const Space* find_space(std::string_view name) const;
  Space& make_space(std::string_view name);
  // Also the space, when nothing is left in it.
  void prune(Space& space, PrefixNode* node);
  int64_t bytes_of(const Space& space, Tier tier) const;

  std::vector<int32_t> shareable(const PrefixNode* node, int64_t P, int64_t mtp_begin, Tier tier) const;
  bool keeps(const PrefixNode& node, int64_t mtp_begin) const;
  std::optional<CheckpointId> settle(Space& space, PrefixNode* node, Checkpoint checkpoint);
  // After the limits were enforced on behalf of the space.
  std::optional<CheckpointId> still_there(CheckpointId id, std::string_view space);

  double value(const Entry& entry, Tier tier, int64_t bytes) const;
  double priority(const Entry& entry) const;
  Entry* victim(Tier tier, std::string_view space, const Filter& filter);
  void evict(Entry& entry);
  bool demote(Entry& entry);
  void drop(Entry& entry);

  CheckpointStore store_;
  PrefixCacheOptions options_;
  std::map<std::string, std::unique_ptr<Space>, std::less<>> spaces_;
  std::map<CheckpointId, Entry> entries_;
  CheckpointId next_id_ = 0;
  double clocks_[2] = {0, 0};  // by tier
  PrefixCacheStats stats_;
};

}  // namespace calandra

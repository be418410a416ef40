// CheckpointStore: who owns the bytes of checkpoints, in two tiers, and what they weigh. On the device a checkpoint is
// a slot of the SlotPool and references to pages of the PagePool; on the host it is blobs: one of the whole slot, one
// per page with the valid entries of that page (the content forms of the pools). Pages are shared between checkpoints
// in both tiers. Which checkpoints share or move is decided by the PrefixCache.
//
// Between the tiers bytes go beside the stream of steps (Backend::copy_beside), so the host waits for none of them and
// the step that runs is not held up:
//   - to the host: when the step that wrote the checkpoint is done, for which it is noted when the checkpoint came; the
//     steps after it need not be. What is launched from then on waits, since slot and pages go to others.
//   - to the device: when all that was launched is done, since slot and pages may come from others; what is launched
//     from then on waits, and finds them filled.
//   - memory of blobs is touched by such copies alone, in their order; whoever reads it on the host waits first.
#pragma once

#include <cstdint>
#include <map>
#include <optional>
#include <span>
#include <vector>

#include "cache/page_pool.h"
#include "cache/slot_pool.h"
#include "ops/backend.h"

namespace calandra {

enum class Tier : uint8_t { kDevice, kHost };

// A saved state after P >= 1 tokens. In the host tier slot and pages are numbers of blobs.
struct Checkpoint {
  int64_t P = 0;               // tokens; N + accepted of the slot
  int32_t slot = -1;           // states, windows, pending updates, counts, hidden rows
  std::vector<int32_t> pages;  // of tokens [0, P): ceil(P / page_tokens), the last one valid below P only
  int64_t mtp_begin = 0;       // valid MTP entries are [mtp_begin, P), of which index 0 is never read; P: none
  int32_t position_delta = 0;  // rotary position of a later token minus its index
  Tier tier = Tier::kDevice;
};

// The same by content, in memory of the host that somebody else owns.
struct CheckpointContent {
  int64_t P = 0, mtp_begin = 0;
  int32_t position_delta = 0;
  const std::byte* slot = nullptr;
  std::vector<const std::byte*> pages;
};

class CheckpointStore {
 public:
  // The pools are of the backend's memory; all must outlive the store. `host_bytes` of the host tier, for the size of
  // the pieces in which it is allocated.
  CheckpointStore(PagePool& pages, SlotPool& slots, Backend& backend, int64_t host_bytes);

  // Takes over a slot and one reference of each page.
  void adopt(const Checkpoint& checkpoint);
  // Gives back everything of a checkpoint of either tier.
  void release(const Checkpoint& checkpoint);
  // The checkpoint holds `page` of its tier (a full one, of the same tokens) from now on, and lets go of its own.
  void share(Checkpoint& checkpoint, size_t index, int32_t page);

  // A copy in the other tier. Pages with shared[i] >= 0 are not copied: that page of the other tier is held instead.
  // Nothing, and nothing taken, when the pools or the host's memory do not suffice.
  std::optional<Checkpoint> to_host(const Checkpoint& checkpoint, std::span<const int32_t> shared);
  std::optional<Checkpoint> to_device(const Checkpoint& checkpoint, std::span<const int32_t> shared);
  // Out of other memory, which has been read on return.
  std::optional<Checkpoint> to_device(const CheckpointContent& content, std::span<const int32_t> shared);
  // Without a checkpoint in the host tier: its memory goes back to the system until it is needed.
  void give_back_memory();
  // The whole checkpoint by content, appended to `bytes`: slot, then pages.
  void append_content(const Checkpoint& checkpoint, std::vector<std::byte>& bytes) const;

  // Device: slots of checkpoints and pages that only checkpoints hold, each once. Host: blobs, each once.
  int64_t bytes(Tier tier) const;
  // What bytes(tier) and free_pages() would change by if this one checkpoint were released.
  int64_t freed_bytes(const Checkpoint& checkpoint) const;
  int64_t freed_pages(const Checkpoint& checkpoint) const;
  // Bytes that page `page` of this tier puts on the ledger: 0 while a running sequence holds it too.
  int64_t page_bytes(Tier tier, int32_t page) const;
  int64_t slot_bytes() const { return slots_.bytes_per_slot(); }
  // Bytes that a copy in the host tier would take.
  int64_t bytes_on_host(int64_t P, std::span<const int32_t> shared) const;

  int64_t pages_of(int64_t P) const { return (P + pages_.page_tokens() - 1) / pages_.page_tokens(); }
  // Valid entries in page `index` of a checkpoint of P tokens.
  int64_t entries(int64_t P, size_t index) const;
  // First valid MTP entry at or after the page's begin, at most its end: the smaller, the more complete.
  int64_t first_mtp_entry(int64_t mtp_begin, size_t index) const;
  // References to a page of this tier that checkpoints hold.
  int holders(Tier tier, int32_t page) const;

  const PagePool& pages() const { return pages_; }
  const SlotPool& slots() const { return slots_; }

 private:
  struct Blob {
    std::byte* bytes = nullptr;
    int64_t size = 0;
    int64_t room = 0;  // that of a slot, or of a whole page
    int references = 0;
    Backend::CopyId filled = 0;
  };
  // A new blob with one reference, or nothing when the system has no memory.
  std::optional<int32_t> take_blob(int64_t size, int64_t room);
  std::byte* take_room(int64_t room);
  void release_blob(int32_t blob);
  CheckpointContent content(const Checkpoint& checkpoint) const;
  std::optional<Checkpoint> to_device(const CheckpointContent& content, std::span<const int32_t> shared,
                                      const PagePool::CopyBytes& copy);

  PagePool& pages_;
  SlotPool& slots_;
  Backend& backend_;
  const PagePool::CopyBytes copy_now_, copy_later_;  // the latter are listed
  std::vector<Backend::CopyBeside> listed_;
  std::vector<Backend::UploadId> written_;  // of each checkpoint's slot: what was launched when it came stands before
  int64_t slots_held_ = 0;
  int64_t host_bytes_ = 0;
  std::vector<Blob> blobs_;
  std::vector<int32_t> free_blobs_;
  // Rooms of blobs are kept for others of their size: allocating what copies are fast to takes long. So both kinds
  // together may take as much as each of them took at its most.
  const int64_t piece_bytes_;
  std::vector<Buffer> pieces_;
  int64_t left_ = 0;  // of the last piece
  Backend::CopyId last_ = 0;
  std::map<int64_t, std::vector<std::byte*>> free_rooms_;
};

}  // namespace calandra

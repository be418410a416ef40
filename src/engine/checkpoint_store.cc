#include "engine/checkpoint_store.h"

#include <algorithm>
#include <cstring>
#include <utility>

#include "base/error.h"

namespace calandra {
namespace {

constexpr int64_t kMostPieceBytes = int64_t{64} << 20;
constexpr int64_t kAlignment = 64;

}  // namespace

CheckpointStore::CheckpointStore(PagePool& pages, SlotPool& slots, Backend& backend, int64_t host_bytes)
    : pages_(pages),
      slots_(slots),
      backend_(backend),
      copy_now_([&backend](void* to, const void* from, size_t bytes) { backend.copy_bytes(to, from, bytes); }),
      copy_later_([this](void* to, const void* from, size_t bytes) {
        listed_.push_back({to, from, bytes});
      }),
      written_(static_cast<size_t>(slots.slots())),
      piece_bytes_(std::min(host_bytes / 8, kMostPieceBytes)) {}

int64_t CheckpointStore::entries(int64_t P, size_t index) const {
  return std::min(pages_.page_tokens(), P - static_cast<int64_t>(index) * pages_.page_tokens());
}

int64_t CheckpointStore::first_mtp_entry(int64_t mtp_begin, size_t index) const {
  const int64_t begin = static_cast<int64_t>(index) * pages_.page_tokens();
  return std::clamp(mtp_begin, std::max<int64_t>(1, begin), begin + pages_.page_tokens());
}

void CheckpointStore::adopt(const Checkpoint& checkpoint) {
  CHECK_MSG(slots_.taken(checkpoint.slot), "slot " + std::to_string(checkpoint.slot) + " has no owner");
  for (const int32_t page : checkpoint.pages) pages_.mark_cached(page);
  written_[static_cast<size_t>(checkpoint.slot)] = backend_.uploads();
  ++slots_held_;
}

void CheckpointStore::release(const Checkpoint& checkpoint) {
  if (checkpoint.tier == Tier::kHost) {
    release_blob(checkpoint.slot);
    for (const int32_t page : checkpoint.pages) release_blob(page);
    return;
  }
  slots_.release(checkpoint.slot);
  --slots_held_;
  for (const int32_t page : checkpoint.pages) {
    pages_.unmark_cached(page);
    pages_.release(page);
  }
}

void CheckpointStore::share(Checkpoint& checkpoint, size_t index, int32_t page) {
  CHECK(checkpoint.tier == Tier::kDevice);
  CHECK_EQ(entries(checkpoint.P, index), pages_.page_tokens());
  written_[static_cast<size_t>(checkpoint.slot)] = backend_.uploads();  // the page may be younger than the checkpoint
  pages_.add_reference(page);
  pages_.mark_cached(page);
  std::swap(page, checkpoint.pages[index]);
  pages_.unmark_cached(page);
  pages_.release(page);
}

std::byte* CheckpointStore::take_room(int64_t room) {
  std::vector<std::byte*>& kept = free_rooms_[room];
  if (!kept.empty()) {
    std::byte* const bytes = kept.back();
    kept.pop_back();
    return bytes;
  }
  if (left_ < room) {
    pieces_.push_back(backend_.allocate_host(static_cast<size_t>(std::max(room, piece_bytes_))));
    left_ = static_cast<int64_t>(pieces_.back().bytes());
  }
  const Buffer& piece = pieces_.back();
  std::byte* const bytes = static_cast<std::byte*>(piece.data()) + static_cast<int64_t>(piece.bytes()) - left_;
  left_ -= room;
  return bytes;
}

std::optional<int32_t> CheckpointStore::take_blob(int64_t size, int64_t room) {
  room = (room + kAlignment - 1) / kAlignment * kAlignment;
  std::byte* bytes = nullptr;
  try {
    bytes = take_room(room);
  } catch (const LoadError&) {
    return std::nullopt;
  }
  if (free_blobs_.empty()) {
    free_blobs_.push_back(static_cast<int32_t>(blobs_.size()));
    blobs_.emplace_back();
  }
  const int32_t blob = free_blobs_.back();
  free_blobs_.pop_back();
  blobs_[blob] = {bytes, size, room, 1};
  host_bytes_ += size;
  return blob;
}

// Copies out of it may be on their way: those into whoever takes its room come behind them.
void CheckpointStore::release_blob(int32_t blob) {
  CHECK_GT(blobs_.at(blob).references, 0);
  if (--blobs_[blob].references > 0) return;
  host_bytes_ -= blobs_[blob].size;
  free_rooms_[blobs_[blob].room].push_back(blobs_[blob].bytes);
  blobs_[blob] = {};
  free_blobs_.push_back(blob);
}

void CheckpointStore::give_back_memory() {
  CHECK_EQ(host_bytes_, 0);
  backend_.wait_for_copies(last_);
  free_rooms_.clear();
  pieces_.clear();
  left_ = 0;
}

std::optional<Checkpoint> CheckpointStore::to_host(const Checkpoint& checkpoint, std::span<const int32_t> shared) {
  CHECK(checkpoint.tier == Tier::kDevice);
  const auto slot = take_blob(slots_.bytes_per_slot(), slots_.bytes_per_slot());
  if (!slot) return std::nullopt;
  listed_.clear();
  Checkpoint copy = checkpoint;
  copy.tier = Tier::kHost;
  copy.slot = *slot;
  copy.pages.clear();
  std::vector<int32_t> filled{*slot};
  for (size_t i = 0; i < checkpoint.pages.size(); ++i) {
    if (shared[i] >= 0) {
      ++blobs_[shared[i]].references;
      copy.pages.push_back(shared[i]);
      continue;
    }
    const int64_t tokens = entries(checkpoint.P, i);
    const auto page = take_blob(pages_.content_bytes(tokens), pages_.bytes_per_page());
    if (!page) {
      release(copy);
      return std::nullopt;
    }
    copy.pages.push_back(*page);
    filled.push_back(*page);
    pages_.copy_out(checkpoint.pages[i], tokens, blobs_[*page].bytes, copy_later_);
  }
  slots_.copy_out(checkpoint.slot, blobs_[*slot].bytes, copy_later_);
  last_ = backend_.copy_beside(listed_, written_[static_cast<size_t>(checkpoint.slot)]);
  backend_.follow_copies();
  for (const int32_t blob : filled) blobs_[blob].filled = last_;
  return copy;
}

std::optional<Checkpoint> CheckpointStore::to_device(const CheckpointContent& content, std::span<const int32_t> shared,
                                                     const PagePool::CopyBytes& copy_bytes) {
  if (slots_.free_slots() < 1 || pages_.free_pages() < std::count(shared.begin(), shared.end(), -1))
    return std::nullopt;
  Checkpoint copy{content.P, *slots_.take(), {}, content.mtp_begin, content.position_delta, Tier::kDevice};
  slots_.copy_in(copy.slot, content.slot, copy_bytes);
  for (size_t i = 0; i < content.pages.size(); ++i) {
    if (shared[i] >= 0) {
      pages_.add_reference(shared[i]);
      copy.pages.push_back(shared[i]);
    } else {
      copy.pages.push_back(*pages_.take());
      pages_.copy_in(copy.pages.back(), entries(content.P, i), content.pages[i], copy_bytes);
    }
  }
  return copy;
}

std::optional<Checkpoint> CheckpointStore::to_device(const CheckpointContent& content,
                                                     std::span<const int32_t> shared) {
  const auto copy = to_device(content, shared, copy_now_);
  if (copy) adopt(*copy);
  return copy;
}

std::optional<Checkpoint> CheckpointStore::to_device(const Checkpoint& checkpoint, std::span<const int32_t> shared) {
  listed_.clear();
  const auto copy = to_device(content(checkpoint), shared, copy_later_);
  if (!copy) return std::nullopt;
  last_ = backend_.copy_beside(listed_, backend_.uploads());
  backend_.follow_copies();
  adopt(*copy);
  return copy;
}

// Copies into it may be on their way.
CheckpointContent CheckpointStore::content(const Checkpoint& checkpoint) const {
  CHECK(checkpoint.tier == Tier::kHost);
  CheckpointContent content{
      checkpoint.P, checkpoint.mtp_begin, checkpoint.position_delta, blobs_[checkpoint.slot].bytes, {}};
  for (const int32_t page : checkpoint.pages) content.pages.push_back(blobs_[page].bytes);
  return content;
}

void CheckpointStore::append_content(const Checkpoint& checkpoint, std::vector<std::byte>& bytes) const {
  const auto grow = [&](int64_t size) {
    bytes.resize(bytes.size() + static_cast<size_t>(size));
    return bytes.data() + bytes.size() - size;
  };
  const bool on_host = checkpoint.tier == Tier::kHost;
  if (on_host) {
    Backend::CopyId filled = blobs_[checkpoint.slot].filled;
    for (const int32_t page : checkpoint.pages) filled = std::max(filled, blobs_[page].filled);
    backend_.wait_for_copies(filled);
  }
  std::byte* to = grow(slot_bytes());
  if (on_host)
    std::memcpy(to, blobs_[checkpoint.slot].bytes, static_cast<size_t>(slot_bytes()));
  else
    slots_.copy_out(checkpoint.slot, to, copy_now_);
  for (size_t i = 0; i < checkpoint.pages.size(); ++i) {
    const int64_t tokens = entries(checkpoint.P, i), size = pages_.content_bytes(tokens);
    to = grow(size);
    if (on_host)
      std::memcpy(to, blobs_[checkpoint.pages[i]].bytes, static_cast<size_t>(size));
    else
      pages_.copy_out(checkpoint.pages[i], tokens, to, copy_now_);
  }
}

int64_t CheckpointStore::bytes(Tier tier) const {
  if (tier == Tier::kHost) return host_bytes_;
  return slots_held_ * slots_.bytes_per_slot() + pages_.cached_only_pages() * pages_.bytes_per_page();
}

int64_t CheckpointStore::freed_pages(const Checkpoint& checkpoint) const {
  return std::count_if(checkpoint.pages.begin(), checkpoint.pages.end(),
                       [&](int32_t page) { return pages_.references(page) == 1; });
}

int64_t CheckpointStore::freed_bytes(const Checkpoint& checkpoint) const {
  if (checkpoint.tier == Tier::kDevice) return slot_bytes() + freed_pages(checkpoint) * pages_.bytes_per_page();
  int64_t bytes = slot_bytes();
  for (const int32_t page : checkpoint.pages)
    if (blobs_[page].references == 1) bytes += blobs_[page].size;
  return bytes;
}

int64_t CheckpointStore::page_bytes(Tier tier, int32_t page) const {
  if (tier == Tier::kHost) return blobs_[page].size;
  return pages_.only_cached(page) ? pages_.bytes_per_page() : 0;
}

int64_t CheckpointStore::bytes_on_host(int64_t P, std::span<const int32_t> shared) const {
  int64_t bytes = slot_bytes();
  for (size_t i = 0; i < shared.size(); ++i)
    if (shared[i] < 0) bytes += pages_.content_bytes(entries(P, i));
  return bytes;
}

int CheckpointStore::holders(Tier tier, int32_t page) const {
  return tier == Tier::kHost ? blobs_[page].references : pages_.cached_references(page);
}

}  // namespace calandra

#include "apps/api/response_store.h"

namespace calandra::apps {

size_t ResponseStore::size_of(const Entry& entry) {
  return 2 * entry.first.size() + entry.second.response.size() + entry.second.turns.size();
}

void ResponseStore::drop(std::list<Entry>::iterator entry) {
  bytes_ -= size_of(*entry);
  by_id_.erase(entry->first);
  entries_.erase(entry);
}

void ResponseStore::put(const std::string& id, Kept kept) {
  const std::lock_guard lock(mutex_);
  if (const auto found = by_id_.find(id); found != by_id_.end()) drop(found->second);
  constexpr size_t kShare = 8;  // of the bytes, for one
  if (size_of({id, kept}) > most_bytes_ / kShare) return;
  entries_.emplace_back(id, std::move(kept));
  by_id_[id] = std::prev(entries_.end());
  bytes_ += size_of(entries_.back());
  while (!entries_.empty() && (entries_.size() > most_ || bytes_ > most_bytes_)) drop(entries_.begin());
}

std::optional<ResponseStore::Kept> ResponseStore::find(const std::string& id) const {
  const std::lock_guard lock(mutex_);
  const auto found = by_id_.find(id);
  if (found == by_id_.end()) return std::nullopt;
  return found->second->second;
}

bool ResponseStore::erase(const std::string& id) {
  const std::lock_guard lock(mutex_);
  const auto found = by_id_.find(id);
  if (found == by_id_.end()) return false;
  drop(found->second);
  return true;
}

size_t ResponseStore::bytes() const {
  const std::lock_guard lock(mutex_);
  return bytes_;
}

}  // namespace calandra::apps

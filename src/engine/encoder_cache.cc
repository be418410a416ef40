#include "engine/encoder_cache.h"

namespace calandra {

EncoderCache::Key EncoderCache::key_of(const EncoderInput& input) {
  return {input.content_hash, {input.grid.t, input.grid.h, input.grid.w}};
}

int64_t EncoderCache::rows_of(const EncoderInput& input) const {
  const int64_t merge = encoder_.spatial_merge_size();
  return input.grid.patches() / (merge * merge);
}

std::shared_ptr<const ImageEmbeds> EncoderCache::encode(const EncoderInput& input) {
  ++queries_;
  const Key key = key_of(input);
  if (const auto found = entries_.find(key); found != entries_.end()) {
    ++hits_;
    order_.splice(order_.end(), order_, found->second.place);
    return found->second.embeds;
  }
  auto embeds =
      std::make_shared<const ImageEmbeds>(encode_patches(encoder_, backend_, input.patches, {&input.grid, 1}));
  order_.push_back(key);
  const auto bytes = static_cast<int64_t>(embeds->memory.bytes());
  entries_.emplace(key, Entry{embeds, bytes, std::prev(order_.end())});
  bytes_ += bytes;
  enforce_limit();
  return embeds;
}

// Drops the least recently used ones, but none that somebody holds: dropping it would free nothing.
void EncoderCache::drop_above(int64_t bytes) {
  for (auto next = order_.begin(); bytes_ > bytes && next != order_.end();) {
    const auto place = next++;
    const auto entry = entries_.find(*place);
    if (entry->second.embeds.use_count() > 1) continue;
    bytes_ -= entry->second.bytes;
    entries_.erase(entry);
    order_.erase(place);
  }
}

}  // namespace calandra

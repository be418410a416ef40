// PagePool: small fixed pages of keys and values, reference-counted. One page id stands for the same tokens
// in every attention layer. A page with one owner is written by that owner; a shared page is immutable: whoever
// continues in it takes a copy.
#pragma once

#include <optional>
#include <vector>

#include "cache/cache_spec.h"

namespace calandra {

// Pages that so many tokens take.
inline int64_t pages_for(int64_t tokens, int64_t page_tokens) { return (tokens + page_tokens - 1) / page_tokens; }

class PagePool {
 public:
  // `specs` per layer, in layer order; layers without paged tensors keep none. `page_tokens` is 16 in production, 1 in
  // hostile builds.
  PagePool(const std::vector<CacheSpec>& specs, int64_t pages, int64_t page_tokens, const Allocate& allocate);

  int64_t page_tokens() const { return page_tokens_; }
  int64_t pages() const { return static_cast<int64_t>(references_.size()); }
  int64_t free_pages() const { return static_cast<int64_t>(free_.size()); }
  int64_t bytes_per_page() const { return bytes_per_page_; }
  int64_t bytes() const { return bytes_per_page_ * pages(); }

  // A page with one reference, or nothing when all are taken. Its content is undefined.
  std::optional<int32_t> take();
  void add_reference(int32_t page);
  // The last reference frees the page.
  void release(int32_t page);
  int references(int32_t page) const { return references_[page]; }

  // Of a page's references, those of checkpoints: one of the holder's own becomes a cached one and back, before it is
  // released. The pool counts the pages that only checkpoints hold, whoever lets go last.
  void mark_cached(int32_t page);
  void unmark_cached(int32_t page);
  int cached_references(int32_t page) const { return cached_[page]; }
  bool only_cached(int32_t page) const { return cached_[page] > 0 && cached_[page] == references_[page]; }
  int64_t cached_only_pages() const { return cached_only_; }

  // Copy-on-write: copies the first `tokens` entries of every layer from one page to another.
  using CopyBytes = std::function<void(void* to, const void* from, size_t bytes)>;
  void copy(int32_t from, int32_t to, int64_t tokens, const CopyBytes& copy_bytes);

  // The first `tokens` entries of a page by content, to other memory and back: per layer, per tensor
  // [heads, tokens, dim], one after the other.
  int64_t content_bytes(int64_t tokens) const { return bytes_per_page_ / page_tokens_ * tokens; }
  void copy_out(int32_t page, int64_t tokens, std::byte* to, const CopyBytes& copy_bytes) const;
  void copy_in(int32_t page, int64_t tokens, const std::byte* from, const CopyBytes& copy_bytes);

  int layers() const { return static_cast<int>(layers_.size()); }
  // Paged tensors of a layer, in the order of its spec.
  const std::vector<Tensor>& layer(int layer) const { return layers_[layer]; }

 private:
  int64_t page_tokens_;
  int64_t bytes_per_page_ = 0;
  std::vector<int> references_;
  std::vector<int> cached_;  // of them, those of checkpoints
  int64_t cached_only_ = 0;
  std::vector<int32_t> free_;
  std::vector<std::vector<Tensor>> layers_;
  std::vector<Buffer> buffers_;
};

}  // namespace calandra

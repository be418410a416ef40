#include "cache/page_pool.h"

namespace calandra {
namespace {

// Calls move(entries, bytes) for each piece of the page's content that lies together, in order of the content form.
template <class Move>
void for_each_piece(const std::vector<std::vector<Tensor>>& layers, int32_t page, int64_t tokens, const Move& move) {
  for (const std::vector<Tensor>& tensors : layers) {
    for (const Tensor& tensor : tensors) {
      const int64_t token_bytes = tensor.size(3) * static_cast<int64_t>(size_of(tensor.dtype()));
      if (tokens == tensor.size(2)) {
        move(tensor[page].data(), tensor.size(1) * tokens * token_bytes);
      } else {
        for (int64_t head = 0; head < tensor.size(1); ++head) move(tensor[page][head].data(), tokens * token_bytes);
      }
    }
  }
}

}  // namespace

PagePool::PagePool(const std::vector<CacheSpec>& specs, int64_t pages, int64_t page_tokens, const Allocate& allocate)
    : page_tokens_(page_tokens), references_(pages, 0), cached_(pages, 0) {
  CHECK_GT(page_tokens, 0);
  for (const CacheSpec& spec : specs) {
    bytes_per_page_ += spec.bytes_per_token() * page_tokens;
    std::vector<Tensor>& tensors = layers_.emplace_back();
    for (const CacheSpec::Paged& paged : spec.paged) {
      const Shape shape{pages, paged.heads, page_tokens, paged.dim};
      buffers_.push_back(allocate(shape.numel() * size_of(paged.dtype)));
      tensors.push_back(buffers_.back().tensor(paged.dtype, shape));
    }
  }
  free_.reserve(pages);
  for (int64_t page = pages - 1; page >= 0; --page) free_.push_back(static_cast<int32_t>(page));
}

std::optional<int32_t> PagePool::take() {
  if (free_.empty()) return std::nullopt;
  const int32_t page = free_.back();
  free_.pop_back();
  CHECK_EQ(references_[page], 0);
  references_[page] = 1;
  return page;
}

void PagePool::add_reference(int32_t page) {
  CHECK_GT(references_.at(page), 0);
  cached_only_ -= only_cached(page);
  ++references_[page];
}

void PagePool::release(int32_t page) {
  CHECK_GT(references_.at(page), cached_[page]);
  if (--references_[page] == 0) free_.push_back(page);
  cached_only_ += only_cached(page);
}

void PagePool::mark_cached(int32_t page) {
  CHECK_GT(references_.at(page), cached_[page]);
  ++cached_[page];
  cached_only_ += only_cached(page);
}

void PagePool::unmark_cached(int32_t page) {
  CHECK_GT(cached_.at(page), 0);
  cached_only_ -= only_cached(page);
  --cached_[page];
}

void PagePool::copy(int32_t from, int32_t to, int64_t tokens, const CopyBytes& copy_bytes) {
  CHECK_LE(tokens, page_tokens_);
  CHECK_EQ(references_.at(to), 1);
  if (tokens == 0) return;
  for (const std::vector<Tensor>& tensors : layers_) {
    for (const Tensor& tensor : tensors) {
      for (int64_t head = 0; head < tensor.size(1); ++head)
        copy_bytes(tensor[to][head].data(), tensor[from][head].data(),
                   tokens * tensor.size(3) * size_of(tensor.dtype()));
    }
  }
}

void PagePool::copy_out(int32_t page, int64_t tokens, std::byte* to, const CopyBytes& copy_bytes) const {
  CHECK_GT(references_.at(page), 0);
  CHECK_LE(tokens, page_tokens_);
  if (tokens == 0) return;
  for_each_piece(layers_, page, tokens, [&](const void* piece, int64_t bytes) {
    copy_bytes(to, piece, bytes);
    to += bytes;
  });
}

void PagePool::copy_in(int32_t page, int64_t tokens, const std::byte* from, const CopyBytes& copy_bytes) {
  CHECK_EQ(references_.at(page), 1);
  CHECK_LE(tokens, page_tokens_);
  if (tokens == 0) return;
  for_each_piece(layers_, page, tokens, [&](void* piece, int64_t bytes) {
    copy_bytes(piece, from, bytes);
    from += bytes;
  });
}

}  // namespace calandra

#include "cache/page_pool.h"

namespace calandra {

PagePool::PagePool(const std::vector<CacheSpec>& specs, int64_t pages, int64_t page_tokens, const Allocate& allocate)
    : page_tokens_(page_tokens), references_(pages, 0) {
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
  ++references_[page];
}

void PagePool::release(int32_t page) {
  CHECK_GT(references_.at(page), 0);
  if (--references_[page] == 0) free_.push_back(page);
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

}  // namespace calandra

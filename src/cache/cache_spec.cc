#include "cache/cache_spec.h"

namespace calandra {

int64_t CacheSpec::bytes_per_token() const {
  int64_t bytes = 0;
  for (const Paged& tensor : paged) bytes += tensor.heads * tensor.dim * static_cast<int64_t>(size_of(tensor.dtype));
  return bytes;
}

int64_t CacheSpec::bytes_per_slot(int64_t pending_capacity) const {
  int64_t bytes = 0;
  for (const Slotted& tensor : slotted)
    bytes += tensor.shape.numel() * static_cast<int64_t>(size_of(tensor.dtype)) *
             (tensor.per_pending ? pending_capacity : 1);
  return bytes;
}

}  // namespace calandra

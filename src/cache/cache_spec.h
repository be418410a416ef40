// What a layer keeps between steps, declared in bytes that only the layer understands.
#pragma once

#include <cstdint>
#include <functional>
#include <vector>

#include "tensor/buffer.h"

namespace calandra {

// Memory of the device that the caches live on.
using Allocate = std::function<Buffer(size_t bytes)>;

struct CacheSpec {
  // One tensor in pages: [pages, heads, page tokens, dim].
  struct Paged {
    DType dtype;
    int64_t heads;
    int64_t dim;
  };
  // One tensor in slots: [slots, shape...]; with per_pending, [slots, M, shape...].
  struct Slotted {
    const char* name;  // for research outputs: "recurrent", "conv", …
    DType dtype;
    Shape shape;
    bool per_pending;
  };
  std::vector<Paged> paged;
  std::vector<Slotted> slotted;

  int64_t bytes_per_token() const;
  int64_t bytes_per_slot(int64_t pending_capacity) const;
};

// A layer's views of the pools, in the order of its spec.
struct LayerCache {
  std::vector<Tensor> paged;
  std::vector<Tensor> slotted;
};

}  // namespace calandra

// Workspace: an arena for one step's activations. Two halves that layers use in turn, so that a layer's
// result lives until the layer after next begins, and a step part that lives until the step's results are consumed.
#pragma once

#include <array>
#include <cstddef>
#include <memory>

#include "tensor/buffer.h"

namespace calandra {

class Workspace {
 public:
  // Counts only: alloc returns tensors without memory and the high-water marks become the sizes (dry run).
  Workspace() = default;
  // Exactly as large as `measured` needed. `buffer` must have measured.bytes() bytes.
  Workspace(const Workspace& measured, Buffer buffer);

  // 64-byte aligned, undefined content. Aborts when the part is exhausted. Builds with stamps (tensor/stamp.h) fill it
  // with NaN, and a tensor that is used after its part was emptied or released below it aborts.
  Tensor alloc(DType dtype, Shape shape);       // in the current half
  Tensor alloc_step(DType dtype, Shape shape);  // in the step part
  void flip();                                  // the other half becomes current and empty
  void reset();                                 // a new step: everything empty
  // A point to return to: what was allocated in the current half after mark() is given back by release().
  size_t mark() const { return parts_[current_].used; }
  void release(size_t mark);

  // What of every part is in use. Going to a place that an earlier step had, in builds without stamps, is as if the
  // same had been allocated again.
  struct Place {
    std::array<size_t, 3> used;
    int current;
  };
  Place place() const;
  void go_to(const Place& place);

  bool counting() const { return buffer_.data() == nullptr; }
  size_t bytes() const;

 private:
  struct Part {
    size_t begin = 0, used = 0, peak = 0, capacity = 0;
    std::unique_ptr<StampLedger> ledger;  // in builds with stamps, unless it only counts
  };
  Tensor alloc_in(Part& part, DType dtype, Shape shape);
  void give_back(Part& part, size_t mark);
  void poison(const Part& part, size_t from, size_t to);

  std::array<Part, 3> parts_;  // two halves and the step part
  int current_ = 0;
  Buffer buffer_;
};

}  // namespace calandra

// SlotPool: exact-size slots of recurrent state. A slot holds, per recurrent layer, the state after N
// tokens, the convolution window and the pending updates of up to M drafts; and once: N, accepted and the hidden rows.
#pragma once

#include <functional>
#include <optional>
#include <vector>

#include "cache/cache_spec.h"

namespace calandra {

class SlotPool {
 public:
  // `hidden_size` and `hidden_dtype` of the rows after the final norm; `pending_capacity` M >= 0.
  SlotPool(const std::vector<CacheSpec>& specs, int64_t hidden_size, DType hidden_dtype, int64_t slots,
           int64_t pending_capacity, const Allocate& allocate);

  int64_t slots() const { return slots_; }
  int64_t free_slots() const { return static_cast<int64_t>(free_.size()); }
  int64_t pending_capacity() const { return pending_capacity_; }
  int64_t bytes_per_slot() const { return bytes_per_slot_; }
  int64_t bytes() const { return bytes_per_slot_ * slots_; }

  // A free slot with one reference, or nothing. Its content is whatever its last owner left: a sequence that begins
  // reads the empty state (src -1).
  std::optional<int32_t> take();
  // Forks, and who continues from a checkpoint, read a slot that another holds too. A slot is written by a step only
  // while its one reference is the writer's.
  void add_reference(int32_t slot);
  // The last reference frees the slot.
  void release(int32_t slot);
  bool taken(int32_t slot) const { return references_.at(slot) > 0; }
  int references(int32_t slot) const { return references_.at(slot); }

  // All bytes_per_slot() bytes of a slot, to other memory and back: per layer its tensors, then N, accepted and the
  // hidden rows.
  using CopyBytes = std::function<void(void* to, const void* from, size_t bytes)>;
  void copy_out(int32_t slot, std::byte* to, const CopyBytes& copy_bytes) const;
  void copy_in(int32_t slot, const std::byte* from, const CopyBytes& copy_bytes);

  int layers() const { return static_cast<int>(layers_.size()); }
  const std::vector<Tensor>& layer(int layer) const { return layers_[layer]; }
  const Tensor& N() const { return N_; }                // [slots] i32
  const Tensor& accepted() const { return accepted_; }  // [slots] i32
  const Tensor& hidden() const { return hidden_; }      // [slots, 1 + M, D]

  static int64_t bytes_per_slot(const std::vector<CacheSpec>& specs, int64_t hidden_size, DType hidden_dtype,
                                int64_t pending_capacity);

 private:
  int64_t slots_;
  int64_t pending_capacity_;
  int64_t bytes_per_slot_;
  std::vector<int32_t> free_;
  std::vector<int> references_;
  std::vector<std::vector<Tensor>> layers_;
  Tensor N_, accepted_, hidden_;
  std::vector<Buffer> buffers_;
};

}  // namespace calandra

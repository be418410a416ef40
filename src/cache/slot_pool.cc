#include "cache/slot_pool.h"

namespace calandra {
namespace {

template <class Move>
void for_each_piece(const SlotPool& pool, int32_t slot, const Move& move) {
  const auto visit = [&](const Tensor& tensor) {
    if (!tensor.empty()) move(tensor[slot].data(), tensor.bytes() / tensor.size(0));
  };
  for (int layer = 0; layer < pool.layers(); ++layer)
    for (const Tensor& tensor : pool.layer(layer)) visit(tensor);
  visit(pool.N());
  visit(pool.accepted());
  visit(pool.hidden());
}

}  // namespace

int64_t SlotPool::bytes_per_slot(const std::vector<CacheSpec>& specs, int64_t hidden_size, DType hidden_dtype,
                                 int64_t pending_capacity) {
  int64_t bytes =
      2 * sizeof(int32_t) + (1 + pending_capacity) * hidden_size * static_cast<int64_t>(size_of(hidden_dtype));
  for (const CacheSpec& spec : specs) bytes += spec.bytes_per_slot(pending_capacity);
  return bytes;
}

SlotPool::SlotPool(const std::vector<CacheSpec>& specs, int64_t hidden_size, DType hidden_dtype, int64_t slots,
                   int64_t pending_capacity, const Allocate& allocate)
    : slots_(slots),
      pending_capacity_(pending_capacity),
      bytes_per_slot_(bytes_per_slot(specs, hidden_size, hidden_dtype, pending_capacity)),
      references_(slots, 0) {
  const auto make = [&](DType dtype, Shape shape) {
    buffers_.push_back(allocate(shape.numel() * size_of(dtype)));
    return buffers_.back().tensor(dtype, shape);
  };
  for (const CacheSpec& spec : specs) {
    std::vector<Tensor>& tensors = layers_.emplace_back();
    for (const CacheSpec::Slotted& slotted : spec.slotted) {
      Shape shape{slots};
      if (slotted.per_pending) shape.append(pending_capacity);
      for (int axis = 0; axis < slotted.shape.rank(); ++axis) shape.append(slotted.shape[axis]);
      tensors.push_back(make(slotted.dtype, shape));
    }
  }
  N_ = make(DType::kI32, {slots});
  accepted_ = make(DType::kI32, {slots});
  hidden_ = make(hidden_dtype, {slots, 1 + pending_capacity, hidden_size});
  free_.reserve(slots);
  for (int64_t slot = slots - 1; slot >= 0; --slot) free_.push_back(static_cast<int32_t>(slot));
}

std::optional<int32_t> SlotPool::take() {
  if (free_.empty()) return std::nullopt;
  const int32_t slot = free_.back();
  free_.pop_back();
  references_[slot] = 1;
  return slot;
}

void SlotPool::add_reference(int32_t slot) {
  CHECK_GT(references_.at(slot), 0);
  ++references_[slot];
}

void SlotPool::release(int32_t slot) {
  CHECK_MSG(taken(slot), "slot " + std::to_string(slot) + " is free already");
  if (--references_[slot] == 0) free_.push_back(slot);
}

void SlotPool::copy_out(int32_t slot, std::byte* to, const CopyBytes& copy_bytes) const {
  CHECK(taken(slot));
  for_each_piece(*this, slot, [&](const void* piece, int64_t bytes) {
    if (bytes == 0) return;  // no pending updates: there is no memory
    copy_bytes(to, piece, bytes);
    to += bytes;
  });
}

void SlotPool::copy_in(int32_t slot, const std::byte* from, const CopyBytes& copy_bytes) {
  CHECK(taken(slot));
  for_each_piece(*this, slot, [&](void* piece, int64_t bytes) {
    if (bytes == 0) return;
    copy_bytes(piece, from, bytes);
    from += bytes;
  });
}

}  // namespace calandra

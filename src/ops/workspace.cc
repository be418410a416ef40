#include "ops/workspace.h"

#include <cstring>
#include <string>
#include <utility>

#include "base/check.h"

namespace calandra {
namespace {

constexpr size_t kAlignment = 64;
constexpr size_t aligned(size_t bytes) { return (bytes + kAlignment - 1) / kAlignment * kAlignment; }

constexpr int kStep = 2;  // the part beside the two halves
constexpr const char* kPartNames[] = {"workspace half 0", "workspace half 1", "workspace step part"};

}  // namespace

Workspace::Workspace(const Workspace& measured, Buffer buffer) : buffer_(std::move(buffer)) {
  CHECK_EQ(buffer_.bytes(), measured.bytes());
  size_t begin = 0;
  for (size_t i = 0; i < parts_.size(); ++i) {
    parts_[i].begin = begin;
    parts_[i].capacity = measured.parts_[i].peak;
    begin += parts_[i].capacity;
    if (CALANDRA_STAMPS) parts_[i].ledger = std::make_unique<StampLedger>(kPartNames[i]);
  }
}

Tensor Workspace::alloc(DType dtype, Shape shape) { return alloc_in(parts_[current_], dtype, shape); }
Tensor Workspace::alloc_step(DType dtype, Shape shape) { return alloc_in(parts_[kStep], dtype, shape); }

void Workspace::flip() {
  current_ = 1 - current_;
  release(0);
}

void Workspace::reset() {
  for (Part& part : parts_) give_back(part, 0);
  current_ = 0;
}

void Workspace::release(size_t mark) {
  CHECK_LE(mark, parts_[current_].used);
  give_back(parts_[current_], mark);
}

Workspace::Place Workspace::place() const { return {{parts_[0].used, parts_[1].used, parts_[kStep].used}, current_}; }

void Workspace::go_to(const Place& place) {
  CHECK(!CALANDRA_STAMPS);
  for (size_t i = 0; i < parts_.size(); ++i) {
    CHECK_LE(place.used[i], parts_[i].capacity);
    parts_[i].used = place.used[i];
  }
  current_ = place.current;
}

void Workspace::give_back(Part& part, size_t mark) {
  poison(part, mark, part.used);
  part.used = mark;
  if (part.ledger) part.ledger->end_from(mark);
}

size_t Workspace::bytes() const {
  size_t sum = 0;
  for (const Part& part : parts_) sum += counting() ? part.peak : part.capacity;
  return sum;
}

Tensor Workspace::alloc_in(Part& part, DType dtype, Shape shape) {
  const size_t from = part.used;
  part.used += aligned(static_cast<size_t>(shape.numel()) * size_of(dtype));
  if (part.used > part.peak) part.peak = part.used;
  if (counting()) return Tensor(nullptr, dtype, shape);
  CHECK_MSG(part.used <= part.capacity, std::string(kPartNames[&part - parts_.data()]) + " needs " +
                                            std::to_string(part.used) + " bytes, measured " +
                                            std::to_string(part.capacity) + " in the dry run");
  poison(part, from, part.used);
  Tensor tensor(static_cast<std::byte*>(buffer_.data()) + part.begin + from, dtype, shape, buffer_.device());
  if (part.ledger) tensor.set_stamp({part.ledger.get(), from, part.ledger->next()});
  return tensor;
}

// All bits set reads as NaN.
void Workspace::poison(const Part& part, size_t from, size_t to) {
  if (!CALANDRA_STAMPS || counting() || from == to || buffer_.device().kind != DeviceKind::kCpu) return;
  std::memset(static_cast<std::byte*>(buffer_.data()) + part.begin + from, 0xff, to - from);
}

}  // namespace calandra

#include "ops/workspace.h"

#include <cstring>
#include <string>
#include <utility>

#include "base/check.h"

// Undefined content reads as NaN (all bits set) where a bug should show: hostile, sanitized and unoptimized builds.
#if defined(CALANDRA_HOSTILE) || defined(__SANITIZE_ADDRESS__) || !defined(__OPTIMIZE__)
#define CALANDRA_POISON 1
#else
#define CALANDRA_POISON 0
#endif

namespace calandra {
namespace {

constexpr size_t kAlignment = 64;
constexpr size_t aligned(size_t bytes) { return (bytes + kAlignment - 1) / kAlignment * kAlignment; }

constexpr int kStep = 2;  // the part beside the two halves
constexpr const char* kPartNames[] = {"half 0", "half 1", "step part"};

}  // namespace

Workspace::Workspace(const Workspace& measured, Buffer buffer) : buffer_(std::move(buffer)) {
  CHECK_EQ(buffer_.bytes(), measured.bytes());
  size_t begin = 0;
  for (size_t i = 0; i < parts_.size(); ++i) {
    parts_[i].begin = begin;
    parts_[i].capacity = measured.parts_[i].peak;
    begin += parts_[i].capacity;
  }
}

Tensor Workspace::alloc(DType dtype, Shape shape) { return alloc_in(parts_[current_], dtype, shape); }
Tensor Workspace::alloc_step(DType dtype, Shape shape) { return alloc_in(parts_[kStep], dtype, shape); }

void Workspace::flip() {
  current_ = 1 - current_;
  release(0);
}

void Workspace::reset() {
  for (Part& part : parts_) {
    poison(part, 0, part.used);
    part.used = 0;
  }
  current_ = 0;
}

void Workspace::release(size_t mark) {
  Part& part = parts_[current_];
  CHECK_LE(mark, part.used);
  poison(part, mark, part.used);
  part.used = mark;
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
  CHECK_MSG(part.used <= part.capacity, "workspace " + std::string(kPartNames[&part - parts_.data()]) + " needs " +
                                            std::to_string(part.used) + " bytes, measured " +
                                            std::to_string(part.capacity) + " in the dry run");
  poison(part, from, part.used);
  return Tensor(static_cast<std::byte*>(buffer_.data()) + part.begin + from, dtype, shape, buffer_.device());
}

void Workspace::poison(const Part& part, size_t from, size_t to) {
  if (!CALANDRA_POISON || counting() || from == to || buffer_.device().kind != DeviceKind::kCpu) return;
  std::memset(static_cast<std::byte*>(buffer_.data()) + part.begin + from, 0xff, to - from);
}

}  // namespace calandra

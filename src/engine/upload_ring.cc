#include "engine/upload_ring.h"

namespace calandra {
namespace {

constexpr size_t kAlign = 64;

}  // namespace

// Uploads lie in the order in which they were made, so the next memory is always that of the oldest ones.
void* UploadRing::take_bytes(size_t bytes) {
  CHECK_LE(bytes, memory_.bytes());
  begin_ = (end_ + kAlign - 1) / kAlign * kAlign;
  if (begin_ + bytes > memory_.bytes()) {
    wait_for(end_, memory_.bytes());
    begin_ = 0;
  }
  end_ = begin_ + bytes;
  wait_for(begin_, end_);
  return static_cast<std::byte*>(memory_.data()) + begin_;
}

// Until the oldest upload lies elsewhere.
void UploadRing::wait_for(size_t begin, size_t end) {
  size_t count = 0;
  for (; count < count_; ++count)
    if (const Upload& upload = uploads_[(first_ + count) % kMost]; upload.begin >= end || begin >= upload.end) break;
  forget(count);
}

// The `count` oldest ones, which are there when the last of them is.
void UploadRing::forget(size_t count) {
  if (count == 0) return;
  backend_.wait_for_upload(uploads_[(first_ + count - 1) % kMost].id);
  first_ = (first_ + count) % kMost;
  count_ -= count;
}

void UploadRing::send(ExecContext& ctx, void* to) {
  if (count_ == kMost) forget(kMost / 2);  // of steps long past
  uploads_[(first_ + count_++) % kMost] = {
      begin_, end_, backend_.upload(ctx, to, static_cast<std::byte*>(memory_.data()) + begin_, end_ - begin_)};
}

}  // namespace calandra

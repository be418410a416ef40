#include "tensor/stamp.h"

namespace calandra {

void StampLedger::end_from(size_t offset) {
  while (!ends_.empty() && ends_.back().offset >= offset) ends_.pop_back();
  ends_.push_back({offset, last_});
}

bool StampLedger::lives(size_t offset, uint64_t number) const {
  for (auto end = ends_.rbegin(); end != ends_.rend(); ++end)
    if (end->offset <= offset) return number > end->last;
  return true;
}

}  // namespace calandra

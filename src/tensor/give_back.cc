#include "tensor/give_back.h"

#include <sys/mman.h>

namespace calandra {

bool can_give_back(Device device) { return device == Device{}; }

void give_back(const Tensor& memory) {
  CHECK(can_give_back(memory.device()));
  if (memory.empty()) return;
  CHECK_EQ(madvise(memory.data(), memory.bytes(), MADV_DONTNEED), 0);
}

}  // namespace calandra

// Counts what a test program takes from the system: calls of the heap's functions, and bytes of anonymous mappings
// (Buffer::host). The program is linked with its own malloc and mmap (allocation_watch.cc), which count and pass on.
#pragma once

#include <atomic>
#include <cstdint>
#include <string>

namespace calandra::testing {

// False under sanitizers, which need malloc for themselves: nothing is counted.
bool allocations_are_counted();

// Bytes in anonymous mappings that the program asked for by name, without malloc's own and thread stacks.
int64_t mapped_bytes();

// Allocations of all threads while it lives. One at a time.
class AllocationWatch {
 public:
  AllocationWatch();
  ~AllocationWatch();
  AllocationWatch(const AllocationWatch&) = delete;

  int64_t count() const;
  // Where the first one was: the scope trail (base/check.h) of its thread, empty on a pool thread.
  std::string first() const;
};

}  // namespace calandra::testing

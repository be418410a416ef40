// operator new and delete of a program, over malloc, that tell the WorkBudget of their thread. Linked into programs,
// not into the library, whose users have their own.
#include <cstdlib>
#include <new>

#include "structured/work_budget.h"

namespace {

void* allocate(size_t bytes) {
  calandra::WorkBudget::before(bytes);
  void* allocated = std::malloc(bytes == 0 ? 1 : bytes);
  if (allocated == nullptr) throw std::bad_alloc();
  calandra::WorkBudget::after(allocated);
  return allocated;
}

void* allocate_or_null(size_t bytes) noexcept {
  try {
    return allocate(bytes);
  } catch (const std::bad_alloc&) {
    return nullptr;
  }
}

void release(void* allocated) noexcept {
  if (allocated == nullptr) return;
  calandra::WorkBudget::freed(allocated);
  std::free(allocated);
}

}  // namespace

void* operator new(size_t bytes) { return allocate(bytes); }
void* operator new[](size_t bytes) { return allocate(bytes); }
void* operator new(size_t bytes, const std::nothrow_t&) noexcept { return allocate_or_null(bytes); }
void* operator new[](size_t bytes, const std::nothrow_t&) noexcept { return allocate_or_null(bytes); }
void operator delete(void* allocated) noexcept { release(allocated); }
void operator delete[](void* allocated) noexcept { release(allocated); }
void operator delete(void* allocated, size_t) noexcept { release(allocated); }
void operator delete[](void* allocated, size_t) noexcept { release(allocated); }
void operator delete(void* allocated, const std::nothrow_t&) noexcept { release(allocated); }
void operator delete[](void* allocated, const std::nothrow_t&) noexcept { release(allocated); }

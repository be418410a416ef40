#include "tests/allocation_watch.h"

#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <cstdlib>

#include "base/check.h"

#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
#define CALANDRA_OWN_MALLOC 0
#else
#define CALANDRA_OWN_MALLOC 1
#endif

namespace calandra::testing {
namespace {

std::atomic<bool> watching{false};
std::atomic<int64_t> allocations{0}, mapped{0};
thread_local bool inside = false;  // what the notes below allocate does not count

std::string& first_trail() {
  static std::string trail;
  return trail;
}

[[maybe_unused]] void note() {
  if (!watching.load(std::memory_order_relaxed) || inside) return;
  inside = true;
  if (allocations.fetch_add(1) == 0) first_trail() = Scope::trail();
  inside = false;
}

}  // namespace

bool allocations_are_counted() { return CALANDRA_OWN_MALLOC; }
int64_t mapped_bytes() { return mapped.load(); }

AllocationWatch::AllocationWatch() {
  first_trail().clear();
  allocations = 0;
  CHECK(!watching.exchange(true));
}
AllocationWatch::~AllocationWatch() { watching = false; }

int64_t AllocationWatch::count() const { return allocations.load(); }
std::string AllocationWatch::first() const { return first_trail(); }

}  // namespace calandra::testing

#if CALANDRA_OWN_MALLOC
using calandra::testing::note;

extern "C" {

// glibc's own, under the names that it offers to whoever replaces malloc.
void* __libc_malloc(size_t bytes);
void* __libc_calloc(size_t count, size_t bytes);
void* __libc_realloc(void* old, size_t bytes);
void* __libc_memalign(size_t alignment, size_t bytes);

void* malloc(size_t bytes) noexcept {
  note();
  return __libc_malloc(bytes);
}

void* calloc(size_t count, size_t bytes) noexcept {
  note();
  return __libc_calloc(count, bytes);
}

void* realloc(void* old, size_t bytes) noexcept {
  note();
  return __libc_realloc(old, bytes);
}

void* aligned_alloc(size_t alignment, size_t bytes) noexcept {
  note();
  return __libc_memalign(alignment, bytes);
}

int posix_memalign(void** result, size_t alignment, size_t bytes) noexcept {
  note();
  *result = __libc_memalign(alignment, bytes);
  return *result == nullptr;
}

void* mmap(void* wanted, size_t bytes, int protection, int flags, int file, off_t offset) noexcept {
  note();
  auto* at = reinterpret_cast<void*>(syscall(SYS_mmap, wanted, bytes, protection, flags, file, offset));
  if (at != MAP_FAILED && (flags & MAP_ANONYMOUS) != 0) calandra::testing::mapped += static_cast<int64_t>(bytes);
  return at;
}

// Of anonymous mappings only: the program has no others.
int munmap(void* at, size_t bytes) noexcept {
  const auto result = static_cast<int>(syscall(SYS_munmap, at, bytes));
  if (result == 0) calandra::testing::mapped -= static_cast<int64_t>(bytes);
  return result;
}
}
#endif

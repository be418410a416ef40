// Free memory of the device that the thread uses; the driver's own word.
#pragma once

#include <dlfcn.h>

#include <cstddef>

#include "base/check.h"

namespace calandra::testing {

inline size_t device_free_memory() {
  static void* const driver = dlopen("libcuda.so.1", RTLD_NOW);
  CHECK(driver != nullptr);
  static const auto get = reinterpret_cast<int (*)(size_t*, size_t*)>(dlsym(driver, "cuMemGetInfo_v2"));
  CHECK(get != nullptr);
  size_t free = 0, total = 0;
  CHECK_EQ(get(&free, &total), 0);
  return free;
}

}  // namespace calandra::testing

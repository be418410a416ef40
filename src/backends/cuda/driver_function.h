// Functions of the driver, without a link to it.
#pragma once

#include <cuda_runtime_api.h>

#include "backends/cuda/cuda_check.h"
#include "base/check.h"

namespace calandra::cuda {

// As of `version`, as cudaTypedefs.h names its type: driver_function<PFN_cuMemMap_v10020>("cuMemMap", 10020).
template <class F>
F driver_function(const char* name, unsigned version) {
  void* found = nullptr;
  cudaDriverEntryPointQueryResult status;
  CUDA_CHECK(cudaGetDriverEntryPointByVersion(name, &found, version, cudaEnableDefault, &status));
  CHECK(status == cudaDriverEntryPointSuccess);
  return reinterpret_cast<F>(found);
}

}  // namespace calandra::cuda

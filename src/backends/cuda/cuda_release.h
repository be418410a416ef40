// Checked calls that give back what the device lent.
#pragma once

#include "backends/cuda/cuda_check.h"

namespace calandra::cuda {

// As `check`. When the process ends, the runtime is unloaded before objects that live as long as the process; then
// there is nothing left to give back.
inline void check_release(cudaError_t status, const char* call, const char* file, int line) {
  if (status != cudaErrorCudartUnloading) check(status, call, file, line);
}

}  // namespace calandra::cuda

#define CUDA_RELEASE(call) ::calandra::cuda::check_release(::calandra::cuda::counted(call), #call, __FILE__, __LINE__)

// Checked calls of the CUDA runtime. A failed one ends the process with the call, the error and the trail of scopes,
// which names the op.
#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>

namespace calandra::cuda {

// The call of this number from now on fails with cudaErrorUnknown; 0: none.
void fail_call(int64_t number);
// `status`, or an error when this call was chosen to fail.
cudaError_t counted(cudaError_t status);
// Ends the process unless `status` is cudaSuccess.
void check(cudaError_t status, const char* call, const char* file, int line);

}  // namespace calandra::cuda

#define CUDA_CHECK(call) ::calandra::cuda::check(::calandra::cuda::counted(call), #call, __FILE__, __LINE__)

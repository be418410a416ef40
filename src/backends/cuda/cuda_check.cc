#include "backends/cuda/cuda_check.h"

#include <atomic>
#include <string>

#include "base/check.h"

namespace calandra::cuda {
namespace {
std::atomic<int64_t> calls_to_failure{0};
}

void fail_call(int64_t number) { calls_to_failure = number; }

cudaError_t counted(cudaError_t status) {
  if (calls_to_failure.load(std::memory_order_relaxed) == 0) return status;
  return calls_to_failure.fetch_sub(1) == 1 ? cudaErrorUnknown : status;
}

void check(cudaError_t status, const char* call, const char* file, int line) {
  if (status == cudaSuccess) return;
  check_failed(file, line, call, std::string(cudaGetErrorName(status)) + ": " + cudaGetErrorString(status));
}

}  // namespace calandra::cuda

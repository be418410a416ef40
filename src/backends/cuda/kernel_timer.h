// Times of single kernels on the device: an event behind each.
#pragma once

#include <vector>

#include "backends/cuda/cuda_check.h"
#include "ops/backend.h"

namespace calandra::cuda {

class KernelTimer {
 public:
  // Lets the stream wait until the host is ahead, so that no kernel waits for its launch.
  explicit KernelTimer(cudaStream_t stream);
  ~KernelTimer();
  KernelTimer(const KernelTimer&) = delete;
  KernelTimer& operator=(const KernelTimer&) = delete;

  void note(cudaStream_t stream, const char* kernel);
  std::vector<Backend::KernelTime> times();  // waits for the kernels

 private:
  cudaEvent_t record(cudaStream_t stream);

  struct Note {
    const char* kernel;
    cudaEvent_t behind;
  };
  cudaEvent_t begin_;
  void *copied_to_, *copied_from_;
  std::vector<Note> notes_;
};

}  // namespace calandra::cuda

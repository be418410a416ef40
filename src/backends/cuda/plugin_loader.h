// Opens the plug-in with the CUDA backend. Part of the program, which links no CUDA.
#pragma once

#include <memory>
#include <string>

#include "backends/cuda/plugin.h"

namespace calandra {

struct OpenedCuda {
  std::unique_ptr<Backend> backend;  // null: it could not be opened
  bool plugin_found = false;
  std::string why_not;  // a sentence for the user, with what to do
};

// Looks for the plug-in beside the program and in ../lib (the program's RUNPATH), or at `file` if that is a path. It
// stays in the process.
OpenedCuda open_cuda_backend(const CudaOptions& options, const std::string& file = kCudaPluginFile);

}  // namespace calandra

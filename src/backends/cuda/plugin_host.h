// The plug-in's side of CudaHost.
#pragma once

#include "backends/cuda/plugin.h"

namespace calandra::cuda {

void set_host(const CudaHost& host);
// Makes the program throw LoadError. The caller holds nothing that would have to be destroyed.
[[noreturn]] void load_error(const char* message);

}  // namespace calandra::cuda

// The border between the program and its plug-in libcalandra_cuda.so. Both are built from one source tree and share the
// types of ops/ and tensor/, each with its own copy of the code and of the C++ runtime. Hence three rules:
//   - one C function crosses by name (calandra_cuda_plugin); everything else is a virtual member of Backend;
//   - the stamp is compared before anything is called, so that a plug-in of another build is refused;
//   - an exception is thrown by the program's runtime only: the plug-in asks for it through CudaHost. Messages and
//     failed checks go the same way. Memory comes from the one malloc of the process, whoever frees it.
#pragma once

#include <cstdint>
#include <cstring>
#include <string_view>

#include "ops/backend.h"

namespace calandra {

enum class LogLevel;  // base/log.h, which nvcc does not compile

struct CudaOptions {
  int device = 0;
  bool synchronous = false;    // wait after every kernel, so that a fault is found at its op
  bool enforce_eager = false;  // no recordings of steps (graphs)
  bool deterministic = false;  // sums in an order that does not depend on how many rows there are
  bool gives_back = false;     // memory of allocate can be given back
  int64_t fail_call = 0;       // tests: the CUDA call of this number fails, counted from 1; 0: none
};

// What the plug-in asks of the program.
struct CudaHost {
  void (*log)(LogLevel level, std::string_view text);
  void (*load_error)(const char* message);  // throws LoadError
  // Ends the process. `trail`: scopes inside the plug-in.
  void (*check_failed)(const char* file, int line, std::string_view condition, std::string_view detail,
                       std::string_view trail);
};

// Layout of what both sides touch.
struct CudaAbi {
  uint32_t version = 2;  // raised when a shared type changes its meaning but not its size
  uint32_t stamps = CALANDRA_STAMPS;
  uint32_t tensor = sizeof(Tensor);
  uint32_t batch = sizeof(Batch);
  uint32_t context = sizeof(ExecContext);
  uint32_t workspace = sizeof(Workspace);
  uint32_t moe_weights = sizeof(ops::SparseMoeWeights);
  uint32_t sampling = sizeof(ops::SamplingBatch) + sizeof(ops::SamplingRow) + sizeof(ops::SampledRow);
  uint32_t options = sizeof(CudaOptions);
  uint64_t virtuals = virtuals_of_backend();

  bool operator==(const CudaAbi&) const = default;

 private:
  // Place of the last virtual member in the table: how many Backend has (Itanium ABI: the first word of the pointer).
  static uint64_t virtuals_of_backend() {
    const auto member = &Backend::lightning_mixer;
    uint64_t place = 0;
    std::memcpy(&place, &member, sizeof place);
    return place;
  }
};

struct CudaPlugin {
  CudaAbi abi;
  // Throws LoadError, through `host`, when there is no device that can run the kernels.
  Backend* (*open)(const CudaHost& host, const CudaOptions& options);
};

constexpr const char* kCudaPluginFile = "libcalandra_cuda.so";
constexpr const char* kCudaPluginEntry = "calandra_cuda_plugin";

}  // namespace calandra

extern "C" const calandra::CudaPlugin* calandra_cuda_plugin();

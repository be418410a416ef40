// The one symbol that the plug-in exports.
#include "backends/cuda/cuda_backend.h"
#include "backends/cuda/plugin_host.h"

namespace calandra {
namespace {

Backend* open(const CudaHost& host, const CudaOptions& options) {
  cuda::set_host(host);
  cuda::check_device(options.device);
  return new CudaBackend(options);
}

}  // namespace
}  // namespace calandra

extern "C" __attribute__((visibility("default"))) const calandra::CudaPlugin* calandra_cuda_plugin() {
  static const calandra::CudaPlugin plugin{{}, calandra::open};
  return &plugin;
}

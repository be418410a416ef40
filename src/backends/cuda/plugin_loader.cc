#include "backends/cuda/plugin_loader.h"

#include <dlfcn.h>

#include "base/check.h"
#include "base/error.h"
#include "base/log.h"

namespace calandra {
namespace {

const CudaHost kHost{
    .log = [](LogLevel level, std::string_view text) { log_message(level, text); },
    .load_error = [](const char* message) { throw LoadError(message); },
    .check_failed =
        [](const char* file, int line, std::string_view condition, std::string_view detail, std::string_view trail) {
          const Scope inside(trail.empty() ? "cuda" : trail.data());
          check_failed(file, line, condition, detail);
        }};

}  // namespace

OpenedCuda open_cuda_backend(const CudaOptions& options, const std::string& file) {
  OpenedCuda opened;
  void* library = dlopen(file.c_str(), RTLD_NOW | RTLD_LOCAL | RTLD_NODELETE);
  if (library == nullptr) {
    const char* error = dlerror();
    opened.why_not = "the plug-in " + file + " cannot be opened (" + (error != nullptr ? error : "no reason given") +
                     "); `make cuda` builds it beside the program";
    return opened;
  }
  opened.plugin_found = true;
  const auto entry = reinterpret_cast<decltype(&calandra_cuda_plugin)>(dlsym(library, kCudaPluginEntry));
  const CudaPlugin* plugin = entry != nullptr ? entry() : nullptr;
  if (plugin == nullptr || !(plugin->abi == CudaAbi())) {
    opened.why_not =
        "the plug-in " + file + " was built from another version of the program; build both again with `make cuda`";
    return opened;
  }
  try {
    opened.backend.reset(plugin->open(kHost, options));
  } catch (const LoadError& error) {
    opened.why_not = error.what();
  }
  return opened;
}

}  // namespace calandra

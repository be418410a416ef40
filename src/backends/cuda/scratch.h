// Gives back, at its end, what was allocated in the current half of the workspace since its begin.
#pragma once

#include "ops/workspace.h"

namespace calandra::cuda {

class Scratch {
 public:
  explicit Scratch(Workspace& workspace) : workspace_(workspace), mark_(workspace.mark()) {}
  ~Scratch() { workspace_.release(mark_); }
  Scratch(const Scratch&) = delete;
  Scratch& operator=(const Scratch&) = delete;

 private:
  Workspace& workspace_;
  size_t mark_;
};

}  // namespace calandra::cuda

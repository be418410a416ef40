// ExecContext: what a computation needs besides its inputs. First parameter of every op and layer.
#pragma once

#include "ops/workspace.h"
#include "parallel/communicator.h"

namespace calandra {

class Backend;

// Receives intermediate tensors under HF's names, for research and tests. `layer` is -1 outside the decoder layers.
class Taps {
 public:
  virtual ~Taps() = default;
  virtual void tap(int layer, const char* name, const Tensor& tensor) = 0;
};

struct ExecContext {
  Backend& backend;
  Workspace& workspace;
  Communicator& communicator;
  void* stream = nullptr;  // CUDA: cudaStream_t
  Taps* taps = nullptr;
  int layer = -1;        // decoder layer that runs, for taps
  bool dry_run = false;  // only measure the workspace: ops allocate their results and compute nothing

  void tap(const char* name, const Tensor& tensor) {
    if (taps != nullptr && !dry_run) taps->tap(layer, name, tensor);
  }
};

}  // namespace calandra

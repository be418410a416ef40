// ExecContext: what a computation needs besides its inputs. First parameter of every op and layer.
#pragma once

#include "ops/workspace.h"
#include "parallel/communicator.h"

namespace calandra {

class Backend;

// Receives intermediate tensors under the names of the oracle (docs/guide/logits.md), for research and tests. `layer`
// counts MTP layers behind those of the decoder and is -1 outside of both; the name "" is the layer's result.
class Taps {
 public:
  virtual ~Taps() = default;
  virtual void tap(int layer, const char* name, const Tensor& tensor) = 0;
  // The same in every forward: no rows of a chunk.
  virtual void constant(int layer, const char* name, const Tensor& tensor) { tap(layer, name, tensor); }
};

struct ExecContext {
  Backend& backend;
  Workspace& workspace;
  Communicator& communicator;
  void* stream = nullptr;  // CUDA: cudaStream_t
  Taps* taps = nullptr;
  int layer = -1;        // layer that runs, for taps
  bool dry_run = false;  // only measure the workspace: ops allocate their results and compute nothing

  void tap(const char* name, const Tensor& tensor) {
    if (taps != nullptr && !dry_run) taps->tap(layer, name, tensor);
  }
  void tap_constant(const char* name, const Tensor& tensor) {
    if (taps != nullptr && !dry_run) taps->constant(layer, name, tensor);
  }
};

}  // namespace calandra

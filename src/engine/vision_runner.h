// Runs a vision tower for one image or video, outside the steps of the engine.
#pragma once

#include <span>

#include "models/causal_lm.h"
#include "ops/backend.h"

namespace calandra {

// patches [P, values] f32 in host memory, P = sum of the grids   returns [P / merge^2, D] of the model's type, in
// memory of the backend's device. Takes the memory of the tower's activations while it runs. Throws LoadError when that
// is not there.
struct ImageEmbeds {
  Buffer memory;
  Tensor rows;
};
ImageEmbeds encode_patches(const VisionEncoder& encoder, Backend& backend, std::span<const float> patches,
                           std::span<const PatchGrid> grids, Taps* taps = nullptr);

}  // namespace calandra

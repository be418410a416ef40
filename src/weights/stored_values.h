// Values as a checkpoint stores them: dense host tensors of f32 | bf16 | f16.
#pragma once

#include <vector>

#include "tensor/tensor.h"

namespace calandra {

// Values that no computation survives. Reads at about the speed of memory, since every byte of a model passes here.
bool has_nan_or_infinity(const Tensor& values);

std::vector<float> to_f32(const Tensor& values);

}  // namespace calandra

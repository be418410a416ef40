// Random weights for --load-format dummy: a fixed function of the tensor's name, of sensible scale, made fast.
#pragma once

#include <string_view>

#include "tensor/tensor.h"

namespace calandra {

// Fills a dense host tensor: bf16 for matrices, f32 for small tensors.
void fill_dummy(std::string_view name, Tensor& tensor);

}  // namespace calandra

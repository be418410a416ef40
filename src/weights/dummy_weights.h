// Random weights for --load-format dummy: a fixed function of the tensor's name, of sensible scale, made fast.
#pragma once

#include <string_view>

#include "tensor/tensor.h"

namespace calandra {

// Fills a dense host tensor: bf16 for matrices, f32 for small tensors. `first` tells apart what is taken of one stored
// tensor.
void fill_dummy(std::string_view name, int64_t first, const Tensor& tensor);

}  // namespace calandra

// Random weights for --load-format dummy: a fixed function of the tensor's name, of sensible scale, made fast.
#pragma once

#include <string_view>

#include "tensor/tensor.h"

namespace calandra {

// Fills a dense host tensor: bf16 or f8_e4m3 for matrices, f32 for small tensors. `row` is the first row that is taken
// of a stored tensor, so that its parts differ.
void fill_dummy(std::string_view name, int64_t row, const Tensor& tensor);

// The scale of every block of such an f8_e4m3 matrix.
float dummy_scale(int64_t K);

// Whether FP8 releases store this matrix in FP8: not embeddings, heads, routers, gates and the projections of few rows.
bool released_in_fp8(std::string_view name);

}  // namespace calandra

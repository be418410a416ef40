// Random weights for --load-format dummy and for checkpoints without meaning: a fixed function of the tensor's name and
// of the row, of sensible scale, made fast.
#pragma once

#include <string_view>

#include "tensor/tensor.h"

namespace calandra {

// Fills a dense host tensor: rows of a matrix [N, K] of bf16 or f8_e4m3, of which `row` is the number of the first in
// the stored tensor, or all of a small tensor of f32.
void fill_dummy(std::string_view name, int64_t row, const Tensor& tensor);

// The scale of every block of such an f8_e4m3 matrix.
float dummy_scale(int64_t K);

// Whether FP8 releases store this matrix in FP8: not embeddings, heads, routers, gates and the projections of few rows.
bool released_in_fp8(std::string_view name);

}  // namespace calandra

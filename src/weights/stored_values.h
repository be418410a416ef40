// Values as a checkpoint stores them: dense host tensors of f32 | bf16 | f16 | f8_e4m3.
#pragma once

#include <span>
#include <vector>

#include "ops/weight.h"

namespace calandra {

// Values that no computation survives. Reads at about the speed of memory, since every byte of a model passes here.
bool has_nan_or_infinity(const Tensor& values);

std::vector<float> to_f32(const Tensor& values);

// The matrix that is meant: values times scales where there are scales, each product rounded once.
std::vector<float> to_f32(const StoredMatrix& matrix);

// `to` is a dense tensor of f32 | bf16 | f16 with as many elements.
void from_f32(std::span<const float> values, const Tensor& to);

}  // namespace calandra

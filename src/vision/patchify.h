// 8-bit images to the rows that the patch embedding of a vision tower multiplies.
//   P patches = t * h * w of the grid   C = 3   Tp temporal_patch_size   Ps patch_size   M merge_size
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "tensor/patch_grid.h"
#include "vision/image.h"
#include "vision/processor_config.h"

namespace calandra {

// Rows in the order t, block row, block column, row in the block, column in the block (a block is M x M patches, one
// token); a row's values in the order channel, frame, y, x, as in the flattened kernel of the 3-D convolution.
struct Patches {
  PatchGrid grid;
  std::vector<float> values;  // [P, C * Tp * Ps * Ps]
};

// (level - mean / rescale) / (std / rescale) in f32 with both constants rounded to f32 first, as Transformers fuses it.
Patches patchify_image(const Image& image, const PatchConfig& config);

// Frames of one size; a count that does not fill the last temporal patch is filled by repeating the last frame. The
// sides must be multiples of Ps * M and there must be a frame.
Patches patchify_frames(std::span<const Image> frames, const PatchConfig& config);

// Decoded image to patches: smart_resize, resize_bicubic, patchify_image.
std::variant<Patches, RequestError> preprocess_image(Image image, const ImageProcessorConfig& config);

}  // namespace calandra

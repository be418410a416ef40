// Functions of one instruction set for vision towers. As in dense_kernels.h, the index of an array of two is 0 for f32,
// 1 for bf16 activations.
//
// Attention: a block of queries of one segment and head goes through the keys of the segment in blocks of kSegmentKeys,
// counted from the first key of the segment. What fixes a result's bits: a dot is one chain of fused multiply-adds over
// the dims; the weights of a block are summed in 16 lanes by position; the values are added key by key, in one chain.
// Nothing of it depends on the other queries of the block.
#pragma once

#include <cstdint>

namespace calandra {

constexpr int kSegmentKeys = 128;
constexpr int kSegmentQueries = 48;
constexpr int kVectorFloats = 16;  // keys and dims are padded to a multiple

// The keys and values of a block, f32, and a block of queries on the way through them.
struct SegmentTile {
  const float* k;  // [Dh][width]: transposed, width keys of which the last ones may be padding
  const float* v;  // [keys][padded_Dh]
  int keys;        // at most kSegmentKeys
  int queries;     // at most kSegmentQueries
  int Dh;
  int padded_Dh;
  const float* q;  // [queries][padded_Dh], scaled
  float* scores;   // [queries][kSegmentKeys]
  float* acc;      // [queries][padded_Dh]: weighted sum of the values so far
  float* max;      // [queries]: the highest score so far
  float* sum;      // [queries]: of the weights e^(score - max) so far
};

struct VisionKernels {
  // One row of n numbers.
  void (*layer_norm[2])(const void* x, const float* weight, const float* bias, float eps, void* out, int64_t n);
  void (*gelu_tanh[2])(const void* x, void* out, int64_t n);
  void (*gelu_erf[2])(const void* x, void* out, int64_t n);
  // out[i] = sum_j weight[j] table[index[j] * stride + i] in the order of j
  void (*weighted_row[2])(const float* table, int64_t stride, const int32_t* index, const float* weight, int64_t J,
                          void* out, int64_t n);

  // Rows of x [.., Dh] in f32: for keys transposed, [Dh][width] with zeros behind the last row; otherwise times
  // `scale`, rows of padded_Dh numbers with zeros behind Dh.
  void (*transpose[2])(const void* x, int64_t stride, int rows, int Dh, int width, float* out);
  void (*widen[2])(const void* x, int64_t stride, int rows, int Dh, float scale, int padded_Dh, float* out);
  void (*clear)(const SegmentTile& tile);
  void (*attend)(const SegmentTile& tile);
  // out rows [.., Dh] = acc / sum
  void (*finish[2])(const SegmentTile& tile, void* out, int64_t stride);
};

const VisionKernels& vision_kernels_avx2();
const VisionKernels& vision_kernels_avx512();

}  // namespace calandra

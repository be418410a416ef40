// Paged attention on one core: a tile of query vectors against a range of keys. One table per instruction set.
//
// What fixes a result's bits: dots in 16 lanes over Dh; keys in blocks of kKeyBlock at absolute positions, the weights
// of a block summed in 16 lanes by position, the values added key by key; one partial (max, sum, weighted sum) per
// kKeyRange keys at absolute positions, partials merged in order. Nothing of it depends on the other vectors of the
// tile.
#pragma once

#include <cstdint>

namespace calandra {

constexpr int kKeyBlock = 64;
constexpr int kKeyRange = 512;    // a multiple of kKeyBlock
constexpr int kTileVectors = 32;  // query vectors of a tile
constexpr int kMaxHeadDim = 256;

// The keys and values of one sequence and key head. Strides in elements.
struct PagedKeys {
  const void* k;  // of the head in page 0
  const void* v;
  bool bf16;  // f32 otherwise
  int64_t page_stride;
  int64_t token_stride;
  int64_t page_tokens;
  const int32_t* block_table;
};

struct QueryTile {
  int vectors;                          // at most kTileVectors
  int Dh;                               // a multiple of 16, at most kMaxHeadDim
  float q[kTileVectors * kMaxHeadDim];  // [vectors, Dh], scaled
  int32_t begin[kTileVectors];          // first key
  int32_t end[kTileVectors];            // behind the last key
};

// Softmax over some keys: max of the scores, sum of the weights e^(score - max), weighted sum of the values. Without a
// key the max is -inf.
struct SoftmaxPartial {
  float max[kTileVectors];
  float sum[kTileVectors];
  float acc[kTileVectors * kMaxHeadDim];  // [vectors, Dh]
};

struct AttentionBlock {  // working memory of attend
  float scores[kTileVectors * kKeyBlock];
  float k[kKeyBlock * kMaxHeadDim];
  float v[kKeyBlock * kMaxHeadDim];
};

struct AttentionKernels {
  // out[Dh] = q[Dh] * scale
  void (*load_query)(const void* q, bool bf16, float scale, int Dh, float* out);
  // The keys [key_begin, key_end) that a vector of the tile has: `partial` is overwritten.
  void (*attend)(const QueryTile& tile, const PagedKeys& keys, int64_t key_begin, int64_t key_end,
                 AttentionBlock& block, SoftmaxPartial& partial);
  void (*clear)(int vectors, int Dh, SoftmaxPartial& partial);
  // total <- total with the keys of `partial`, which come after it
  void (*merge)(int vectors, int Dh, const SoftmaxPartial& partial, SoftmaxPartial& total);
  // out[Dh] = acc / sum of one vector; zeros without a key
  void (*finish)(const SoftmaxPartial& total, int vector, int Dh, bool bf16, void* out);
};

const AttentionKernels& attention_kernels_avx2();
const AttentionKernels& attention_kernels_avx512();

}  // namespace calandra

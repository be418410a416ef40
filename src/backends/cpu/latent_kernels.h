// Absorbed latent attention on one core: a tile of query vectors against a range of latents, each of which is key and
// value for all of them. One table per instruction set.
//
// What fixes a result's bits: a score is one chain of fused multiply-adds over the L + R dims; keys go in blocks of
// kLatentBlock at absolute positions, each block's weights summed and its values added key by key; one partial (max,
// sum, weighted sum) per kLatentRange keys at absolute positions, partials merged in order. Every vector of the tile
// sees its own keys and no others.
#pragma once

#include <cstdint>

namespace calandra {

constexpr int kLatentVectors = 32;  // query vectors of a tile
constexpr int kLatentBlock = 64;
constexpr int kLatentRange = 512;      // a multiple of kLatentBlock
constexpr int kMaxLatent = 512;        // L: a multiple of 16 up to this
constexpr int kMaxLatentWidth = 640;   // L + R, both multiples of 16
constexpr int kLatentKeyPadding = 16;  // floats from a widened key to the next, beyond L + R: other cache sets

// The latents of one sequence. Strides in elements.
struct LatentKeys {
  const void* latent;  // of page 0
  const void* k_pe;
  bool bf16;  // f32 otherwise
  int L, R;
  int64_t latent_page_stride, k_pe_page_stride;  // tokens of a page are L and R apart
  int64_t page_tokens;
  const int32_t* block_table;
};

struct LatentTile {
  int vectors;                                // at most kLatentVectors
  float q[kMaxLatentWidth * kLatentVectors];  // [L + R][kLatentVectors], scaled; lanes without a vector are zeros
  int32_t begin[kLatentVectors];              // first key
  int32_t end[kLatentVectors];                // behind the last key
};

// Softmax over some keys: max of the scores, sum of the weights e^(score - max), weighted sum of the latents. Without a
// key the max is -inf.
struct LatentPartial {
  float max[kLatentVectors];
  float sum[kLatentVectors];
  float acc[kLatentVectors * kMaxLatent];  // [vectors, L]
};

struct LatentBlock {  // working memory of attend
  float keys[kLatentBlock * (kMaxLatentWidth + kLatentKeyPadding)];
  float scores[kLatentBlock * kLatentVectors];  // [keys][kLatentVectors]
};

struct LatentKernels {
  // One vector into its lane of the tile: [q_lat, q_pe] * scale. `lane`: of the vector in q.
  void (*load_query)(const float* q_lat, const void* q_pe, bool bf16, float scale, int L, int R, float* lane);
  // The keys [key_begin, key_end) that a vector of the tile has: `partial` is overwritten.
  void (*attend)(const LatentTile& tile, const LatentKeys& keys, int64_t key_begin, int64_t key_end, LatentBlock& block,
                 LatentPartial& partial);
  void (*clear)(int vectors, int L, LatentPartial& partial);
  // total <- total with the keys of `partial`, which come after it
  void (*merge)(int vectors, int L, const LatentPartial& partial, LatentPartial& total);
  // out[L] = acc / sum of one vector; zeros without a key
  void (*finish)(const LatentPartial& total, int vector, int L, float* out);
};

const LatentKernels& latent_kernels_avx2();
const LatentKernels& latent_kernels_avx512();

}  // namespace calandra

// Views of the caches that ops read and write. The pools of cache/ own the memory.
#pragma once

#include "tensor/tensor.h"

namespace calandra {

// Keys and values of one attention layer. Token i of a sequence stands in page block_table[i / page], at i % page.
struct KvPages {
  Tensor k;  // [pages, Hkv, page, Dh] f32 | bf16
  Tensor v;  // [pages, Hkv, page, Dh]
  int64_t page_tokens() const { return k.size(2); }
};

// Latents of one multi-head latent attention layer, and the one rotated key that its heads share.
struct LatentPages {
  Tensor latent;  // [pages, page, L] f32 | bf16
  Tensor k_pe;    // [pages, page, R]
  int64_t page_tokens() const { return latent.size(1); }
};

// Counts of each slot, shared by all layers: N tokens folded into S, and how many pending tokens were accepted (P = N +
// accepted). The recurrences read `accepted` and never write either; commit_slots writes both after the last layer.
struct SlotCounts {
  Tensor N;         // [slots] i32
  Tensor accepted;  // [slots] i32
  Tensor hidden;    // [slots, 1 + M, D]  after the final norm: token N - 1, then each pending token
};

// Convolution window of one layer.
struct ConvState {
  Tensor window;   // [slots, W - 1, C]  raw inputs of the W - 1 tokens before N, oldest first, zeros before token 0
  Tensor pending;  // [slots, M, C]      raw inputs of the draft tokens from N on
};

// Recurrent state of one gated delta rule layer, with the inputs of the draft tokens from N on (M: pending capacity).
struct DeltaState {
  Tensor S;             // [slots, Hv, Dk, Dv] f32
  Tensor pending_k;     // [slots, M, Hk, Dk] f32, after the l2 norm
  Tensor pending_v;     // [slots, M, Hv, Dv] f32
  Tensor pending_g;     // [slots, M, Hv] f32
  Tensor pending_beta;  // [slots, M, Hv] f32
};

// Recurrent state of one lightning attention layer.
struct LightningState {
  Tensor S;          // [slots, H, Dk, Dv] f32
  Tensor pending_k;  // [slots, M, H, Dk] f32, after norm and rope
  Tensor pending_v;  // [slots, M, H, Dv] f32
};

}  // namespace calandra

// Multi-head latent attention (MLA, arXiv:2405.04434): keys and values live as one latent vector per token.
//   T rows   H heads   Dn, R nope and rope dims of queries and keys   Dv value dim   L latent width
#pragma once

#include "ops/batch.h"
#include "ops/cache_views.h"
#include "ops/exec_context.h"
#include "ops/weight.h"

namespace calandra::ops {

// Puts the rows' latents and rotated keys at their token index. Rows of inactive sequences write nothing.
//   latent [T, L] after its norm   k_pe [T, R] rotated   both as the pages
void store_latent(ExecContext& ctx, const Tensor& latent, const Tensor& k_pe, LatentPages& pages, const Batch& batch);

// kv_b_proj, cut per head.
struct LatentUpProjection {
  GroupedWeight key;    // H x [L, Dn]: transposed, so that q_nope^T W_UK is a product with x = q_nope
  GroupedWeight value;  // H x [Dv, L]
};

// Row t of sequence b sees the keys [first_key[b], token_index[t]] as stored, its own included. Per head h:
//   k_u = [W_UK,h c_u | k_pe,u];   o = sum_u softmax(q . k_u scale)_u (W_UV,h c_u)
// f32 throughout, one rounding at the end. The reference computes it as written; the cpu backend absorbed (q_lat =
// q_nope W_UK; scores with c_u; W_UV applied to sum_u p_u c_u), for every length, with keys in blocks at absolute
// positions: a result depends on neither chunk, batch, page size nor threads. Rows of inactive sequences give zeros.
//   q_nope [T, H, Dn]   q_pe [T, H, R] rotated   first_key [B] i32, absent: 0   returns [T, H, Dv]
Tensor latent_attention(ExecContext& ctx, const Tensor& q_nope, const Tensor& q_pe, const LatentUpProjection& up,
                        const LatentPages& pages, const Batch& batch, float scale, const Tensor& first_key = {});

}  // namespace calandra::ops

#include "ops/latent_attention.h"

#include "ops/backend.h"
#include "ops/batch_checks.h"
#include "ops/shapes.h"

namespace calandra::ops {

void store_latent(ExecContext& ctx, const Tensor& latent, const Tensor& k_pe, LatentPages& pages, const Batch& batch) {
  const Scope scope("store_latent");
  const Dims d = match_shapes("store_latent", {{latent, "T L", std::nullopt},
                                               {k_pe, "T R", latent.dtype()},
                                               {pages.latent, "pages page L", latent.dtype()},
                                               {pages.k_pe, "pages page R", latent.dtype()}});
  check_paged_batch("store_latent", batch, d["T"]);
  if (!ctx.dry_run && !latent.empty()) ctx.backend.store_latent(ctx, latent, k_pe, pages, batch);
}

Tensor latent_attention(ExecContext& ctx, const Tensor& q_nope, const Tensor& q_pe, const LatentUpProjection& up,
                        const LatentPages& pages, const Batch& batch, float scale, const Tensor& first_key) {
  const Scope scope("latent_attention");
  const Dims d = match_shapes("latent_attention", {{q_nope, "T H Dn", std::nullopt},
                                                   {q_pe, "T H R", q_nope.dtype()},
                                                   {pages.latent, "pages page L", q_nope.dtype()},
                                                   {pages.k_pe, "pages page R", q_nope.dtype()}});
  CHECK_EQ(up.key.E, d["H"]);
  CHECK_EQ(up.key.N, d["L"]);
  CHECK_EQ(up.key.K, d["Dn"]);
  CHECK_EQ(up.value.E, d["H"]);
  CHECK_EQ(up.value.K, d["L"]);
  check_paged_batch("latent_attention", batch, d["T"]);
  if (first_key.rank() != 0)
    match_shapes("latent_attention", {{batch.active, "B", DType::kI32}, {first_key, "B", DType::kI32}});
  Tensor out = ctx.workspace.alloc(q_nope.dtype(), {d["T"], d["H"], up.value.N});
  if (!out.empty()) ctx.backend.latent_attention(ctx, q_nope, q_pe, up, pages, batch, scale, first_key, out);
  return out;
}

}  // namespace calandra::ops

#include "ops/attention.h"

#include "ops/backend.h"
#include "ops/batch_checks.h"
#include "ops/shapes.h"

namespace calandra::ops {
namespace {

void check_heads(const char* op, const Tensor& q, const Tensor& k, const Tensor& v, const QkNorm& norm,
                 const Tensor& table, const KvPages& pages, const Batch& batch) {
  const Dims d = match_shapes(op, {{q, "T H Dh", std::nullopt},
                                   {k, "T Hkv Dh", q.dtype()},
                                   {v, "T Hkv Dh", q.dtype()},
                                   {table, "2 T F", q.dtype()},
                                   {pages.k, "pages Hkv page Dh", q.dtype()},
                                   {pages.v, "pages Hkv page Dh", q.dtype()}});
  CHECK_LE(2 * d["F"], d["Dh"]);
  CHECK_EQ(norm.q_norm.rank(), norm.k_norm.rank());
  if (norm.q_norm.rank() != 0)
    match_shapes(op, {{q, "T H Dh", std::nullopt}, {norm.q_norm, "Dh", DType::kF32}, {norm.k_norm, "Dh", DType::kF32}});
  check_paged_batch(op, batch, d["T"]);
}

void check_attention(const char* op, const Tensor& q, const KvPages& pages, const Batch& batch,
                     const Tensor& first_key) {
  const Dims d = match_shapes(op, {{q, "T H Dh", std::nullopt},
                                   {pages.k, "pages Hkv page Dh", q.dtype()},
                                   {pages.v, "pages Hkv page Dh", q.dtype()}});
  CHECK_EQ(d["H"] % d["Hkv"], 0);
  check_paged_batch(op, batch, d["T"]);
  if (first_key.rank() != 0) match_shapes(op, {{batch.active, "B", DType::kI32}, {first_key, "B", DType::kI32}});
}

}  // namespace

Tensor rope_table(ExecContext& ctx, const Tensor& positions, const RopeFrequencies& frequencies, DType dtype) {
  const Scope scope("rope_table");
  const Dims d = match_shapes("rope_table", {{positions, "3 T", DType::kI32},
                                             {frequencies.inv_freq, "F", DType::kF64},
                                             {frequencies.axis, "F", DType::kI32}});
  CHECK(dtype == DType::kF32 || dtype == DType::kBF16);
  Tensor out = ctx.workspace.alloc_step(dtype, {2, d["T"], d["F"]});  // all layers read it
  if (!ctx.dry_run && !out.empty()) ctx.backend.rope_table(ctx, positions, frequencies, out);
  return out;
}

Tensor rope(ExecContext& ctx, const Tensor& x, const Tensor& table, RopePairing pairing) {
  const Scope scope("rope");
  const Dims d = match_shapes("rope", {{x, "T H Dh", std::nullopt}, {table, "2 T F", std::nullopt}});
  CHECK(table.dtype() == x.dtype() || table.dtype() == DType::kF32);
  CHECK_LE(2 * d["F"], d["Dh"]);
  Tensor out = ctx.workspace.alloc(x.dtype(), x.shape());
  if (!ctx.dry_run && !x.empty()) ctx.backend.rope(ctx, x, table, pairing, out);
  return out;
}

void store_kv(ExecContext& ctx, const Tensor& k, const Tensor& v, KvPages& pages, const Batch& batch) {
  const Scope scope("store_kv");
  const Dims d = match_shapes("store_kv", {{k, "T Hkv Dh", std::nullopt},
                                           {v, "T Hkv Dh", k.dtype()},
                                           {pages.k, "pages Hkv page Dh", k.dtype()},
                                           {pages.v, "pages Hkv page Dh", k.dtype()}});
  check_paged_batch("store_kv", batch, d["T"]);
  if (!ctx.dry_run && !k.empty()) ctx.backend.store_kv(ctx, k, v, pages, batch);
}

Tensor qk_norm_rope_store(ExecContext& ctx, const Tensor& q, const Tensor& k, const Tensor& v, const QkNorm& norm,
                          const Tensor& table, KvPages& pages, const Batch& batch) {
  const Scope scope("qk_norm_rope_store");
  check_heads("qk_norm_rope_store", q, k, v, norm, table, pages, batch);
  Tensor out = ctx.workspace.alloc(q.dtype(), q.shape());
  if (!q.empty()) ctx.backend.qk_norm_rope_store(ctx, q, k, v, norm, table, pages, batch, out);
  return out;
}

Tensor paged_attention(ExecContext& ctx, const Tensor& q, const KvPages& pages, const Batch& batch, float scale,
                       const Tensor& first_key) {
  const Scope scope("paged_attention");
  check_attention("paged_attention", q, pages, batch, first_key);
  Tensor out = ctx.workspace.alloc(q.dtype(), q.shape());
  if (!q.empty()) ctx.backend.paged_attention(ctx, q, pages, batch, scale, first_key, out);
  return out;
}

Tensor attention_mixer(ExecContext& ctx, const Tensor& q, const Tensor& k, const Tensor& v, const Tensor& gate,
                       const QkNorm& norm, const Tensor& table, KvPages& pages, const Batch& batch, float scale,
                       const Tensor& first_key) {
  const Scope scope("attention_mixer");
  check_heads("attention_mixer", q, k, v, norm, table, pages, batch);
  check_attention("attention_mixer", q, pages, batch, first_key);
  Tensor out = ctx.workspace.alloc(q.dtype(), {q.size(0), q.size(1) * q.size(2)});
  if (gate.rank() != 0) match_shapes("attention_mixer", {{out, "T HD", q.dtype()}, {gate, "T HD", q.dtype()}});
  if (!q.empty()) ctx.backend.attention_mixer(ctx, q, k, v, gate, norm, table, pages, batch, scale, first_key, out);
  return out;
}

}  // namespace calandra::ops

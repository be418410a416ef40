#include "ops/vision.h"

#include "ops/backend.h"
#include "ops/shapes.h"

namespace calandra::ops {

Tensor layer_norm(ExecContext& ctx, const Tensor& x, const Tensor& weight, const Tensor& bias, float eps) {
  const Scope scope("layer_norm");
  match_shapes("layer_norm", {{x, "P D", std::nullopt}, {weight, "D", DType::kF32}, {bias, "D", DType::kF32}});
  Tensor out = ctx.workspace.alloc(x.dtype(), x.shape());
  if (!ctx.dry_run && !out.empty()) ctx.backend.layer_norm(ctx, x, weight, bias, eps, out);
  return out;
}

Tensor gelu(ExecContext& ctx, const Tensor& x, GeluForm form) {
  const Scope scope("gelu");
  match_shapes("gelu", {{x, "P D", std::nullopt}});
  Tensor out = ctx.workspace.alloc(x.dtype(), x.shape());
  if (!ctx.dry_run && !out.empty()) ctx.backend.gelu(ctx, x, form, out);
  return out;
}

Tensor weighted_rows(ExecContext& ctx, const Tensor& table, const Tensor& index, const Tensor& weight, DType dtype) {
  const Scope scope("weighted_rows");
  const Dims d = match_shapes("weighted_rows",
                              {{table, "N D", DType::kF32}, {index, "P J", DType::kI32}, {weight, "P J", DType::kF32}});
  CHECK(dtype == DType::kF32 || dtype == DType::kBF16);
  Tensor out = ctx.workspace.alloc(dtype, {d["P"], d["D"]});
  if (!ctx.dry_run && !out.empty()) ctx.backend.weighted_rows(ctx, table, index, weight, out);
  return out;
}

Tensor segment_attention(ExecContext& ctx, const Tensor& q, const Tensor& k, const Tensor& v,
                         const Tensor& segment_start, float scale) {
  const Scope scope("segment_attention");
  match_shapes("segment_attention", {{q, "P H Dh", std::nullopt},
                                     {k, "P H Dh", q.dtype()},
                                     {v, "P H Dh", q.dtype()},
                                     {segment_start, "S1", DType::kI32}});
  CHECK_GE(segment_start.size(0), 1);
  Tensor out = ctx.workspace.alloc(q.dtype(), q.shape());
  if (!out.empty()) ctx.backend.segment_attention(ctx, q, k, v, segment_start, scale, out);
  return out;
}

}  // namespace calandra::ops

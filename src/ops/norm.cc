#include "ops/norm.h"

#include "ops/backend.h"
#include "ops/shapes.h"

namespace calandra::ops {

Tensor rms_norm(ExecContext& ctx, const Tensor& x, const Tensor& weight, float eps, float weight_offset) {
  const Scope scope("rms_norm");
  match_shapes("rms_norm", {{x, x.rank() == 3 ? "T H D" : "T D", std::nullopt},
                            {weight, weight.rank() == 2 ? "H D" : "D", DType::kF32}});
  Tensor out = ctx.workspace.alloc(x.dtype(), x.shape());
  if (!ctx.dry_run && !x.empty()) ctx.backend.rms_norm(ctx, x, weight, eps, weight_offset, out);
  return out;
}

std::pair<Tensor, Tensor> add_rms_norm(ExecContext& ctx, const Tensor& x, const Tensor& y, const Tensor& weight,
                                       float eps, float weight_offset) {
  const Scope scope("add_rms_norm");
  match_shapes("add_rms_norm", {{x, "T D", std::nullopt}, {y, "T D", x.dtype()}, {weight, "D", DType::kF32}});
  Tensor sum = ctx.workspace.alloc(x.dtype(), x.shape());
  Tensor norm = ctx.workspace.alloc(x.dtype(), x.shape());
  if (!x.empty()) ctx.backend.add_rms_norm(ctx, x, y, weight, eps, weight_offset, sum, norm);
  return {sum, norm};
}

Tensor gated_rms_norm(ExecContext& ctx, const Tensor& x, const Tensor& z, const Tensor& weight, float eps,
                      GateActivation act, std::optional<DType> dtype) {
  const Scope scope("gated_rms_norm");
  match_shapes(
      "gated_rms_norm",
      {{x, "T H D", std::nullopt}, {z, "T H D", x.dtype()}, {weight, weight.rank() == 2 ? "H D" : "D", DType::kF32}});
  Tensor out = ctx.workspace.alloc(dtype.value_or(x.dtype()), x.shape());
  if (!ctx.dry_run && !x.empty()) ctx.backend.gated_rms_norm(ctx, x, z, weight, eps, act, out);
  return out;
}

}  // namespace calandra::ops

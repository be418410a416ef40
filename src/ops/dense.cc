#include "ops/dense.h"

#include "ops/backend.h"
#include "ops/shapes.h"

namespace calandra::ops {
namespace {

// Output of an elementwise op of two tensors of one shape and type.
Tensor like_both(const char* op, ExecContext& ctx, const Tensor& a, const Tensor& b) {
  match_shapes(op, {{a, "T D", std::nullopt}, {b, "T D", a.dtype()}});
  return ctx.workspace.alloc(a.dtype(), a.shape());
}

void check_float(DType dtype) { CHECK_MSG(dtype == DType::kF32 || dtype == DType::kBF16, std::string(name_of(dtype))); }

}  // namespace

PackResult linear(ExecContext& ctx, const Tensor& x, const LinearPack& pack, std::optional<DType> dtype) {
  const Scope scope("linear");
  const Dims d = match_shapes("linear", {{x, "T K", std::nullopt}});
  CHECK_EQ(d["K"], pack.K());
  check_float(dtype.value_or(x.dtype()));
  Tensor out = ctx.workspace.alloc(dtype.value_or(x.dtype()), {d["T"], pack.N()});
  if (!ctx.dry_run && !x.empty()) ctx.backend.linear(ctx, x, pack, out);
  PackResult result;
  int64_t column = 0;
  for (size_t i = 0; i < pack.parts().size(); ++i) {
    result[i] = out.slice(1, column, column + pack.parts()[i].N);
    column += pack.parts()[i].N;
  }
  return result;
}

Tensor linear(ExecContext& ctx, const Tensor& x, const PackedWeight& weight, DType dtype) {
  const Scope scope("linear");
  const Dims d = match_shapes("linear", {{x, "T K", std::nullopt}});
  CHECK_EQ(d["K"], weight.K);
  check_float(dtype);
  Tensor out = ctx.workspace.alloc(dtype, {d["T"], weight.N});
  if (!ctx.dry_run && !x.empty()) ctx.backend.linear(ctx, x, LinearPack{weight}, out);
  return out;
}

Tensor linear_add(ExecContext& ctx, const Tensor& x, const PackedWeight& weight, const Tensor& residual) {
  const Scope scope("linear_add");
  const Dims d = match_shapes("linear_add", {{x, "T K", std::nullopt}, {residual, "T N", x.dtype()}});
  CHECK_EQ(d["K"], weight.K);
  CHECK_EQ(d["N"], weight.N);
  Tensor out = ctx.workspace.alloc(x.dtype(), residual.shape());
  if (!x.empty()) ctx.backend.linear_add(ctx, x, weight, residual, out);
  return out;
}

Tensor swiglu_mlp(ExecContext& ctx, const Tensor& x, const LinearPack& gate_up, const PackedWeight& down,
                  const Tensor& residual) {
  const Scope scope("swiglu_mlp");
  const Dims d = match_shapes("swiglu_mlp", {{x, "T D", std::nullopt}, {residual, "T D", x.dtype()}});
  CHECK_EQ(gate_up.parts().size(), size_t{2});
  CHECK_EQ(gate_up.K(), d["D"]);
  for (const PackedWeight& part : gate_up.parts()) CHECK_EQ(part.N, down.K);
  CHECK_EQ(down.N, d["D"]);
  Tensor out = ctx.workspace.alloc(x.dtype(), x.shape());
  if (!x.empty()) ctx.backend.swiglu_mlp(ctx, x, gate_up, down, residual, out);
  return out;
}

Tensor silu_mul(ExecContext& ctx, const Tensor& gate, const Tensor& up) {
  const Scope scope("silu_mul");
  Tensor out = like_both("silu_mul", ctx, gate, up);
  if (!ctx.dry_run && !out.empty()) ctx.backend.silu_mul(ctx, gate, up, out);
  return out;
}

Tensor sigmoid_mul(ExecContext& ctx, const Tensor& x, const Tensor& gate) {
  const Scope scope("sigmoid_mul");
  const bool per_row = gate.rank() == 2 && gate.size(1) == 1;
  match_shapes("sigmoid_mul", {{x, "T F", std::nullopt}, {gate, per_row ? "T 1" : "T F", x.dtype()}});
  Tensor out = ctx.workspace.alloc(x.dtype(), x.shape());
  if (!ctx.dry_run && !out.empty()) ctx.backend.sigmoid_mul(ctx, x, gate, out);
  return out;
}

Tensor sigmoid(ExecContext& ctx, const Tensor& x) {
  const Scope scope("sigmoid");
  match_shapes("sigmoid", {{x, "T H", std::nullopt}});
  Tensor out = ctx.workspace.alloc(DType::kF32, x.shape());
  if (!ctx.dry_run && !out.empty()) ctx.backend.sigmoid(ctx, x, out);
  return out;
}

Tensor add(ExecContext& ctx, const Tensor& a, const Tensor& b) {
  const Scope scope("add");
  Tensor out = like_both("add", ctx, a, b);
  if (!ctx.dry_run && !out.empty()) ctx.backend.add(ctx, a, b, out);
  return out;
}

Tensor concat_columns(ExecContext& ctx, const Tensor& a, const Tensor& b) {
  const Scope scope("concat_columns");
  const Dims d = match_shapes("concat_columns", {{a, "T D1", std::nullopt}, {b, "T D2", a.dtype()}});
  Tensor out = ctx.workspace.alloc(a.dtype(), {d["T"], d["D1"] + d["D2"]});
  if (!ctx.dry_run && !out.empty()) ctx.backend.concat_columns(ctx, a, b, out);
  return out;
}

Tensor embedding(ExecContext& ctx, const Tensor& ids, const PackedWeight& weight, DType dtype) {
  const Scope scope("embedding");
  const Dims d = match_shapes("embedding", {{ids, "T", DType::kI32}});
  check_float(dtype);
  Tensor out = ctx.workspace.alloc(dtype, {d["T"], weight.K});
  if (!ctx.dry_run && !out.empty()) ctx.backend.embedding(ctx, ids, weight, out);
  return out;
}

Tensor gather_rows(ExecContext& ctx, const Tensor& x, const Tensor& rows) {
  const Scope scope("gather_rows");
  const Dims d = match_shapes("gather_rows", {{x, "T D", std::nullopt}, {rows, "N", DType::kI32}});
  Tensor out = ctx.workspace.alloc(x.dtype(), {d["N"], d["D"]});
  if (!ctx.dry_run && !out.empty()) ctx.backend.gather_rows(ctx, x, rows, out);
  return out;
}

void scatter_rows(ExecContext& ctx, Tensor& x, const Tensor& rows, const Tensor& values) {
  const Scope scope("scatter_rows");
  match_shapes("scatter_rows", {{x, "T D", std::nullopt}, {rows, "I", DType::kI32}, {values, "I D", x.dtype()}});
  if (!ctx.dry_run && !values.empty()) ctx.backend.scatter_rows(ctx, x, rows, values);
}

void copy_rows(ExecContext& ctx, const Tensor& from, const Tensor& from_rows, Tensor& to, const Tensor& to_rows) {
  const Scope scope("copy_rows");
  match_shapes("copy_rows", {{from, "T D", std::nullopt},
                             {to, "N D", from.dtype()},
                             {from_rows, "I", DType::kI32},
                             {to_rows, "I", DType::kI32}});
  if (!ctx.dry_run && !from_rows.empty()) ctx.backend.copy_rows(ctx, from, from_rows, to, to_rows);
}

}  // namespace calandra::ops

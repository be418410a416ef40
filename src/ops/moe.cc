#include "ops/moe.h"

#include "ops/backend.h"
#include "ops/shapes.h"

namespace calandra::ops {
namespace {

void check_options(const RouterOptions& options, int64_t E) {
  CHECK_GE(options.n_group, 1);
  CHECK_EQ(E % options.n_group, 0);
  CHECK_GE(options.topk_group, 1);
  CHECK_LE(options.topk_group, options.n_group);
  CHECK_GE(options.top_k, 1);
  CHECK_LE(options.top_k, options.topk_group * (E / options.n_group));
}

void check_experts(const GroupedWeight& weight, int64_t E, int64_t N, int64_t K) {
  CHECK_EQ(weight.E, E);
  CHECK_EQ(weight.N, N);
  CHECK_EQ(weight.K, K);
}

}  // namespace

Routing route(ExecContext& ctx, const Tensor& logits, const Tensor& bias, const RouterOptions& options) {
  const Scope scope("route");
  const Dims d = match_shapes("route", {{logits, "T E", DType::kF32}});
  if (bias.rank() > 0) match_shapes("route", {{logits, "T E", DType::kF32}, {bias, "E", DType::kF32}});
  check_options(options, d["E"]);
  Routing out{ctx.workspace.alloc(DType::kI32, {d["T"], options.top_k}),
              ctx.workspace.alloc(DType::kF32, {d["T"], options.top_k})};
  if (!logits.empty()) ctx.backend.route(ctx, logits, bias, options, out);
  return out;
}

Tensor grouped_linear(ExecContext& ctx, const Tensor& x, const GroupedWeight& weight, const Tensor& experts) {
  const Scope scope("grouped_linear");
  const Dims d = match_shapes("grouped_linear",
                              {{x, x.rank() == 3 ? "T k K" : "T K", std::nullopt}, {experts, "T k", DType::kI32}});
  CHECK_EQ(d["K"], weight.K);
  Tensor out = ctx.workspace.alloc(x.dtype(), {d["T"], d["k"], weight.N});
  if (!x.empty() && !out.empty()) ctx.backend.grouped_linear(ctx, x, weight, experts, out);
  return out;
}

Tensor moe_combine(ExecContext& ctx, const Tensor& y, const Tensor& weights) {
  const Scope scope("moe_combine");
  const Dims d = match_shapes("moe_combine", {{y, "T k D", std::nullopt}, {weights, "T k", DType::kF32}});
  Tensor out = ctx.workspace.alloc(y.dtype(), {d["T"], d["D"]});
  if (!ctx.dry_run && !out.empty()) ctx.backend.moe_combine(ctx, y, weights, out);
  return out;
}

Tensor sparse_moe(ExecContext& ctx, const Tensor& x, const SparseMoeWeights& weights, const RouterOptions& options,
                  const Tensor& residual) {
  const Scope scope("sparse_moe");
  const Dims d = match_shapes("sparse_moe", {{x, "T D", std::nullopt}, {residual, "T D", x.dtype()}});
  const int64_t D = d["D"], E = weights.router.N, F = weights.down.K, Fs = weights.shared_down.K;
  CHECK_EQ(weights.router.K, D);
  check_options(options, E);
  check_experts(weights.gate, E, F, D);
  check_experts(weights.up, E, F, D);
  check_experts(weights.down, E, D, F);
  if (weights.shared_down.N > 0) {
    CHECK_EQ(weights.shared_down.N, D);
    CHECK_EQ(weights.shared_gate_up.parts().size(), size_t{2});
    for (const PackedWeight& part : weights.shared_gate_up.parts()) {
      CHECK_EQ(part.N, Fs);
      CHECK_EQ(part.K, D);
    }
  }
  if (weights.shared_gate.N > 0) {
    CHECK_EQ(weights.shared_gate.N, 1);
    CHECK_EQ(weights.shared_gate.K, D);
    CHECK_GT(weights.shared_down.N, 0);
  }
  Tensor out = ctx.workspace.alloc(x.dtype(), x.shape());
  if (!x.empty()) ctx.backend.sparse_moe(ctx, x, weights, options, residual, out);
  return out;
}

}  // namespace calandra::ops

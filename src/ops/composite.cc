// Default bodies of the composite ops: the parts in the order of the paper. Each is the definition of its op, and the
// only place where the intermediate results have names (taps).
#include "ops/backend.h"

namespace calandra {
namespace {

// Gives back, at its end, what was allocated in the current half since its begin.
class Scratch {
 public:
  explicit Scratch(ExecContext& ctx) : workspace_(ctx.workspace), mark_(workspace_.mark()) {}
  ~Scratch() { workspace_.release(mark_); }
  Scratch(const Scratch&) = delete;
  Scratch& operator=(const Scratch&) = delete;

 private:
  Workspace& workspace_;
  size_t mark_;
};

}  // namespace

void Backend::linear_add(ExecContext& ctx, const Tensor& x, const PackedWeight& weight, const Tensor& residual,
                         Tensor& out) {
  const Scratch scratch(ctx);
  const Tensor product = ops::linear(ctx, x, weight, x.dtype());
  if (!ctx.dry_run) add(ctx, residual, product, out);
}

void Backend::swiglu_mlp(ExecContext& ctx, const Tensor& x, const LinearPack& gate_up, const PackedWeight& down,
                         const Tensor& residual, Tensor& out) {
  const Scratch scratch(ctx);
  const auto [gate, up, unused_2, unused_3] = ops::linear(ctx, x, gate_up);
  const Tensor h = ops::silu_mul(ctx, gate, up);
  linear_add(ctx, h, down, residual, out);
}

void Backend::add_rms_norm(ExecContext& ctx, const Tensor& x, const Tensor& y, const Tensor& weight, float eps,
                           float weight_offset, Tensor& sum, Tensor& norm) {
  if (ctx.dry_run) return;
  add(ctx, x, y, sum);
  rms_norm(ctx, sum, weight, eps, weight_offset, norm);
}

void Backend::qk_norm_rope_store(ExecContext& ctx, const Tensor& q, const Tensor& k, const Tensor& v,
                                 const ops::QkNorm& norm, const Tensor& table, KvPages& pages, const Batch& batch,
                                 Tensor& out) {
  const Scratch scratch(ctx);
  const Tensor q_normed = ops::rms_norm(ctx, q, norm.q_norm, norm.eps, norm.weight_offset);
  const Tensor k_normed = ops::rms_norm(ctx, k, norm.k_norm, norm.eps, norm.weight_offset);
  const Tensor k_rotated = ops::rope(ctx, k_normed, table);
  if (!ctx.dry_run) rope(ctx, q_normed, table, out);
  ops::store_kv(ctx, k_rotated, v, pages, batch);

  ctx.tap("q_normed", q_normed);
  ctx.tap("k_normed", k_normed);
  ctx.tap("q_rotated", out);
  ctx.tap("k_rotated", k_rotated);
  ctx.tap("v", v);
}

void Backend::gated_delta_mixer(ExecContext& ctx, const Tensor& qkv, const Tensor& z, const Tensor& b, const Tensor& a,
                                const ops::GatedDeltaWeights& weights, ConvState& conv, DeltaState& delta,
                                const Tensor& accepted, const Batch& batch, Tensor& out) {
  const Scratch scratch(ctx);
  const int64_t T = qkv.size(0), Hk = delta.pending_k.size(2), Dk = delta.S.size(2), Hv = delta.S.size(1),
                Dv = delta.S.size(3);

  const Tensor x = ops::causal_conv1d_silu(ctx, qkv, weights.conv1d, conv, accepted, batch);  // [T, C]
  const Tensor q = x.slice(1, 0, Hk * Dk).view({T, Hk, Dk});
  const Tensor k = x.slice(1, Hk * Dk, 2 * Hk * Dk).view({T, Hk, Dk});
  const Tensor v = x.slice(1, 2 * Hk * Dk, x.size(1)).view({T, Hv, Dv});

  const Tensor g = ops::log_decay(ctx, a, weights.A_log, weights.dt_bias);  // [T, Hv] f32
  const Tensor beta = ops::sigmoid(ctx, b);                                 // [T, Hv] f32
  const Tensor o = ops::gated_delta_rule(ctx, q, k, v, g, beta, delta, accepted, batch);

  Tensor gated = out.view({T, Hv, Dv});
  if (!ctx.dry_run) gated_rms_norm(ctx, o, z.view({T, Hv, Dv}), weights.norm, weights.eps, weights.gate, gated);

  ctx.tap("conv_input", qkv);
  ctx.tap("z", z);
  ctx.tap("conv_output", x);
  if (ctx.taps != nullptr) {  // the delta rule normalises inside
    ctx.tap("q_l2norm", ops::l2_norm(ctx, q));
    ctx.tap("k_l2norm", ops::l2_norm(ctx, k));
  }
  ctx.tap("v", v);
  ctx.tap("log_decay", g);
  ctx.tap("beta", beta);
  ctx.tap("core_output", o);
  ctx.tap("gated_norm", out);
}

}  // namespace calandra

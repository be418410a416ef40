// Default bodies of the composite ops: the parts in the order of the paper. Each is the definition of its op, and the
// only place where the intermediate results have names (taps).
#include <algorithm>
#include <cmath>
#include <functional>
#include <limits>
#include <numeric>
#include <vector>

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

// What is tapped but stays inside an op is worked out once more on the host.
std::vector<float> to_host(ExecContext& ctx, const Tensor& dense) {
  std::vector<float> values(static_cast<size_t>(dense.numel()));
  if (!ctx.dry_run) ctx.backend.copy_bytes(values.data(), dense.data(), values.size() * sizeof(float));
  return values;
}

template <class T>
Tensor to_device(ExecContext& ctx, const Shape& shape, const std::vector<T>& values) {
  const Tensor tensor = ctx.workspace.alloc(dtype_of<T>(), shape);
  CHECK_EQ(static_cast<int64_t>(values.size()), tensor.numel());
  if (!ctx.dry_run) ctx.backend.copy_bytes(tensor.data(), values.data(), values.size() * sizeof(T));
  return tensor;
}

void logits_to_scores(float* row, int64_t E, ops::RouterScore score) {
  if (score == ops::RouterScore::kSigmoid) {
    for (int64_t e = 0; e < E; ++e) row[e] = 1 / (1 + std::exp(-row[e]));
    return;
  }
  const float max = *std::max_element(row, row + E);
  for (int64_t e = 0; e < E; ++e) row[e] = std::exp(row[e] - max);
  const float sum = std::accumulate(row, row + E, 0.0f);
  for (int64_t e = 0; e < E; ++e) row[e] /= sum;
}

// The steps of `route` (ops/moe.h) before its choice of experts.   logits [T, E]   bias [E] or absent
void tap_routing(ExecContext& ctx, const Tensor& logits, const Tensor& bias, const ops::RouterOptions& options) {
  const int64_t T = logits.size(0), E = logits.size(1), G = options.n_group, size = E / G, kept = options.topk_group;
  std::vector<float> scores = to_host(ctx, logits), group_scores(static_cast<size_t>(T * G));
  const std::vector<float> biases = bias ? to_host(ctx, bias) : std::vector<float>(static_cast<size_t>(E));
  std::vector<int32_t> groups(static_cast<size_t>(T * kept)), order(static_cast<size_t>(G));
  std::vector<float> choice(static_cast<size_t>(size));
  for (int64_t t = 0; t < T; ++t) {
    float *row = scores.data() + t * E, *of_group = group_scores.data() + t * G;
    logits_to_scores(row, E, options.score);
    for (int64_t g = 0; g < G; ++g) {
      for (int64_t i = 0; i < size; ++i) {
        const float c = row[g * size + i] + biases[g * size + i];
        choice[i] = std::isnan(c) ? -std::numeric_limits<float>::infinity() : c;
      }
      std::sort(choice.begin(), choice.end(), std::greater<>());
      of_group[g] = choice[0] + (options.score == ops::RouterScore::kSigmoid && size > 1 ? choice[1] : 0);
    }
    std::iota(order.begin(), order.end(), 0);
    std::stable_sort(order.begin(), order.end(), [&](int32_t a, int32_t b) { return of_group[a] > of_group[b]; });
    std::copy_n(order.begin(), kept, groups.begin() + t * kept);
  }
  ctx.tap("router_scores", to_device(ctx, {T, E}, scores));
  if (G == 1) return;
  ctx.tap("group_scores", to_device(ctx, {T, G}, group_scores));
  ctx.tap("groups", to_device(ctx, {T, kept}, groups));
}

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
  if (ctx.taps != nullptr) ctx.tap("mlp_out", ops::linear(ctx, h, down, x.dtype()));
}

void Backend::sparse_moe(ExecContext& ctx, const Tensor& x, const ops::SparseMoeWeights& weights,
                         const ops::RouterOptions& options, const Tensor& residual, Tensor& out) {
  const Scratch scratch(ctx);
  const int64_t T = x.size(0), k = options.top_k, F = weights.down.K;

  const Tensor logits = ops::linear(ctx, x, weights.router, DType::kF32);                 // [T, E] f32
  const auto [experts, expert_weights] = ops::route(ctx, logits, weights.bias, options);  // [T, k]
  const Tensor gate = ops::grouped_linear(ctx, x, weights.gate, experts);                 // [T, k, F]
  const Tensor up = ops::grouped_linear(ctx, x, weights.up, experts);                     // [T, k, F]
  const Tensor h = ops::silu_mul(ctx, gate.view({T * k, F}), up.view({T * k, F}));
  const Tensor y = ops::grouped_linear(ctx, h.view({T, k, F}), weights.down, experts);  // [T, k, D]
  const Tensor routed = ops::moe_combine(ctx, y, expert_weights);                       // [T, D]
  const ops::SparseMoeTaps& names = weights.taps;
  if (names.input != nullptr) ctx.tap(names.input, x);
  ctx.tap("router_logits", logits);
  if (ctx.taps != nullptr) tap_routing(ctx, logits, weights.bias, options);
  ctx.tap(names.experts, experts);
  ctx.tap("expert_weights", expert_weights);
  ctx.tap(names.routed, routed);

  Tensor sum = routed;
  if (weights.shared_down.N > 0) {
    const auto [shared_gate, shared_up, unused_2, unused_3] = ops::linear(ctx, x, weights.shared_gate_up);
    const Tensor shared_h = ops::silu_mul(ctx, shared_gate, shared_up);  // [T, Fs]
    Tensor shared = ops::linear(ctx, shared_h, weights.shared_down, x.dtype());
    ctx.tap(names.shared, shared);
    if (weights.shared_gate.N > 0) {
      const Tensor open = ops::linear(ctx, x, weights.shared_gate, x.dtype());  // [T, 1]
      ctx.tap("shared_gate", open);
      shared = ops::sigmoid_mul(ctx, shared, open);
    }
    sum = ops::add(ctx, routed, shared);
  }
  ctx.tap(names.output, sum);
  if (!ctx.dry_run) add(ctx, residual, sum, out);
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
  const bool with_norm = norm.q_norm.rank() != 0;
  const Tensor q_normed = with_norm ? ops::rms_norm(ctx, q, norm.q_norm, norm.eps, norm.weight_offset) : q;
  const Tensor k_normed = with_norm ? ops::rms_norm(ctx, k, norm.k_norm, norm.eps, norm.weight_offset) : k;
  const Tensor k_rotated = ops::rope(ctx, k_normed, table);
  if (!ctx.dry_run) rope(ctx, q_normed, table, ops::RopePairing::kHalves, out);
  ops::store_kv(ctx, k_rotated, v, pages, batch);

  if (with_norm) {
    ctx.tap(norm.q_normed, q_normed);
    ctx.tap(norm.k_normed, k_normed);
  }
  ctx.tap(norm.q_rotated, out);
  ctx.tap(norm.k_rotated, k_rotated);
  ctx.tap("v", v);
}

void Backend::attention_mixer(ExecContext& ctx, const Tensor& q, const Tensor& k, const Tensor& v, const Tensor& gate,
                              const ops::QkNorm& norm, const Tensor& table, KvPages& pages, const Batch& batch,
                              float scale, const Tensor& first_key, Tensor& out) {
  const Scratch scratch(ctx);
  const Tensor rotated = ops::qk_norm_rope_store(ctx, q, k, v, norm, table, pages, batch);
  if (gate.rank() == 0) {
    Tensor heads = out.view(q.shape());
    return paged_attention(ctx, rotated, pages, batch, scale, first_key, heads);
  }
  const Tensor o = ops::paged_attention(ctx, rotated, pages, batch, scale, first_key);  // [T, H, Dh]
  ctx.tap("attention", o);
  if (!ctx.dry_run) sigmoid_mul(ctx, o.view(out.shape()), gate, out);
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

void Backend::lightning_mixer(ExecContext& ctx, const Tensor& qkv, const Tensor& gate,
                              const ops::LightningWeights& weights, const Tensor& table, LightningState& state,
                              const Tensor& accepted, const Batch& batch, Tensor& out) {
  const Scratch scratch(ctx);
  const int64_t T = qkv.size(0), H = state.S.size(1), D = state.S.size(2);
  const int64_t G = weights.norm_groups, W = H * D / G;

  const Tensor x = weights.silu ? ops::sigmoid_mul(ctx, qkv, qkv) : qkv;  // silu: x sigmoid(x)
  const Tensor q = x.slice(1, 0, H * D).view({T, H, D});
  const Tensor k = x.slice(1, H * D, 2 * H * D).view({T, H, D});
  const Tensor v = x.slice(1, 2 * H * D, 3 * H * D).view({T, H, D});
  const bool with_norm = weights.q_norm.rank() != 0;
  const Tensor q_normed = with_norm ? ops::rms_norm(ctx, q, weights.q_norm, weights.eps, 0) : q;
  const Tensor k_normed = with_norm ? ops::rms_norm(ctx, k, weights.k_norm, weights.eps, 0) : k;
  const Tensor q_rotated = weights.rope ? ops::rope(ctx, q_normed, table) : q_normed;
  const Tensor k_rotated = weights.rope ? ops::rope(ctx, k_normed, table) : k_normed;
  const Tensor o =
      ops::lightning_attention(ctx, q_rotated, k_rotated, v, weights.slope, state, accepted, batch, out.dtype());

  const Tensor groups = o.view({T, G, W}), g_norm = weights.g_norm.view({G, W});
  Tensor gated = out.view({T, G, W});
  if (!ctx.dry_run)
    gated_rms_norm(ctx, groups, gate.view({T, G, W}), g_norm, weights.eps, ops::GateActivation::kSigmoid, gated);

  ctx.tap("qkv", qkv);
  ctx.tap("q", q);
  ctx.tap("k", k);
  ctx.tap("v", v);
  if (with_norm) {
    ctx.tap("q_norm", q_normed);
    ctx.tap("k_norm", k_normed);
  }
  if (weights.rope) {
    ctx.tap("q_rope", q_rotated);
    ctx.tap("k_rope", k_rotated);
  }
  ctx.tap_constant("slope", weights.slope);
  if (ctx.taps != nullptr) {
    std::vector<float> decay = to_host(ctx, weights.slope);
    for (float& factor : decay) factor = std::exp(-factor);
    ctx.tap_constant("decay", to_device(ctx, {H}, decay));
  }
  ctx.tap("core", o);
  if (ctx.taps != nullptr) ctx.tap("group_norm", ops::rms_norm(ctx, groups, g_norm, weights.eps, 0).view({T, H * D}));
  ctx.tap("gate", gate);
}

}  // namespace calandra

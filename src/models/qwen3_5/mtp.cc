#include "models/qwen3_5/mtp.h"

#include "base/check.h"
#include "base/error.h"

namespace calandra::qwen3_5 {

MtpPredictor::MtpPredictor(const Config& c, WeightReader reader, bool has_weights, const Qwen3_5& target,
                           const HeadPlace& head, std::span<const int32_t> draft_ids)
    : target_(target), head_(target, head, draft_ids), first_layer_(c.num_hidden_layers) {
  // Some repackaged checkpoints drop the layers that their config announces; a dummy checkpoint has no tensors at all.
  if (has_weights && !reader.has("fc.weight"))
    throw LoadError("mtp_num_hidden_layers is " + std::to_string(c.mtp_num_hidden_layers) +
                    ", but the checkpoint has no MTP layers (mtp.fc.weight is missing): run it without speculation");
  const Axis D{"hidden_size", c.hidden_size};
  const auto norm = [&](RmsNorm& n, const char* name) {
    reader.vector(n.weight, name, D);
    n.eps = c.rms_norm_eps;
  };
  norm(pre_fc_norm_embedding_, "pre_fc_norm_embedding.weight");
  norm(pre_fc_norm_hidden_, "pre_fc_norm_hidden.weight");
  norm(norm_, "norm.weight");
  reader.linear(fc_, "fc.weight", {D, {"2 * hidden_size", 2 * c.hidden_size}});
  for (int64_t i = 0; i < c.mtp_num_hidden_layers; ++i)
    layers_.emplace_back(reader.child("layers").child(std::to_string(i)), c, LayerKind::kFullAttention);
}

std::vector<CacheSpec> MtpPredictor::cache_specs() const {
  std::vector<CacheSpec> specs;
  for (const DecoderLayer& layer : layers_) specs.push_back(layer.cache_spec(target_.dtype()));
  return specs;
}

Tensor MtpPredictor::forward(ExecContext& ctx, const Batch& batch, ModelCaches& caches, const Tensor& hidden,
                             int64_t step) const {
  ctx.workspace.flip();
  const Tensor table = target_.rotary().table(ctx, batch.mtp.positions, target_.dtype());   // [2, T, R / 2]
  const Tensor e = pre_fc_norm_embedding_(ctx, target_.embed(ctx, batch));                  // [T, D]
  const Tensor h = pre_fc_norm_hidden_(ctx, hidden);                                        // [T, D]
  const Tensor c = ops::linear(ctx, ops::concat_columns(ctx, e, h), fc_, target_.dtype());  // [T, D]
  ctx.tap("mtp.fc_output", c);

  Tensor result;
  for (int64_t i = 0; i < num_layers(); ++i) {
    const Scope scope("mtp layer", static_cast<int>(i));
    ctx.layer = static_cast<int>(first_layer_ + i);
    const Tensor y =
        layers_[i].forward(ctx, batch, caches.layers[first_layer_ + i], caches.slots, table, c, batch.mtp.first_key);
    if (i == step % num_layers()) result = y;
  }
  ctx.layer = -1;
  ctx.workspace.flip();
  result = norm_(ctx, result);
  ctx.tap("mtp.hidden", result);
  return result;
}

StepCost MtpPredictor::step_cost() const {
  StepCost cost;
  cost.add(fc_);
  for (const DecoderLayer& layer : layers_) target_.add_cost(layer, cost);
  if (!head_.add_cost(cost)) target_.add_head_cost(cost);
  return cost;
}

}  // namespace calandra::qwen3_5

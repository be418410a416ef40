#include "models/bailing_v2_5/nextn.h"

#include "base/check.h"

namespace calandra::bailing_v2_5 {

NextnPredictor::Layer::Layer(WeightReader reader, const Config& c, int64_t layer) : decoder(reader, c, layer) {
  const Axis D{"hidden_size", c.hidden_size};
  const auto norm = [&](RmsNorm& n, const char* name) {
    reader.vector(n.weight, name, D);
    n.eps = c.rms_norm_eps;
    n.weight_offset = 0;
  };
  norm(enorm, "enorm.weight");
  norm(hnorm, "hnorm.weight");
  norm(final_layernorm, "final_layernorm.weight");
  reader.linear(eh_proj, "eh_proj.weight", {D, {"2 * hidden_size", 2 * c.hidden_size}});
}

NextnPredictor::NextnPredictor(const Config& c, WeightReader layers, const Bailing& target, const HeadPlace& head,
                               std::span<const int32_t> draft_ids)
    : target_(target), head_(target, head, draft_ids), first_layer_(c.num_hidden_layers) {
  for (int64_t i = c.num_hidden_layers; i < c.num_hidden_layers + c.num_nextn_predict_layers; ++i)
    layers_.emplace_back(layers.child(std::to_string(i)), c, i);
}

std::vector<CacheSpec> NextnPredictor::cache_specs() const {
  std::vector<CacheSpec> specs;
  for (const Layer& layer : layers_) specs.push_back(layer.decoder.cache_spec(target_.dtype()));
  return specs;
}

Tensor NextnPredictor::forward(ExecContext& ctx, const Batch& batch, ModelCaches& caches, const Tensor& hidden,
                               int64_t step) const {
  ctx.workspace.flip();
  const RopeTables tables = target_.rope_tables(ctx, batch.mtp.positions, false);
  const Tensor embedding = target_.embed(ctx, batch);  // [T, D]

  Tensor result;
  for (int64_t i = 0; i < num_layers(); ++i) {
    const Scope scope("mtp layer", static_cast<int>(i));
    ctx.layer = static_cast<int>(first_layer_ + i);
    const Layer& layer = layers_[i];
    const Tensor e = layer.enorm(ctx, embedding);
    const Tensor h = layer.hnorm(ctx, hidden);
    const Tensor z = ops::linear(ctx, ops::concat_columns(ctx, e, h), layer.eh_proj, target_.dtype());  // [T, D]
    ctx.tap("enorm", e);
    ctx.tap("hnorm", h);
    ctx.tap("eh_proj", z);
    const Tensor y = layer.decoder.forward(ctx, batch, caches.layers[first_layer_ + i], caches.slots, tables, z,
                                           batch.mtp.first_key);
    if (i != step % num_layers()) continue;
    result = layer.final_layernorm(ctx, y);
    ctx.tap("final_layernorm", result);
  }
  ctx.layer = -1;
  ctx.tap("mtp.hidden", result);
  return result;
}

StepCost NextnPredictor::step_cost() const {
  StepCost cost;
  for (const Layer& layer : layers_) {
    cost.add(layer.eh_proj);
    target_.add_cost(layer.decoder, cost);
  }
  if (!head_.add_cost(cost)) target_.add_head_cost(cost);
  return cost;
}

}  // namespace calandra::bailing_v2_5

#include "models/bailing_v2_5/bailing_v2_5.h"

#include "base/check.h"
#include "base/error.h"
#include "models/bailing_v2_5/nextn.h"

namespace calandra::bailing_v2_5 {
namespace {

void read_norm(RmsNorm& norm, WeightReader reader, const char* name, const Config& c) {
  reader.vector(norm.weight, name, {"hidden_size", c.hidden_size});
  norm.eps = c.rms_norm_eps;
  norm.weight_offset = 0;
}

// Where the weights begin: released names stand below "model", some repackaged ones do not.
WeightReader weights_below(WeightReader top) { return top.has("word_embeddings.weight") ? top : top.child("model"); }

RopeParameters full_rope(const Config& c) {
  return c.full_attention == FullAttention::kLatent ? c.latent_rope : c.rope;
}

}  // namespace

DecoderLayer::DecoderLayer(WeightReader reader, const Config& c, int64_t layer) {
  read_norm(input_layernorm, reader, "input_layernorm.weight", c);
  const WeightReader below = reader.child("attention");
  if (!c.is_full_attention(layer)) {
    attention.emplace<LightningAttention>(below, LightningAttention::Sizes{.hidden_size = c.hidden_size,
                                                                           .num_attention_heads = c.num_attention_heads,
                                                                           .head_dim = c.head_dim,
                                                                           .norm_groups = c.group_norm_size,
                                                                           .eps = c.rms_norm_eps,
                                                                           .use_qk_norm = c.use_qk_norm,
                                                                           .silu = c.linear_silu,
                                                                           .rope = c.linear_rope,
                                                                           .qkv_bias = c.use_qkv_bias || c.use_bias,
                                                                           .dense_bias = c.use_bias,
                                                                           .layer = layer,
                                                                           .num_hidden_layers = c.num_hidden_layers,
                                                                           .decay = c.linear_decay_variant});
  } else if (c.full_attention == FullAttention::kLatent) {
    attention.emplace<LatentAttention>(below, LatentAttention::Sizes{.hidden_size = c.hidden_size,
                                                                     .num_attention_heads = c.num_attention_heads,
                                                                     .q_lora_rank = c.q_lora_rank,
                                                                     .kv_lora_rank = c.kv_lora_rank,
                                                                     .qk_nope_head_dim = c.qk_nope_head_dim,
                                                                     .qk_rope_head_dim = c.qk_rope_head_dim,
                                                                     .v_head_dim = c.v_head_dim,
                                                                     .eps = c.rms_norm_eps,
                                                                     .scale_factor = c.latent_scale_factor,
                                                                     .bias = c.use_qkv_bias});
  } else {
    attention.emplace<GroupedQueryAttention>(below,
                                             GroupedQueryAttention::Sizes{.hidden_size = c.hidden_size,
                                                                          .num_attention_heads = c.num_attention_heads,
                                                                          .num_key_value_heads = c.num_key_value_heads,
                                                                          .head_dim = c.head_dim,
                                                                          .eps = c.rms_norm_eps,
                                                                          .use_qk_norm = c.use_qk_norm,
                                                                          .qkv_bias = c.use_qkv_bias || c.use_bias,
                                                                          .dense_bias = c.use_bias});
  }
  read_norm(post_attention_layernorm, reader, "post_attention_layernorm.weight", c);
  if (c.is_sparse(layer)) {
    mlp.emplace<SparseMoe>(
        reader.child("mlp"),
        SparseMoe::Sizes{c.hidden_size, c.num_experts, c.moe_intermediate_size, c.shared_intermediate_size}, c.router,
        c.moe_router_enable_expert_bias ? SparseMoe::kBailingWithBias : SparseMoe::kBailing);
  } else {
    mlp.emplace<SwiGluMlp>(reader.child("mlp"), c.hidden_size, c.intermediate_size);
  }
}

Tensor DecoderLayer::forward(ExecContext& ctx, const Batch& batch, LayerCache& cache, const SlotCounts& slots,
                             const RopeTables& tables, const Tensor& x, const Tensor& first_key) const {
  const Tensor h = input_layernorm(ctx, x);
  ctx.tap("input_norm", h);
  Tensor a;
  if (const auto* lightning = std::get_if<LightningAttention>(&attention)) {
    a = lightning->forward(ctx, batch, cache, slots, h, tables.lightning);
  } else if (const auto* latent = std::get_if<LatentAttention>(&attention)) {
    a = latent->forward(ctx, batch, cache, h, tables.full, first_key);
  } else {
    a = std::get<GroupedQueryAttention>(attention).forward(ctx, batch, cache, h, tables.full);
  }
  const auto [sum, normed] = post_attention_layernorm.after_add(ctx, x, a);
  ctx.tap("post_norm", normed);
  const Tensor y = std::holds_alternative<SwiGluMlp>(mlp) ? std::get<SwiGluMlp>(mlp).forward(ctx, normed, sum)
                                                          : std::get<SparseMoe>(mlp).forward(ctx, normed, sum);
  ctx.tap("output", y);
  ctx.tap("", y);
  return y;
}

CacheSpec DecoderLayer::cache_spec(DType dtype) const {
  if (const auto* lightning = std::get_if<LightningAttention>(&attention)) return lightning->cache_spec();
  if (const auto* latent = std::get_if<LatentAttention>(&attention)) return latent->cache_spec(dtype);
  return std::get<GroupedQueryAttention>(attention).cache_spec(dtype);
}

Bailing::Bailing(const Config& config, WeightReader top, Backend& backend, DType dtype, const ModelParts& parts)
    : config_(config), dtype_(dtype), rotary_(config.rope, backend), full_rotary_(full_rope(config), backend) {
  const WeightReader reader = weights_below(top);
  const MatrixShape embedding{{"vocab_size", config.vocab_size}, {"hidden_size", config.hidden_size}};
  reader.linear(word_embeddings_, "word_embeddings.weight", embedding);
  for (int64_t i = 0; i < config.num_hidden_layers; ++i)
    layers_.emplace_back(reader.child("layers").child(std::to_string(i)), config, i);
  read_norm(norm_, reader, "norm.weight", config);
  if (!config.tie_word_embeddings) top.linear(lm_head_, "lm_head.weight", embedding);
  if (!parts.drafter || config.num_nextn_predict_layers == 0) return;
  // Some releases omit the layers that their config announces.
  const std::string first = "layers." + std::to_string(config.num_hidden_layers);
  if (reader.has("norm.weight") && !reader.has(first + ".enorm.weight") && !reader.has(first + ".eh_proj.weight"))
    throw LoadError("num_nextn_predict_layers is " + std::to_string(config.num_nextn_predict_layers) +
                    ", but the checkpoint has no MTP (nextn) layers: run it without speculation");
  const HeadPlace head = config.tie_word_embeddings ? HeadPlace{reader, "word_embeddings.weight", embedding}
                                                    : HeadPlace{top, "lm_head.weight", embedding};
  nextn_ = std::make_unique<NextnPredictor>(config, reader.child("layers"), *this, head, parts.draft_ids);
}

Bailing::~Bailing() = default;
const Drafter* Bailing::drafter() const { return nextn_.get(); }

std::vector<CacheSpec> Bailing::cache_specs() const {
  std::vector<CacheSpec> specs;
  for (const DecoderLayer& layer : layers_) specs.push_back(layer.cache_spec(dtype_));
  return specs;
}

Tensor Bailing::embed(ExecContext& ctx, const Batch& batch) const {
  return ops::embedding(ctx, batch.token_ids, word_embeddings_, dtype_);
}

RopeTables Bailing::rope_tables(ExecContext& ctx, const Tensor& positions, bool lightning) const {
  RopeTables tables;
  if (lightning) tables.lightning = rotary_.table(ctx, positions, DType::kF32);
  tables.full = full_rotary_.table(ctx, positions, dtype_);
  return tables;
}

Tensor Bailing::forward(ExecContext& ctx, const Batch& batch, ModelCaches& caches) const {
  ctx.workspace.flip();
  const RopeTables tables = rope_tables(ctx, batch.positions, true);
  Tensor x = embed(ctx, batch);  // [T, D]
  ctx.tap("embedding", x);

  for (int i = 0; i < static_cast<int>(layers_.size()); ++i) {
    const Scope scope("layer", i);
    ctx.layer = i;
    ctx.workspace.flip();
    x = layers_[i].forward(ctx, batch, caches.layers[i], caches.slots, tables, x);
  }
  ctx.layer = -1;
  ctx.workspace.flip();
  x = norm_(ctx, x);
  ctx.tap("final_norm", x);
  return x;
}

Tensor Bailing::logits(ExecContext& ctx, const Tensor& hidden) const {
  return ops::linear(ctx, hidden, config_.tie_word_embeddings ? word_embeddings_ : lm_head_, DType::kF32);
}

StepCost Bailing::step_cost() const {
  StepCost cost;
  for (const DecoderLayer& layer : layers_) add_cost(layer, cost);
  add_head_cost(cost);
  return cost;
}

void Bailing::add_head_cost(StepCost& cost) const {
  cost.add_head(config_.tie_word_embeddings ? word_embeddings_ : lm_head_);
}

void Bailing::add_cost(const DecoderLayer& layer, StepCost& cost) const {
  const Config& c = config_;
  const double heads = static_cast<double>(c.num_attention_heads), D = static_cast<double>(c.head_dim);
  const double activation = static_cast<double>(size_of(dtype_));
  if (const auto* lightning = std::get_if<LightningAttention>(&layer.attention)) {
    cost.add(lightning->qkvg);
    cost.add(lightning->dense);
    cost.flops_per_row += 5 * heads * D * D;  // decay 1, rank one 2, S^T q 2
    cost.state_bytes += 2 * 4 * heads * D * D;
  } else if (const auto* latent = std::get_if<LatentAttention>(&layer.attention)) {
    const auto width = static_cast<double>(c.kv_lora_rank + c.qk_rope_head_dim);
    latent->for_each_weight([&](const auto& weight) { cost.add(weight); });
    cost.flops_per_row_and_key += 2 * heads * (width + static_cast<double>(c.kv_lora_rank));
    cost.kv_bytes_per_key += activation * width;
  } else {
    const auto& attention = std::get<GroupedQueryAttention>(layer.attention);
    cost.add(attention.query_key_value);
    cost.add(attention.dense);
    cost.flops_per_row_and_key += 4 * heads * D;
    cost.kv_bytes_per_key += 2 * activation * static_cast<double>(c.num_key_value_heads) * D;
  }
  if (const auto* mlp = std::get_if<SwiGluMlp>(&layer.mlp)) {
    cost.add(mlp->gate_up);
    cost.add(mlp->down_proj);
  } else {
    const auto& moe = std::get<SparseMoe>(layer.mlp);
    cost.add(moe.weights, moe.options);
  }
}

}  // namespace calandra::bailing_v2_5

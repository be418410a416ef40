#include "models/qwen3_5/qwen3_5.h"

#include "base/check.h"
#include "models/qwen3_5/mtp.h"
#include "models/qwen3_5/vision_tower.h"

namespace calandra::qwen3_5 {
namespace {

void read_norm(RmsNorm& norm, WeightReader reader, const char* name, const Config& c) {
  reader.vector(norm.weight, name, {"hidden_size", c.hidden_size});
  norm.eps = c.rms_norm_eps;
}

}  // namespace

DecoderLayer::DecoderLayer(WeightReader reader, const Config& c, LayerKind kind) {
  read_norm(input_layernorm, reader, "input_layernorm.weight", c);
  if (kind == LayerKind::kLinearAttention) {
    mixer.emplace<GatedDeltaNet>(
        reader.child("linear_attn"),
        GatedDeltaNet::Sizes{c.hidden_size, c.linear_num_key_heads, c.linear_num_value_heads, c.linear_key_head_dim,
                             c.linear_value_head_dim, c.linear_conv_kernel_dim, c.rms_norm_eps, c.output_gate_type});
  } else {
    mixer.emplace<GatedAttention>(
        reader.child("self_attn"),
        GatedAttention::Sizes{c.hidden_size, c.num_attention_heads, c.num_key_value_heads, c.head_dim, c.rms_norm_eps});
  }
  read_norm(post_attention_layernorm, reader, "post_attention_layernorm.weight", c);
  if (c.num_experts == 0) {
    mlp.emplace<SwiGluMlp>(reader.child("mlp"), c.hidden_size, c.intermediate_size);
  } else {
    mlp.emplace<SparseMoe>(
        reader.child("mlp"),
        SparseMoe::Sizes{c.hidden_size, c.num_experts, c.moe_intermediate_size, c.shared_expert_intermediate_size},
        c.router, SparseMoe::kQwen3_5);
  }
}

Tensor DecoderLayer::forward(ExecContext& ctx, const Batch& batch, LayerCache& cache, const SlotCounts& slots,
                             const Tensor& table, const Tensor& x, const Tensor& first_key) const {
  const Tensor h = input_layernorm(ctx, x);
  ctx.tap("input", h);
  const Tensor m = std::holds_alternative<GatedDeltaNet>(mixer)
                       ? std::get<GatedDeltaNet>(mixer).forward(ctx, batch, cache, slots, h)
                       : std::get<GatedAttention>(mixer).forward(ctx, batch, cache, h, table, first_key);
  const auto [sum, normed] = post_attention_layernorm.after_add(ctx, x, m);
  const Tensor y = std::holds_alternative<SwiGluMlp>(mlp) ? std::get<SwiGluMlp>(mlp).forward(ctx, normed, sum)
                                                          : std::get<SparseMoe>(mlp).forward(ctx, normed, sum);
  ctx.tap("", y);
  return y;
}

CacheSpec DecoderLayer::cache_spec(DType dtype) const {
  return std::holds_alternative<GatedDeltaNet>(mixer) ? std::get<GatedDeltaNet>(mixer).cache_spec(dtype)
                                                      : std::get<GatedAttention>(mixer).cache_spec(dtype);
}

Qwen3_5::Qwen3_5(const Config& config, WeightReader reader, Backend& backend, DType dtype, const ModelParts& parts)
    : config_(config), dtype_(dtype), rotary_(config.rope, backend) {
  const WeightReader text = reader.child(config.nested ? "model.language_model" : "model");
  const MatrixShape embedding{{"vocab_size", config.vocab_size}, {"hidden_size", config.hidden_size}};
  text.linear(embed_tokens_, "embed_tokens.weight", embedding);
  for (int64_t i = 0; i < config.num_hidden_layers; ++i)
    layers_.emplace_back(text.child("layers").child(std::to_string(i)), config, config.layer_kinds[i]);
  read_norm(norm_, text, "norm.weight", config);
  if (!config.tie_word_embeddings) reader.linear(lm_head_, "lm_head.weight", embedding);
  if (parts.drafter && config.mtp_num_hidden_layers > 0) {
    const HeadPlace head = config.tie_word_embeddings ? HeadPlace{text, "embed_tokens.weight", embedding}
                                                      : HeadPlace{reader, "lm_head.weight", embedding};
    mtp_ = std::make_unique<MtpPredictor>(config, reader.child("mtp"), text.has("norm.weight"), *this, head,
                                          parts.draft_ids);
  }
  if (parts.vision && config.vision)
    vision_ = std::make_unique<VisionTower>(*config.vision, reader.child("model.visual"), backend, dtype);
}

Qwen3_5::~Qwen3_5() = default;
const Drafter* Qwen3_5::drafter() const { return mtp_.get(); }
const VisionEncoder* Qwen3_5::vision() const { return vision_.get(); }

std::vector<CacheSpec> Qwen3_5::cache_specs() const {
  std::vector<CacheSpec> specs;
  for (const DecoderLayer& layer : layers_) specs.push_back(layer.cache_spec(dtype_));
  return specs;
}

Tensor Qwen3_5::embed(ExecContext& ctx, const Batch& batch) const {
  Tensor x = ops::embedding(ctx, batch.token_ids, embed_tokens_, dtype_);
  if (batch.image_rows) ops::scatter_rows(ctx, x, batch.image_rows, batch.image_embeds);
  return x;
}

Tensor Qwen3_5::forward(ExecContext& ctx, const Batch& batch, ModelCaches& caches) const {
  ctx.workspace.flip();
  const Tensor table = rotary_.table(ctx, batch.positions, dtype_);  // [2, T, R / 2]
  Tensor x = embed(ctx, batch);                                      // [T, D]
  ctx.tap("embedding", x);

  for (int i = 0; i < static_cast<int>(layers_.size()); ++i) {
    const Scope scope("layer", i);
    ctx.layer = i;
    ctx.workspace.flip();
    x = layers_[i].forward(ctx, batch, caches.layers[i], caches.slots, table, x);
  }
  ctx.layer = -1;
  ctx.workspace.flip();
  x = norm_(ctx, x);
  ctx.tap("final_norm", x);
  return x;
}

Tensor Qwen3_5::logits(ExecContext& ctx, const Tensor& hidden) const {
  return ops::linear(ctx, hidden, config_.tie_word_embeddings ? embed_tokens_ : lm_head_, DType::kF32);
}

StepCost Qwen3_5::step_cost() const {
  StepCost cost;
  for (const DecoderLayer& layer : layers_) add_cost(layer, cost);
  add_head_cost(cost);
  return cost;
}

void Qwen3_5::add_head_cost(StepCost& cost) const {
  cost.add_head(config_.tie_word_embeddings ? embed_tokens_ : lm_head_);
}

void Qwen3_5::add_cost(const DecoderLayer& layer, StepCost& cost) const {
  const Config& c = config_;
  const auto Dk = static_cast<double>(c.linear_key_head_dim), Dv = static_cast<double>(c.linear_value_head_dim);
  const double activation = static_cast<double>(size_of(dtype_));
  if (const auto* delta = std::get_if<GatedDeltaNet>(&layer.mixer)) {
    const double S = static_cast<double>(c.linear_num_value_heads) * Dk * Dv;
    cost.add(delta->in_proj);
    cost.add(delta->out_proj);
    cost.flops_per_row += 7 * S;  // decay 1, S^T k 2, rank one 2, S^T q 2
    cost.state_bytes += 2 * (4 * S + activation * static_cast<double>((c.linear_conv_kernel_dim - 1) * c.conv_dim()));
  } else {
    const auto& attention = std::get<GatedAttention>(layer.mixer);
    cost.add(attention.qgkv);
    cost.add(attention.o_proj);
    cost.flops_per_row_and_key += 4.0 * static_cast<double>(c.num_attention_heads * c.head_dim);
    cost.kv_bytes_per_key += 2 * activation * static_cast<double>(c.num_key_value_heads * c.head_dim);
  }
  if (const auto* mlp = std::get_if<SwiGluMlp>(&layer.mlp)) {
    cost.add(mlp->gate_up);
    cost.add(mlp->down_proj);
  } else {
    const auto& moe = std::get<SparseMoe>(layer.mlp);
    cost.add(moe.weights, moe.options);
  }
}

}  // namespace calandra::qwen3_5

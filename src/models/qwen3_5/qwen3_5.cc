#include "models/qwen3_5/qwen3_5.h"

#include "base/log.h"

namespace calandra::qwen3_5 {
namespace {

void read_norm(RmsNorm& norm, WeightReader reader, const char* name, const Config& c) {
  reader.vector(norm.weight, name, {"hidden_size", c.hidden_size});
  norm.eps = c.rms_norm_eps;
}

}  // namespace

DecoderLayer::DecoderLayer(WeightReader reader, const Config& c, LayerKind kind)
    : mlp(reader.child("mlp"), c.hidden_size, c.intermediate_size) {
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
}

Tensor DecoderLayer::forward(ExecContext& ctx, const Batch& batch, LayerCache& cache, const SlotCounts& slots,
                             const Tensor& table, const Tensor& x) const {
  const Tensor h = input_layernorm(ctx, x);
  ctx.tap("input", h);
  const Tensor m = std::holds_alternative<GatedDeltaNet>(mixer)
                       ? std::get<GatedDeltaNet>(mixer).forward(ctx, batch, cache, slots, h)
                       : std::get<GatedAttention>(mixer).forward(ctx, batch, cache, h, table);
  const auto [sum, normed] = post_attention_layernorm.after_add(ctx, x, m);
  return mlp.forward(ctx, normed, sum);
}

CacheSpec DecoderLayer::cache_spec(DType dtype) const {
  return std::holds_alternative<GatedDeltaNet>(mixer) ? std::get<GatedDeltaNet>(mixer).cache_spec(dtype)
                                                      : std::get<GatedAttention>(mixer).cache_spec(dtype);
}

Qwen3_5::Qwen3_5(const Config& config, WeightReader reader, Backend& backend, DType dtype)
    : config_(config), dtype_(dtype), rotary_(config.rope, backend) {
  const WeightReader text = reader.child(config.nested ? "model.language_model" : "model");
  const MatrixShape embedding{{"vocab_size", config.vocab_size}, {"hidden_size", config.hidden_size}};
  text.linear(embed_tokens_, "embed_tokens.weight", embedding);
  for (int64_t i = 0; i < config.num_hidden_layers; ++i)
    layers_.emplace_back(text.child("layers").child(std::to_string(i)), config, config.layer_kinds[i]);
  read_norm(norm_, text, "norm.weight", config);
  if (!config.tie_word_embeddings) reader.linear(lm_head_, "lm_head.weight", embedding);
}

std::vector<CacheSpec> Qwen3_5::cache_specs() const {
  std::vector<CacheSpec> specs;
  for (const DecoderLayer& layer : layers_) specs.push_back(layer.cache_spec(dtype_));
  return specs;
}

Tensor Qwen3_5::forward(ExecContext& ctx, const Batch& batch, ModelCaches& caches) const {
  ctx.workspace.flip();
  const Tensor table = rotary_.table(ctx, batch.positions, dtype_);        // [2, T, R / 2]
  Tensor x = ops::embedding(ctx, batch.token_ids, embed_tokens_, dtype_);  // [T, D]
  ctx.tap("embedding", x);

  for (int i = 0; i < static_cast<int>(layers_.size()); ++i) {
    const Scope scope("layer", i);
    ctx.layer = i;
    ctx.workspace.flip();
    x = layers_[i].forward(ctx, batch, caches.layers[i], caches.slots, table, x);
    ctx.tap("", x);
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
  const Config& c = config_;
  StepCost cost;
  const auto matrix = [&](const PackedWeight& w) {
    cost.weight_bytes += static_cast<double>(w.packed.bytes());
    return 2.0 * static_cast<double>(w.N * w.K);
  };
  const auto pack = [&](const LinearPack& p) {
    double flops = 0;
    for (const PackedWeight& part : p.parts()) flops += matrix(part);
    return flops;
  };
  const auto Dk = static_cast<double>(c.linear_key_head_dim), Dv = static_cast<double>(c.linear_value_head_dim);
  const double activation = static_cast<double>(size_of(dtype_));
  for (const DecoderLayer& layer : layers_) {
    cost.flops_per_row += pack(layer.mlp.gate_up) + matrix(layer.mlp.down_proj);
    if (const auto* delta = std::get_if<GatedDeltaNet>(&layer.mixer)) {
      const double S = static_cast<double>(c.linear_num_value_heads) * Dk * Dv;
      cost.flops_per_row +=
          pack(delta->in_proj) + matrix(delta->out_proj) + 7 * S;  // decay 1, S^T k 2, rank one 2, S^T q 2
      cost.state_bytes += 2 * (4 * S + activation * static_cast<double>((c.linear_conv_kernel_dim - 1) * c.conv_dim()));
    } else {
      const auto& attention = std::get<GatedAttention>(layer.mixer);
      cost.flops_per_row += pack(attention.qgkv) + matrix(attention.o_proj);
      cost.flops_per_row_and_key += 4.0 * static_cast<double>(c.num_attention_heads * c.head_dim);
      cost.kv_bytes_per_key += 2 * activation * static_cast<double>(c.num_key_value_heads * c.head_dim);
    }
  }
  cost.flops_per_logit_row = matrix(c.tie_word_embeddings ? embed_tokens_ : lm_head_);
  return cost;
}

}  // namespace calandra::qwen3_5

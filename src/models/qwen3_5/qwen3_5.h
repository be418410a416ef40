// Qwen3.5 text model, dense or mixture of experts, with its MTP layers and vision tower when they are loaded.
// Reference: transformers 5.17 modeling_qwen3_5.py; docs/models/qwen3_5.md has equations and quirks.
//   T rows   D hidden_size   V vocab_size   R rotary dims
#pragma once

#include <deque>
#include <memory>
#include <variant>

#include "layers/gated_attention.h"
#include "layers/gated_delta_net.h"
#include "layers/rotary_embedding.h"
#include "layers/sparse_moe.h"
#include "layers/swiglu_mlp.h"
#include "models/causal_lm.h"
#include "models/qwen3_5/config.h"

namespace calandra::qwen3_5 {

struct DecoderLayer {
  DecoderLayer(WeightReader reader, const Config& config, LayerKind kind);

  // x [T, D]   first_key: of full attention, absent: 0   returns [T, D]
  Tensor forward(ExecContext& ctx, const Batch& batch, LayerCache& cache, const SlotCounts& slots, const Tensor& table,
                 const Tensor& x, const Tensor& first_key = {}) const;
  CacheSpec cache_spec(DType dtype) const;

  RmsNorm input_layernorm;
  std::variant<std::monostate, GatedDeltaNet, GatedAttention> mixer;
  RmsNorm post_attention_layernorm;
  std::variant<std::monostate, SwiGluMlp, SparseMoe> mlp;
};

class MtpPredictor;
class VisionTower;

class Qwen3_5 final : public CausalLM {
 public:
  // Reads every weight below the top of the checkpoint. `dtype` of activations and caches: f32 | bf16.
  Qwen3_5(const Config& config, WeightReader reader, Backend& backend, DType dtype, const ModelParts& parts);
  ~Qwen3_5() override;

  int64_t vocab_size() const override { return config_.vocab_size; }
  int64_t hidden_size() const override { return config_.hidden_size; }
  int64_t max_position_embeddings() const override { return config_.max_position_embeddings; }
  DType dtype() const override { return dtype_; }
  std::vector<CacheSpec> cache_specs() const override;
  Tensor forward(ExecContext& ctx, const Batch& batch, ModelCaches& caches) const override;
  Tensor logits(ExecContext& ctx, const Tensor& hidden) const override;
  StepCost step_cost() const override;
  const Drafter* drafter() const override;
  const VisionEncoder* vision() const override;

  // Rows of the embedding, those of images replaced.   returns [T, D]
  Tensor embed(ExecContext& ctx, const Batch& batch) const;
  const RotaryEmbedding& rotary() const { return rotary_; }

  // Parts of step_cost, also of a drafter's.
  void add_cost(const DecoderLayer& layer, StepCost& cost) const;
  void add_head_cost(StepCost& cost) const;

 private:
  Config config_;
  DType dtype_;
  PackedWeight embed_tokens_;
  std::deque<DecoderLayer> layers_;
  RmsNorm norm_;
  PackedWeight lm_head_;  // embed_tokens_ when tied
  RotaryEmbedding rotary_;
  std::unique_ptr<MtpPredictor> mtp_;
  std::unique_ptr<VisionTower> vision_;
};

}  // namespace calandra::qwen3_5

// Bailing MoE linear: V2.5 / V2.6 (lightning and latent attention) and LinearV2 (lightning and grouped-query
// attention). Reference: modeling_bailing_moe_v2_5.py, vLLM bailing_moe_linear.py; docs/models/bailing_v2_5.md has
// equations and quirks.
//   T rows   D hidden_size   V vocab_size   R rotary dims
#pragma once

#include <deque>
#include <memory>
#include <variant>

#include "layers/grouped_query_attention.h"
#include "layers/latent_attention.h"
#include "layers/lightning_attention.h"
#include "layers/rms_norm.h"
#include "layers/rotary_embedding.h"
#include "layers/sparse_moe.h"
#include "layers/swiglu_mlp.h"
#include "models/bailing_v2_5/config.h"
#include "models/causal_lm.h"

namespace calandra::bailing_v2_5 {

// Cosines and sines of a step: f32 for lightning layers, which compute in f32, the model's type for full attention.
struct RopeTables {
  Tensor lightning;  // [2, T, R / 2] f32
  Tensor full;       // [2, T, R / 2]
};

struct DecoderLayer {
  // `layer` counts over all layers; those from num_hidden_layers on are MTP layers.
  DecoderLayer(WeightReader reader, const Config& config, int64_t layer);

  // x [T, D]   first_key: of full attention, absent: 0   returns [T, D]
  Tensor forward(ExecContext& ctx, const Batch& batch, LayerCache& cache, const SlotCounts& slots,
                 const RopeTables& tables, const Tensor& x, const Tensor& first_key = {}) const;
  CacheSpec cache_spec(DType dtype) const;

  RmsNorm input_layernorm;
  std::variant<std::monostate, LightningAttention, LatentAttention, GroupedQueryAttention> attention;
  RmsNorm post_attention_layernorm;
  std::variant<std::monostate, SwiGluMlp, SparseMoe> mlp;
};

class NextnPredictor;

class Bailing final : public CausalLM {
 public:
  // Reads every weight below the top of the checkpoint. `dtype` of activations and caches: f32 | bf16.
  Bailing(const Config& config, WeightReader reader, Backend& backend, DType dtype, const ModelParts& parts);
  ~Bailing() override;

  int64_t vocab_size() const override { return config_.vocab_size; }
  int64_t hidden_size() const override { return config_.hidden_size; }
  int64_t max_position_embeddings() const override { return config_.max_position_embeddings; }
  DType dtype() const override { return dtype_; }
  std::vector<CacheSpec> cache_specs() const override;
  Tensor forward(ExecContext& ctx, const Batch& batch, ModelCaches& caches) const override;
  Tensor logits(ExecContext& ctx, const Tensor& hidden) const override;
  StepCost step_cost() const override;
  const Drafter* drafter() const override;

  Tensor embed(ExecContext& ctx, const Batch& batch) const;                                 // [T, D]
  RopeTables rope_tables(ExecContext& ctx, const Tensor& positions, bool lightning) const;  // positions [3, T]

  // Parts of step_cost, also of a drafter's.
  void add_cost(const DecoderLayer& layer, StepCost& cost) const;
  void add_head_cost(StepCost& cost) const;

 private:
  Config config_;
  DType dtype_;
  PackedWeight word_embeddings_;
  std::deque<DecoderLayer> layers_;
  RmsNorm norm_;
  PackedWeight lm_head_;  // absent when tied
  RotaryEmbedding rotary_, full_rotary_;
  std::unique_ptr<NextnPredictor> nextn_;
};

}  // namespace calandra::bailing_v2_5

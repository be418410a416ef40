// ReferenceBackend: every op as plain loops, the definition of correct. Sums and functions in f64, one rounding to f32
// and one to the type of the result; the recurrent state in f32, each update in the order of its contract. Packed
// weights are row-major copies. A fast backend derives from it and overrides what it has something better for.
//   memory.cc   dense.cc   norm.cc   attention.cc   latent_attention.cc   recurrence.cc
//   lightning.cc   moe.cc   vision.cc   sampling.cc
#pragma once

#include <memory>
#include <vector>

#include "ops/backend.h"

namespace calandra {

class ReferenceBackend : public Backend {
 public:
  const char* name() const override { return "reference"; }
  Device device() const override { return {}; }

  Buffer allocate(size_t bytes) override;
  void give_back(const Tensor& memory) override;
  PackedWeight pack_weight(const StoredMatrix& source, std::byte* to) override;
  size_t packed_bytes(const StoredMatrix& source) const override;
  void copy_bytes(void* to, const void* from, size_t bytes) override;
  void plan(ExecContext&, const Batch&) override {}
  size_t scratch_bytes(int64_t) const override { return 0; }
  uint32_t launches() const override { return 0; }

  // dense
  void linear(ExecContext& ctx, const Tensor& x, const LinearPack& pack, Tensor& out) override;
  void silu_mul(ExecContext& ctx, const Tensor& gate, const Tensor& up, Tensor& out) override;
  void sigmoid_mul(ExecContext& ctx, const Tensor& x, const Tensor& gate, Tensor& out) override;
  void sigmoid(ExecContext& ctx, const Tensor& x, Tensor& out) override;
  void add(ExecContext& ctx, const Tensor& a, const Tensor& b, Tensor& out) override;
  void embedding(ExecContext& ctx, const Tensor& ids, const PackedWeight& weight, Tensor& out) override;
  void gather_rows(ExecContext& ctx, const Tensor& x, const Tensor& rows, Tensor& out) override;
  void scatter_rows(ExecContext& ctx, Tensor& x, const Tensor& rows, const Tensor& values) override;
  void copy_rows(ExecContext& ctx, const Tensor& from, const Tensor& from_rows, Tensor& to,
                 const Tensor& to_rows) override;
  void concat_columns(ExecContext& ctx, const Tensor& a, const Tensor& b, Tensor& out) override;
  // norm
  void rms_norm(ExecContext& ctx, const Tensor& x, const Tensor& weight, float eps, float weight_offset,
                Tensor& out) override;
  void gated_rms_norm(ExecContext& ctx, const Tensor& x, const Tensor& z, const Tensor& weight, float eps,
                      ops::GateActivation act, Tensor& out) override;
  // attention
  void rope_table(ExecContext& ctx, const Tensor& positions, const ops::RopeFrequencies& frequencies,
                  Tensor& out) override;
  void rope(ExecContext& ctx, const Tensor& x, const Tensor& table, ops::RopePairing pairing, Tensor& out) override;
  void store_kv(ExecContext& ctx, const Tensor& k, const Tensor& v, KvPages& pages, const Batch& batch) override;
  void paged_attention(ExecContext& ctx, const Tensor& q, const KvPages& pages, const Batch& batch, float scale,
                       const Tensor& first_key, Tensor& out) override;
  void store_latent(ExecContext& ctx, const Tensor& latent, const Tensor& k_pe, LatentPages& pages,
                    const Batch& batch) override;
  void latent_attention(ExecContext& ctx, const Tensor& q_nope, const Tensor& q_pe, const ops::LatentUpProjection& up,
                        const LatentPages& pages, const Batch& batch, float scale, const Tensor& first_key,
                        Tensor& out) override;
  // recurrence
  void causal_conv1d_silu(ExecContext& ctx, const Tensor& x, const Tensor& weight, ConvState& state,
                          const Tensor& accepted, const Batch& batch, Tensor& out) override;
  void log_decay(ExecContext& ctx, const Tensor& a, const Tensor& A_log, const Tensor& dt_bias, Tensor& out) override;
  void l2_norm(ExecContext& ctx, const Tensor& x, Tensor& out) override;
  void gated_delta_rule(ExecContext& ctx, const Tensor& q, const Tensor& k, const Tensor& v, const Tensor& g,
                        const Tensor& beta, DeltaState& state, const Tensor& accepted, const Batch& batch,
                        Tensor& out) override;
  void lightning_attention(ExecContext& ctx, const Tensor& q, const Tensor& k, const Tensor& v, const Tensor& slope,
                           LightningState& state, const Tensor& accepted, const Batch& batch, DType activations,
                           Tensor& out) override;
  void commit_slots(ExecContext& ctx, const Tensor& hidden, SlotCounts& slots, Tensor& ring,
                    const Batch& batch) override;
  // experts
  void route(ExecContext& ctx, const Tensor& logits, const Tensor& bias, const ops::RouterOptions& options,
             ops::Routing& out) override;
  void grouped_linear(ExecContext& ctx, const Tensor& x, const GroupedWeight& weight, const Tensor& experts,
                      Tensor& out) override;
  void moe_combine(ExecContext& ctx, const Tensor& y, const Tensor& weights, Tensor& out) override;
  // vision
  void layer_norm(ExecContext& ctx, const Tensor& x, const Tensor& weight, const Tensor& bias, float eps,
                  Tensor& out) override;
  void gelu(ExecContext& ctx, const Tensor& x, ops::GeluForm form, Tensor& out) override;
  void weighted_rows(ExecContext& ctx, const Tensor& table, const Tensor& index, const Tensor& weight,
                     Tensor& out) override;
  void segment_attention(ExecContext& ctx, const Tensor& q, const Tensor& k, const Tensor& v,
                         const Tensor& segment_start, float scale, Tensor& out) override;
  // choose
  void sample(ExecContext& ctx, const Tensor& logits, const ops::SamplingBatch& batch,
              ops::SamplingResult& out) override;
  void complete_batch(ExecContext& ctx, const Tensor& sampled, const Batch& batch, SlotCounts& slots,
                      ops::VerifiedTokens& verified) override;

 protected:
  // Row n of a packed matrix in f32; the product with a scale is rounded once. A backend with a layout of its own that
  // leaves ops with weights to this one overrides it.
  virtual std::vector<float> weight_row(const PackedWeight& weight, int64_t n) const;
};

std::unique_ptr<Backend> make_reference_backend();

}  // namespace calandra

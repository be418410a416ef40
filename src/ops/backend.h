// Backend: the op set. One pure virtual function per elementary op; a composite op has a default body that calls its
// parts. The free functions of ops/*.h are the only callers: they have checked shapes and types and allocated the
// outputs. A function here never throws, never allocates device memory and knows nothing of layers. Inputs may have a
// row stride; the axes after the first are dense; outputs are dense. Empty inputs do nothing. Contracts stand in
// ops/<family>.h.
#pragma once

#include <functional>
#include <memory>
#include <span>
#include <vector>

#include "ops/attention.h"
#include "ops/batch.h"
#include "ops/dense.h"
#include "ops/latent_attention.h"
#include "ops/lightning.h"
#include "ops/look_ahead.h"
#include "ops/moe.h"
#include "ops/norm.h"
#include "ops/recurrence.h"
#include "ops/sampling.h"
#include "ops/vision.h"
#include "ops/weight.h"

namespace calandra {

class Backend {
 public:
  virtual ~Backend() = default;

  virtual const char* name() const = 0;
  virtual Device device() const = 0;
  // Bytes of device memory for weights and all else that is allocated; 0: the machine's memory.
  virtual size_t memory_bytes() const { return 0; }

  // Zeroed memory of the device. Throws LoadError when there is not enough.
  virtual Buffer allocate(size_t bytes) = 0;
  // Zeroed host memory from which copies to the device, and back, are fastest. Throws as allocate.
  virtual Buffer allocate_host(size_t bytes) { return Buffer::host(bytes); }
  // `memory`, all of a Buffer of allocate, goes back to the system while nobody needs it; its addresses stay. What it
  // holds is lost, and nobody uses it until take_back has returned; then it is zeros. Either once more changes nothing.
  // The device does nothing else meanwhile. take_back throws as allocate, and can be tried again.
  virtual void give_back(const Tensor& memory) = 0;
  virtual void take_back(const Tensor&) {}
  // Packs a matrix into `to`, packed_bytes of device memory at a multiple of kWeightAlignment, or pieces of multiples
  // of 128 rows and of block_n one behind the other. Several threads may. packed_bytes looks at shape and format only.
  virtual PackedWeight pack_weight(const StoredMatrix& source, std::byte* to) = 0;
  virtual size_t packed_bytes(const StoredMatrix& source) const = 0;
  // Between host and device memory, or within the device. Complete on return.
  virtual void copy_bytes(void* to, const void* from, size_t bytes) = 0;
  // The stream on which steps run (ExecContext::stream); copy_bytes keeps to its order. Null: the device has one only.
  virtual void* stream() const { return nullptr; }
  // Copies memory of allocate_host to the device in the order of the stream, perhaps after its return. `from` may
  // change again once wait_for_upload of what it returns has returned.
  using UploadId = int64_t;  // ascending
  virtual UploadId upload(ExecContext&, void* to, const void* from, size_t bytes) {
    copy_bytes(to, from, bytes);
    return 0;
  }
  virtual void wait_for_upload(UploadId) {}

  // Copies between memory of allocate_host and the device beside the stream, one after the other. They begin when the
  // stream has done what it had been given before upload `behind`, and may still be on their way after the return.
  // wait_for_copies: until those of `id` and before are done. follow_copies: what the stream is given from now on
  // begins when all copies so far are done.
  struct CopyBeside {
    void* to;
    const void* from;
    size_t bytes;
  };
  using CopyId = int64_t;                         // ascending
  virtual UploadId uploads() const { return 0; }  // the next one; copies behind it are behind all so far
  virtual CopyId copy_beside(std::span<const CopyBeside> copies, UploadId) {
    for (const CopyBeside& copy : copies) copy_bytes(copy.to, copy.from, copy.bytes);
    return 0;
  }
  virtual void wait_for_copies(CopyId) {}
  virtual void follow_copies() {}

  // Kernels that `work` starts, for starting them again in one call with the same arguments: whatever changes from one
  // step to the next is read from device memory. While `records()` is false there are no recordings.
  class Recording {
   public:
    virtual ~Recording() = default;
    virtual void run(ExecContext& ctx) = 0;
  };
  virtual bool records() const { return false; }
  // Calls `work`, which starts nothing meanwhile. It must have run before, so that nothing is loaded in it.
  virtual std::unique_ptr<Recording> record(ExecContext&, const std::function<void()>&) { return nullptr; }

  // Work done once per step for all layers (tile schedules, scratch). Called before the model's forward, also in a dry
  // run with the largest batch, and the only function that may allocate.
  virtual void plan(ExecContext& ctx, const Batch& batch) = 0;
  // Bytes that the backend holds for itself beside weights and workspace, once matrices of up to `columns` columns have
  // been packed.
  virtual size_t scratch_bytes(int64_t columns) const = 0;
  // Barriers between threads (CPU) or kernel launches (CUDA) since the start. Benches count by differences.
  virtual uint32_t launches() const = 0;
  // Seconds that the host has waited for the device since the start: steps, uploads, copies. Without a stream: 0.
  virtual double waited_seconds() const { return 0; }

  // For benches, of a device of its own; the machine's cores give 0 and nothing. How fast its memory is read, and what
  // the kernels that `work` starts take there one after the other, by name in the order of their first start. Before
  // them stand kernels that do nothing: what a launch and its clock take.
  struct KernelTime {
    const char* name;
    int64_t launches;
    double seconds;
  };
  virtual double read_bytes_per_s() { return 0; }
  virtual std::vector<KernelTime> time_kernels(const std::function<void()>&) { return {}; }

  // dense
  virtual void linear(ExecContext& ctx, const Tensor& x, const LinearPack& pack, Tensor& out) = 0;  // out [T, sum N]
  virtual void silu_mul(ExecContext& ctx, const Tensor& gate, const Tensor& up, Tensor& out) = 0;
  virtual void sigmoid_mul(ExecContext& ctx, const Tensor& x, const Tensor& gate, Tensor& out) = 0;
  virtual void sigmoid(ExecContext& ctx, const Tensor& x, Tensor& out) = 0;
  virtual void add(ExecContext& ctx, const Tensor& a, const Tensor& b, Tensor& out) = 0;
  virtual void embedding(ExecContext& ctx, const Tensor& ids, const PackedWeight& weight, Tensor& out) = 0;
  virtual void gather_rows(ExecContext& ctx, const Tensor& x, const Tensor& rows, Tensor& out) = 0;
  virtual void scatter_rows(ExecContext& ctx, Tensor& x, const Tensor& rows, const Tensor& values) = 0;
  virtual void copy_rows(ExecContext& ctx, const Tensor& from, const Tensor& from_rows, Tensor& to,
                         const Tensor& to_rows) = 0;
  virtual void concat_columns(ExecContext& ctx, const Tensor& a, const Tensor& b, Tensor& out) = 0;
  // norm
  virtual void rms_norm(ExecContext& ctx, const Tensor& x, const Tensor& weight, float eps, float weight_offset,
                        Tensor& out) = 0;
  virtual void gated_rms_norm(ExecContext& ctx, const Tensor& x, const Tensor& z, const Tensor& weight, float eps,
                              ops::GateActivation act, Tensor& out) = 0;
  // attention; paged_attention and latent_attention are called in a dry run as well, to allocate scratch in the
  // workspace
  virtual void rope_table(ExecContext& ctx, const Tensor& positions, const ops::RopeFrequencies& frequencies,
                          Tensor& out) = 0;
  virtual void rope(ExecContext& ctx, const Tensor& x, const Tensor& table, ops::RopePairing pairing, Tensor& out) = 0;
  virtual void store_kv(ExecContext& ctx, const Tensor& k, const Tensor& v, KvPages& pages, const Batch& batch) = 0;
  virtual void paged_attention(ExecContext& ctx, const Tensor& q, const KvPages& pages, const Batch& batch, float scale,
                               const Tensor& first_key, Tensor& out) = 0;
  virtual void store_latent(ExecContext& ctx, const Tensor& latent, const Tensor& k_pe, LatentPages& pages,
                            const Batch& batch) = 0;
  virtual void latent_attention(ExecContext& ctx, const Tensor& q_nope, const Tensor& q_pe,
                                const ops::LatentUpProjection& up, const LatentPages& pages, const Batch& batch,
                                float scale, const Tensor& first_key, Tensor& out) = 0;
  // recurrence
  virtual void causal_conv1d_silu(ExecContext& ctx, const Tensor& x, const Tensor& weight, ConvState& state,
                                  const Tensor& accepted, const Batch& batch, Tensor& out) = 0;
  virtual void log_decay(ExecContext& ctx, const Tensor& a, const Tensor& A_log, const Tensor& dt_bias,
                         Tensor& out) = 0;
  virtual void l2_norm(ExecContext& ctx, const Tensor& x, Tensor& out) = 0;
  virtual void gated_delta_rule(ExecContext& ctx, const Tensor& q, const Tensor& k, const Tensor& v, const Tensor& g,
                                const Tensor& beta, DeltaState& state, const Tensor& accepted, const Batch& batch,
                                Tensor& out) = 0;
  virtual void lightning_attention(ExecContext& ctx, const Tensor& q, const Tensor& k, const Tensor& v,
                                   const Tensor& slope, LightningState& state, const Tensor& accepted,
                                   const Batch& batch, DType activations, Tensor& out) = 0;
  virtual void commit_slots(ExecContext& ctx, const Tensor& hidden, SlotCounts& slots, Tensor& ring,
                            const Batch& batch) = 0;
  // experts; route and grouped_linear are called in a dry run as well, to allocate scratch in the workspace
  virtual void route(ExecContext& ctx, const Tensor& logits, const Tensor& bias, const ops::RouterOptions& options,
                     ops::Routing& out) = 0;
  virtual void grouped_linear(ExecContext& ctx, const Tensor& x, const GroupedWeight& weight, const Tensor& experts,
                              Tensor& out) = 0;
  virtual void moe_combine(ExecContext& ctx, const Tensor& y, const Tensor& weights, Tensor& out) = 0;
  // vision; segment_attention is called in a dry run as well, to allocate scratch in the workspace
  virtual void layer_norm(ExecContext& ctx, const Tensor& x, const Tensor& weight, const Tensor& bias, float eps,
                          Tensor& out) = 0;
  virtual void gelu(ExecContext& ctx, const Tensor& x, ops::GeluForm form, Tensor& out) = 0;
  virtual void weighted_rows(ExecContext& ctx, const Tensor& table, const Tensor& index, const Tensor& weight,
                             Tensor& out) = 0;
  virtual void segment_attention(ExecContext& ctx, const Tensor& q, const Tensor& k, const Tensor& v,
                                 const Tensor& segment_start, float scale, Tensor& out) = 0;
  // choose
  virtual void sample(ExecContext& ctx, const Tensor& logits, const ops::SamplingBatch& batch,
                      ops::SamplingResult& out) = 0;
  // For backends with a stream of their own.
  virtual bool start_sample(ExecContext&, const Tensor&, const ops::SamplingBatch&, int, Tensor&) { return false; }
  virtual void finish_sample(ExecContext&, const ops::SamplingBatch&, int, ops::SamplingResult&) {}
  virtual void complete_batch(ExecContext& ctx, const Tensor& sampled, const Batch& batch, SlotCounts& slots,
                              ops::VerifiedTokens& verified) = 0;

  // Composite ops. The default bodies (ops/composite.cc) call the parts, which makes every tap of the parts visible; an
  // override must fall back to the default when ctx.taps is set, and in a dry run allocates its scratch and returns.
  virtual void linear_add(ExecContext& ctx, const Tensor& x, const PackedWeight& weight, const Tensor& residual,
                          Tensor& out);
  virtual void swiglu_mlp(ExecContext& ctx, const Tensor& x, const LinearPack& gate_up, const PackedWeight& down,
                          const Tensor& residual, Tensor& out);
  virtual void sparse_moe(ExecContext& ctx, const Tensor& x, const ops::SparseMoeWeights& weights,
                          const ops::RouterOptions& options, const Tensor& residual, Tensor& out);
  virtual void add_rms_norm(ExecContext& ctx, const Tensor& x, const Tensor& y, const Tensor& weight, float eps,
                            float weight_offset, Tensor& sum, Tensor& norm);
  virtual void qk_norm_rope_store(ExecContext& ctx, const Tensor& q, const Tensor& k, const Tensor& v,
                                  const ops::QkNorm& norm, const Tensor& table, KvPages& pages, const Batch& batch,
                                  Tensor& out);
  virtual void attention_mixer(ExecContext& ctx, const Tensor& q, const Tensor& k, const Tensor& v, const Tensor& gate,
                               const ops::QkNorm& norm, const Tensor& table, KvPages& pages, const Batch& batch,
                               float scale, const Tensor& first_key, Tensor& out);
  virtual void gated_delta_mixer(ExecContext& ctx, const Tensor& qkv, const Tensor& z, const Tensor& b, const Tensor& a,
                                 const ops::GatedDeltaWeights& weights, ConvState& conv, DeltaState& delta,
                                 const Tensor& accepted, const Batch& batch, Tensor& out);
  virtual void lightning_mixer(ExecContext& ctx, const Tensor& qkv, const Tensor& gate,
                               const ops::LightningWeights& weights, const Tensor& table, LightningState& state,
                               const Tensor& accepted, const Batch& batch, Tensor& out);
};

}  // namespace calandra

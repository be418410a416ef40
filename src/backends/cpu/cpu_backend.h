// CpuBackend: SIMD kernels per instruction set and a thread pool; what is not overridden here is the reference op.
// Results depend on neither rows, batch, threads nor instruction set, bit for bit.
//   cpu_linear.cc   cpu_dense.cc   cpu_attention.cc   cpu_latent_attention.cc   cpu_recurrence.cc   cpu_lightning.cc
//   cpu_moe.cc   cpu_vision.cc    the overrides, which split work over threads
//   <family>_kernels.h            table of the functions of one instruction set
//   <family>_{avx2,avx512}.cc     one translation unit each around <family>_kernels.inl, written over simd.h
#pragma once

#include <memory>
#include <mutex>
#include <optional>

#include "backends/cpu/isa.h"
#include "backends/reference/reference.h"
#include "base/thread_pool.h"

namespace calandra {

struct CpuOptions {
  int threads = 0;         // 0: one per usable core
  std::optional<Isa> isa;  // absent: the best of the machine
};

// The reference backend, with a warning, on a CPU without AVX2.
std::unique_ptr<Backend> make_cpu_backend(const CpuOptions& options);

struct DenseKernels;
struct MoeKernels;
struct AttentionKernels;
struct RecurrenceKernels;
struct LightningKernels;
struct LatentKernels;
struct VisionKernels;
struct LinearJob;

class CpuBackend : public ReferenceBackend {
 public:
  CpuBackend(int threads, Isa isa);  // the machine must have `isa`

  const char* name() const override { return "cpu"; }
  Isa isa() const { return isa_; }
  int threads() const { return pool_.threads(); }
  size_t scratch_bytes(int64_t columns) const override;
  uint32_t launches() const override { return pool_.regions(); }

  PackedWeight pack_weight(const StoredMatrix& source, std::byte* to) override;
  size_t packed_bytes(const StoredMatrix& source) const override;

  // dense
  void linear(ExecContext& ctx, const Tensor& x, const LinearPack& pack, Tensor& out) override;
  void silu_mul(ExecContext& ctx, const Tensor& gate, const Tensor& up, Tensor& out) override;
  void sigmoid_mul(ExecContext& ctx, const Tensor& x, const Tensor& gate, Tensor& out) override;
  void sigmoid(ExecContext& ctx, const Tensor& x, Tensor& out) override;
  void add(ExecContext& ctx, const Tensor& a, const Tensor& b, Tensor& out) override;
  void embedding(ExecContext& ctx, const Tensor& ids, const PackedWeight& weight, Tensor& out) override;
  void gather_rows(ExecContext& ctx, const Tensor& x, const Tensor& rows, Tensor& out) override;
  void linear_add(ExecContext& ctx, const Tensor& x, const PackedWeight& weight, const Tensor& residual,
                  Tensor& out) override;
  void swiglu_mlp(ExecContext& ctx, const Tensor& x, const LinearPack& gate_up, const PackedWeight& down,
                  const Tensor& residual, Tensor& out) override;
  // experts
  void route(ExecContext& ctx, const Tensor& logits, const Tensor& bias, const ops::RouterOptions& options,
             ops::Routing& out) override;
  void grouped_linear(ExecContext& ctx, const Tensor& x, const GroupedWeight& weight, const Tensor& experts,
                      Tensor& out) override;
  void moe_combine(ExecContext& ctx, const Tensor& y, const Tensor& weights, Tensor& out) override;
  void sparse_moe(ExecContext& ctx, const Tensor& x, const ops::SparseMoeWeights& weights,
                  const ops::RouterOptions& options, const Tensor& residual, Tensor& out) override;
  // vision
  void layer_norm(ExecContext& ctx, const Tensor& x, const Tensor& weight, const Tensor& bias, float eps,
                  Tensor& out) override;
  void gelu(ExecContext& ctx, const Tensor& x, ops::GeluForm form, Tensor& out) override;
  void weighted_rows(ExecContext& ctx, const Tensor& table, const Tensor& index, const Tensor& weight,
                     Tensor& out) override;
  void segment_attention(ExecContext& ctx, const Tensor& q, const Tensor& k, const Tensor& v,
                         const Tensor& segment_start, float scale, Tensor& out) override;
  // norm
  void rms_norm(ExecContext& ctx, const Tensor& x, const Tensor& weight, float eps, float weight_offset,
                Tensor& out) override;
  void gated_rms_norm(ExecContext& ctx, const Tensor& x, const Tensor& z, const Tensor& weight, float eps,
                      ops::GateActivation act, Tensor& out) override;
  void add_rms_norm(ExecContext& ctx, const Tensor& x, const Tensor& y, const Tensor& weight, float eps,
                    float weight_offset, Tensor& sum, Tensor& norm) override;
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
  void qk_norm_rope_store(ExecContext& ctx, const Tensor& q, const Tensor& k, const Tensor& v, const ops::QkNorm& norm,
                          const Tensor& table, KvPages& pages, const Batch& batch, Tensor& out) override;
  // recurrence
  void causal_conv1d_silu(ExecContext& ctx, const Tensor& x, const Tensor& weight, ConvState& state,
                          const Tensor& accepted, const Batch& batch, Tensor& out) override;
  void log_decay(ExecContext& ctx, const Tensor& a, const Tensor& A_log, const Tensor& dt_bias, Tensor& out) override;
  void l2_norm(ExecContext& ctx, const Tensor& x, Tensor& out) override;
  void gated_delta_rule(ExecContext& ctx, const Tensor& q, const Tensor& k, const Tensor& v, const Tensor& g,
                        const Tensor& beta, DeltaState& state, const Tensor& accepted, const Batch& batch,
                        Tensor& out) override;
  void gated_delta_mixer(ExecContext& ctx, const Tensor& qkv, const Tensor& z, const Tensor& b, const Tensor& a,
                         const ops::GatedDeltaWeights& weights, ConvState& conv, DeltaState& delta,
                         const Tensor& accepted, const Batch& batch, Tensor& out) override;
  void lightning_attention(ExecContext& ctx, const Tensor& q, const Tensor& k, const Tensor& v, const Tensor& slope,
                           LightningState& state, const Tensor& accepted, const Batch& batch, DType activations,
                           Tensor& out) override;
  void lightning_mixer(ExecContext& ctx, const Tensor& qkv, const Tensor& gate, const ops::LightningWeights& weights,
                       const Tensor& table, LightningState& state, const Tensor& accepted, const Batch& batch,
                       Tensor& out) override;

 protected:
  std::vector<float> weight_row(const PackedWeight& weight, int64_t n) const override;

 private:
  // Sizes of the buffers below, for `threads` threads and weights of up to K columns.
  static size_t attention_bytes(int threads);
  static size_t recurrence_bytes(int threads);
  static size_t lightning_bytes(int threads);
  static size_t latent_bytes(int threads);
  static size_t shared_x_bytes(int64_t K);
  static size_t thread_scratch_bytes(int threads, int64_t K);
  void run_linear(const Tensor& x, const LinearJob& job);
  // Says, once for each op, that the reference computes it, and for which shapes there are kernels.
  void note_slow(const char* op, const char* kernels_for);

  std::vector<const char*> slow_;  // ops of note_slow
  const Isa isa_;
  ThreadPool pool_;
  const DenseKernels& dense_;
  const MoeKernels& moe_;
  const AttentionKernels& attention_;
  const RecurrenceKernels& recurrence_;
  const LightningKernels& lightning_;
  const LatentKernels& latent_;
  const VisionKernels& vision_;

  // linear: x as the kernels want it (for few rows one copy per thread), and per thread a widened weight block and sums
  std::mutex scratch_mutex_;  // pack_weight runs on several threads
  int64_t max_K_ = 0;
  Buffer shared_x_;
  Buffer thread_scratch_;

  // working memory of the tasks of attention and of the recurrences, per thread
  Buffer attention_scratch_ = Buffer::host(attention_bytes(pool_.threads()));
  Buffer recurrence_scratch_ = Buffer::host(recurrence_bytes(pool_.threads()));
  Buffer lightning_scratch_ = Buffer::host(lightning_bytes(pool_.threads()));
  Buffer latent_scratch_ = Buffer::host(latent_bytes(pool_.threads()));
};

}  // namespace calandra

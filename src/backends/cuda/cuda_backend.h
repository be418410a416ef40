// CudaBackend: every op as kernels for Hopper (sm_90a), ahead of time. Sums run in f32, in an order that depends on the
// shapes of the weights, on absolute positions and on which of two kinds of rows there are: a step of up to 16 rows
// (products) or a sequence with up to 16 rows in the step (mixers) gives the same bits whatever else is in it; more
// rows take the tensor cores, in another order of their own. With CudaOptions::deterministic the kernels of few rows
// serve any number of them, so that there is one order.
//   cuda_backend.cc   device, memory, weights
//   linear.cu   dense.cu   norm.cu   attention.cu   latent_attention.cu   recurrence.cu   lightning.cu   moe.cu
//   vision.cu   copy_rows.cu   look_ahead.cu   sampling.{cu,cc}    the ops of a family: kernels and their launches
//   attention_inputs.cu   delta_mixer.cu   lightning_mixer.cu    several ops of a mixer as one kernel
//   linear_few_rows.{h,cu}    products of up to 16 rows, what linear.cu and moe.cu launch
//   linear_gemm.{h,cu}   moe_gemm.{h,cu}   delta_chunks.{h,cu}    products and the delta rule of many rows
//   packed_rows.{h,cu}   how weights lie in the device's memory
//   mapped_memory.{h,cc}      memory that can be given back
//   graph.cc          recordings of steps
//   measure.cu        for benches: the memory's speed, times of kernels
//   device/           what kernels share: loads, reductions, segments, the attention and recurrence loops
//   plugin*.{h,cc}    the border to the program
#pragma once

#include <cuda_runtime_api.h>

#include <array>
#include <atomic>

#include "backends/cuda/cuda_check.h"
#include "backends/cuda/plugin.h"
#include "backends/cuda/sampling_memory.h"
#include "ops/backend.h"

namespace calandra {

namespace cuda {
class KernelTimer;
// Throws LoadError unless the device is there and can run the kernels.
void check_device(int device);

inline cudaStream_t stream_of(const ExecContext& ctx) { return static_cast<cudaStream_t>(ctx.stream); }
inline bool is_bf16(const Tensor& x) { return x.dtype() == DType::kBF16; }
}  // namespace cuda

class CudaBackend final : public Backend {
 public:
  explicit CudaBackend(const CudaOptions& options);
  ~CudaBackend() override;

  const char* name() const override { return "cuda"; }
  Device device() const override { return {DeviceKind::kCuda, options_.device}; }
  size_t memory_bytes() const override { return memory_bytes_; }

  Buffer allocate(size_t bytes) override;
  Buffer allocate_host(size_t bytes) override;
  void give_back(const Tensor& memory) override;
  void take_back(const Tensor& memory) override;
  PackedWeight pack_weight(const StoredMatrix& source, std::byte* to) override;
  size_t packed_bytes(const StoredMatrix& source) const override;
  void copy_bytes(void* to, const void* from, size_t bytes) override;
  void* stream() const override { return stream_; }
  UploadId upload(ExecContext& ctx, void* to, const void* from, size_t bytes) override;
  void wait_for_upload(UploadId id) override;
  UploadId uploads() const override { return uploads_; }
  CopyId copy_beside(std::span<const CopyBeside> copies, UploadId behind) override;
  void wait_for_copies(CopyId id) override;
  void follow_copies() override;
  bool records() const override;
  std::unique_ptr<Recording> record(ExecContext& ctx, const std::function<void()>& work) override;
  void plan(ExecContext& ctx, const Batch& batch) override;
  size_t scratch_bytes(int64_t) const override { return 0; }
  uint32_t launches() const override { return launches_; }
  double waited_seconds() const override { return waited_seconds_; }
  double read_bytes_per_s() override;
  std::vector<KernelTime> time_kernels(const std::function<void()>& work) override;

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
  void linear_add(ExecContext& ctx, const Tensor& x, const PackedWeight& weight, const Tensor& residual,
                  Tensor& out) override;
  void swiglu_mlp(ExecContext& ctx, const Tensor& x, const LinearPack& gate_up, const PackedWeight& down,
                  const Tensor& residual, Tensor& out) override;
  // norm
  void add_rms_norm(ExecContext& ctx, const Tensor& x, const Tensor& y, const Tensor& weight, float eps,
                    float weight_offset, Tensor& sum, Tensor& norm) override;
  void rms_norm(ExecContext& ctx, const Tensor& x, const Tensor& weight, float eps, float weight_offset,
                Tensor& out) override;
  void gated_rms_norm(ExecContext& ctx, const Tensor& x, const Tensor& z, const Tensor& weight, float eps,
                      ops::GateActivation act, Tensor& out) override;
  // attention
  void rope_table(ExecContext& ctx, const Tensor& positions, const ops::RopeFrequencies& frequencies,
                  Tensor& out) override;
  void rope(ExecContext& ctx, const Tensor& x, const Tensor& table, ops::RopePairing pairing, Tensor& out) override;
  void store_kv(ExecContext& ctx, const Tensor& k, const Tensor& v, KvPages& pages, const Batch& batch) override;
  void qk_norm_rope_store(ExecContext& ctx, const Tensor& q, const Tensor& k, const Tensor& v, const ops::QkNorm& norm,
                          const Tensor& table, KvPages& pages, const Batch& batch, Tensor& out) override;
  void paged_attention(ExecContext& ctx, const Tensor& q, const KvPages& pages, const Batch& batch, float scale,
                       const Tensor& first_key, Tensor& out) override;
  void attention_mixer(ExecContext& ctx, const Tensor& q, const Tensor& k, const Tensor& v, const Tensor& gate,
                       const ops::QkNorm& norm, const Tensor& table, KvPages& pages, const Batch& batch, float scale,
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
  void gated_delta_mixer(ExecContext& ctx, const Tensor& qkv, const Tensor& z, const Tensor& b, const Tensor& a,
                         const ops::GatedDeltaWeights& weights, ConvState& conv, DeltaState& delta,
                         const Tensor& accepted, const Batch& batch, Tensor& out) override;
  void lightning_attention(ExecContext& ctx, const Tensor& q, const Tensor& k, const Tensor& v, const Tensor& slope,
                           LightningState& state, const Tensor& accepted, const Batch& batch, DType activations,
                           Tensor& out) override;
  void lightning_mixer(ExecContext& ctx, const Tensor& qkv, const Tensor& gate, const ops::LightningWeights& weights,
                       const Tensor& table, LightningState& state, const Tensor& accepted, const Batch& batch,
                       Tensor& out) override;
  void commit_slots(ExecContext& ctx, const Tensor& hidden, SlotCounts& slots, Tensor& ring,
                    const Batch& batch) override;
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
  // choose
  void sample(ExecContext& ctx, const Tensor& logits, const ops::SamplingBatch& batch,
              ops::SamplingResult& out) override;
  bool start_sample(ExecContext& ctx, const Tensor& logits, const ops::SamplingBatch& batch, int flight,
                    Tensor& tokens) override;
  void finish_sample(ExecContext& ctx, const ops::SamplingBatch& batch, int flight, ops::SamplingResult& out) override;
  void complete_batch(ExecContext& ctx, const Tensor& sampled, const Batch& batch, SlotCounts& slots,
                      ops::VerifiedTokens& verified) override;

 private:
  [[noreturn]] void out_of_memory(size_t bytes, const char* advice) const;  // throws LoadError
  // The rows that `on_device` of the flight names, their tokens to `tokens` unless it is null; false, and nothing
  // started, when there is no memory for it.
  bool start_on_device(ExecContext& ctx, const Tensor& logits, const ops::SamplingBatch& batch,
                       cuda::SamplingFlight& flight, int32_t* tokens);
  // Memory of all flights for so many rows, so that no step waits for it.
  void reserve_samples(int64_t rows);
  void wait_for(cudaEvent_t event);
  template <class F>
  void waiting(const F& call);  // counts its time as waiting for the device
  // Two ways of sparse_moe, and the sums at their end: out = residual + (weighted sum of y [T, k, D] + shared
  // sigmoid(open)), where shared [T, D] and open [T, 1] may be absent.
  void mixture_of_few_rows(ExecContext& ctx, const Tensor& x, const ops::SparseMoeWeights& weights,
                           const ops::RouterOptions& options, const Tensor& residual, Tensor& out);
  void mixture_of_many_rows(ExecContext& ctx, const Tensor& x, const ops::SparseMoeWeights& weights,
                            const ops::RouterOptions& options, const Tensor& residual, Tensor& out);
  void join(ExecContext& ctx, const Tensor& y, const Tensor& expert_weights, const Tensor& shared, const Tensor& open,
            const Tensor& residual, Tensor& out);
  // After every launch: counts it and ends the process when it failed, with the kernel's name.
  void launched(const ExecContext& ctx, const char* kernel);

  const CudaOptions options_;
  size_t memory_bytes_ = 0;                 // that were free at the start, less a reserve
  uint32_t launches_ = 0;                   // a recording counts as one
  std::atomic<double> waited_seconds_ = 0;  // several threads may copy
  cudaStream_t stream_ = nullptr;           // waits for the legacy stream, and that for it: copy_bytes keeps the order
  static constexpr UploadId kUploads = 512;
  std::array<cudaEvent_t, kUploads> uploaded_ = {};  // behind the last uploads; that of upload i at i % kUploads
  UploadId uploads_ = 0, awaited_ = 0;               // those before are there
  cudaStream_t beside_ = nullptr;                    // waits for stream_ where it is told to alone
  cudaEvent_t now_ = nullptr;                        // where copies begin that wait for all that stream_ was given
  static constexpr CopyId kCopies = 64;
  std::vector<void*> beside_to_;  // of the last copies, kept for their memory
  std::vector<const void*> beside_from_;
  std::vector<size_t> beside_bytes_;
  std::array<cudaEvent_t, kCopies> copied_ = {};  // behind the last copies, as uploaded_
  CopyId copies_ = 0;                             // the last one
  cudaStream_t last_stream_ = nullptr;            // that was launched on
  cuda::KernelTimer* timer_ = nullptr;            // during time_kernels
  cuda::SamplingMemory sampling_;
};

}  // namespace calandra

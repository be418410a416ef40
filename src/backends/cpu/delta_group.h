// The gated delta rule, and the whole mixer around it, for one key head of one sequence: working memory and tasks.
#pragma once

#include <cstddef>
#include <optional>

#include "backends/cpu/conv_channels.h"
#include "backends/cpu/dense_kernels.h"
#include "ops/recurrence.h"

namespace calandra {

struct RecurrenceScratch {
  static constexpr int kChannels = (2 + kMaxValueHeads) * kMaxDeltaDim;  // q, k, v of one key head

  float q[kDeltaChunk * kMaxDeltaDim];
  float k[kDeltaChunk * kMaxDeltaDim];
  float v[kDeltaChunk * kMaxValueHeads * kMaxDeltaDim];  // [tokens, heads, Dv]
  float S[kMaxDeltaDim * kDeltaColumns];
  float g[kMaxValueHeads * kDeltaChunk];  // [heads, kDeltaChunk]
  float decay[kMaxValueHeads * kDeltaChunk];
  float beta[kMaxValueHeads * kDeltaChunk];
  float conv_weight[kMaxConvKernel * kChannels];              // [W, channels]
  alignas(64) std::byte conv_out[kChannels * sizeof(float)];  // of one token
  alignas(64) std::byte window[(kMaxConvKernel - 1) * kChannels * sizeof(float)];
};

// One call of gated_delta_rule (q, k, v, g, beta are given) or of gated_delta_mixer (they are made from qkv, a, b).
struct DeltaJob {
  const RecurrenceKernels& kernels;
  const DenseKernels& dense;
  const Batch& batch;
  DeltaState& state;
  Tensor& out;                // [T, Hv, Dv] or [T, Hv Dv]
  int64_t Hk, heads, Dk, Dv;  // heads: value heads of a key head

  struct Rule {
    const Tensor &q, &k, &v, &g, &beta;
  };
  struct Mixer {
    const Tensor &qkv, &z, &b, &a;
    const ops::GatedDeltaWeights& weights;
    ConvState& conv;
  };
  std::optional<Rule> rule;
  std::optional<Mixer> mixer;

  bool bf16() const { return out.dtype() == DType::kBF16; }
};

// A part of a key head's work: value heads [head, head_end), columns [column, column_end) of each.
struct DeltaPart {
  int64_t head, head_end;
  int64_t column, column_end;
};

class DeltaGroup {
 public:
  DeltaGroup(const DeltaJob& job, const Chain& chain, int64_t key_head, RecurrenceScratch& scratch);

  // Outputs and states of a part. `whole`: the part is all there is, and everything else is done on the way; otherwise
  // finish() follows when all parts of the key head are done; with the norm when parts had not all columns of a head.
  void run(const DeltaPart& part, bool whole);
  void finish(bool norm);

 private:
  void prepare(int64_t token, int64_t count, const DeltaPart& part);
  void prepare_pending(int64_t token, int64_t at, const DeltaPart& part);
  void prepare_rule(int64_t token, int64_t at, const DeltaPart& part);
  void prepare_mixer(int64_t token, int64_t at, const DeltaPart& part);
  void run_chunk(int64_t token, int64_t count, const DeltaPart& part, int32_t from, int32_t to);
  void write_pending();
  void gated_norm(int64_t row, int64_t rows, const DeltaPart& part);
  void copy_state(const DeltaPart& part, int32_t from, int32_t to);
  DeltaPart all() const { return {0, job_.heads, 0, job_.Dv}; }
  float* S(int32_t slot, int64_t head) const;
  std::byte* out_of(int64_t row, int64_t head) const;

  const DeltaJob& job_;
  const Chain& chain_;
  const int64_t key_head_;
  RecurrenceScratch& scratch_;
  std::optional<ConvChannels> q_, k_, v_;  // of the mixer
};

}  // namespace calandra

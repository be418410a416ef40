// Lightning attention of CpuBackend, alone and with the mixer around it. A task is a head of a sequence, or a block of
// its columns when there are fewer heads than keep the threads busy (lightning_kernels.h).
#include <cmath>
#include <cstring>

#include "backends/cpu/chain.h"
#include "backends/cpu/cpu_backend.h"
#include "backends/cpu/dense_kernels.h"
#include "backends/cpu/lightning_kernels.h"
#include "backends/cpu/row_split.h"

namespace calandra {
namespace {

struct ThreadScratch {
  float kq[2 * kLightningChunk * kMaxLightningDim];
  float v[kLightningChunk * kMaxLightningDim];
  float o[kLightningChunk * kMaxLightningDim];
  float q_steps[2][kMaxLightningDim];  // of one token on its way through silu, norm and rope
  float k_steps[2][kMaxLightningDim];
  float v_silu[kMaxLightningDim];
};

bool supported(const LightningState& state) {
  const int64_t Dk = state.S.size(2), Dv = state.S.size(3);
  return Dk % 16 == 0 && Dv % 16 == 0 && Dk <= kMaxLightningDim && Dv <= kMaxLightningDim &&
         state.pending_k.size(1) <= kLightningChunk;
}

// Query, key and value of a row in one head, as the recurrence takes them.
struct HeadInputs {
  const float *q, *k, *v;
};

// Those of lightning_attention: given.
struct GivenInputs {
  const Tensor &q, &k, &v;

  HeadInputs at(int64_t row, int64_t head, ThreadScratch&) const {
    const auto of = [&](const Tensor& x) { return x.as<float>() + row * x.stride(0) + head * x.stride(1); };
    return {of(q), of(k), of(v)};
  }
};

// Those of lightning_mixer: made from a row of qkv, by the kernels of the ops that its definition calls.
struct MixerInputs {
  const DenseKernels& dense;
  const Tensor& qkv;
  const ops::LightningWeights& weights;
  const Tensor& table;
  int64_t H, D;

  HeadInputs at(int64_t row, int64_t head, ThreadScratch& scratch) const {
    const float* x = qkv.as<float>() + row * qkv.stride(0) + head * D;
    const float* v = x + 2 * H * D;
    if (weights.silu) {
      dense.sigmoid_mul[0](v, v, scratch.v_silu, D);
      v = scratch.v_silu;
    }
    return {prepared(x, weights.q_norm, row, scratch.q_steps),
            prepared(x + H * D, weights.k_norm, row, scratch.k_steps), v};
  }

 private:
  const float* prepared(const float* x, const Tensor& norm, int64_t row, float (&steps)[2][kMaxLightningDim]) const {
    if (weights.silu) {
      dense.sigmoid_mul[0](x, x, steps[0], D);
      x = steps[0];
    }
    if (norm.rank() != 0) {
      dense.rms_norm[0](x, norm.as<float>(), weights.eps, 0, steps[1], D);
      x = steps[1];
    }
    if (weights.rope) {
      float* y = x == steps[0] ? steps[1] : steps[0];
      const int64_t half = table.size(2);
      const float* cos = table.as<float>() + row * table.stride(1);
      dense.rope[0](x, x + half, cos, cos + table.stride(0), y, y + half, half);
      std::memcpy(y + 2 * half, x + 2 * half, (D - 2 * half) * sizeof(float));
      x = y;
    }
    return x;
  }
};

// One call of either op; outputs [T, H, Dv] f32 in `out`.
template <class Inputs>
class LightningRun {
 public:
  LightningRun(const LightningKernels& kernels, const Inputs& inputs, const Tensor& slope, LightningState& state,
               const Tensor& accepted, const Batch& batch, float* out)
      : kernels_(kernels),
        inputs_(inputs),
        slope_(slope),
        state_(state),
        accepted_(accepted),
        batch_(batch),
        out_(out),
        H_(state.S.size(1)),
        Dk_(state.S.size(2)),
        Dv_(state.S.size(3)) {}

  void on(ThreadPool& pool, ThreadScratch* scratch) const {
    const int64_t long_ones = long_sequences(batch_), blocks = Dv_ / 16, heads = batch_.sequences() * H_;
    int64_t parts = 1;  // of a head's columns
    for (; 2 * parts <= blocks && !keep_busy(long_ones * H_ * parts, pool.threads()); parts *= 2) continue;
    for_each_task(pool, heads * parts, [&](int64_t task, int thread) {
      const Chain chain = chain_of(batch_, accepted_, task / parts / H_);
      const int64_t head = task / parts % H_, part = task % parts;
      const int64_t begin = 16 * (blocks * part / parts), end = 16 * (blocks * (part + 1) / parts);
      run(chain, head, begin, end - begin, scratch[thread]);
      if (parts == 1) write_pending(chain, head, scratch[thread]);
    });
    if (parts == 1) return;
    for_each_task(pool, heads, [&](int64_t task, int thread) {  // when all parts have read the pending ones
      write_pending(chain_of(batch_, accepted_, task / H_), task % H_, scratch[thread]);
    });
  }

 private:
  void run(const Chain& chain, int64_t head, int64_t column, int64_t columns, ThreadScratch& scratch) const {
    if (!chain.live) {
      for (int64_t row = chain.row; row < chain.row + chain.rows; ++row)
        std::memset(out_of(row, head) + column, 0, columns * sizeof(float));
      return;
    }
    const float decay = static_cast<float>(std::exp(-static_cast<double>(slope_.as<float>()[head])));
    int64_t token = 0;
    int32_t slot = chain.src;
    for (int64_t s = chain.segment_begin; s < chain.segment_end; ++s) {
      const int32_t dst = batch_.state_dst.as<int32_t>()[s];
      const int64_t end = chain.segment_tokens(batch_, s), drafts = s + 1 == chain.segment_end ? chain.drafts : 0;
      while (token < end + drafts || slot != dst) {
        // The drafts go in one sweep, with the last certain tokens if they fit: they start from the certain state.
        const int64_t certain = std::min<int64_t>(kLightningChunk, end - token);
        int64_t count = certain;
        if (token + certain == end && certain + drafts <= kLightningChunk) count += drafts;
        sweep(chain, head, token, count, certain, decay, column, columns, slot, dst, scratch);
        token += count;
        slot = dst;
      }
    }
  }

  // `count` tokens through the state of slot `from` (-1: empty) into slot `to`.
  void sweep(const Chain& chain, int64_t head, int64_t token, int64_t count, int64_t certain, float decay,
             int64_t column, int64_t columns, int32_t from, int32_t to, ThreadScratch& scratch) const {
    const float scale = static_cast<float>(1 / std::sqrt(static_cast<double>(Dk_)));
    for (int64_t at = 0; at < count; ++at) {
      HeadInputs x;
      if (token + at < chain.pending) {
        x.k = pending_of(state_.pending_k, chain.src, token + at, head);
        x.q = x.k;  // any: nobody wants the output
        x.v = pending_of(state_.pending_v, chain.src, token + at, head);
      } else {
        x = inputs_.at(chain.row_of(token + at), head, scratch);
      }
      kernels_.pack(x.k, x.q, scale, static_cast<int>(Dk_), static_cast<int>(count),
                    scratch.kq + at * 2 * kLightningRows);
      std::memcpy(scratch.v + at * Dv_ + column, x.v + column, columns * sizeof(float));
    }
    const LightningChunk chunk{.tokens = static_cast<int>(count),
                               .certain = static_cast<int>(certain),
                               .Dk = static_cast<int>(Dk_),
                               .Dv = static_cast<int>(Dv_),
                               .kq = scratch.kq,
                               .v = scratch.v,
                               .decay = decay,
                               .o = scratch.o};
    kernels_.run(chunk, static_cast<int>(column), static_cast<int>(columns), from < 0 ? nullptr : S(from, head),
                 S(to, head));
    for (int64_t at = std::clamp<int64_t>(chain.pending - token, 0, count); at < count; ++at)
      std::memcpy(out_of(chain.row_of(token + at), head) + column, scratch.o + at * Dv_ + column,
                  columns * sizeof(float));
  }

  // The drafts become the pending inputs of the last segment's slot. All old ones have been folded.
  void write_pending(const Chain& chain, int64_t head, ThreadScratch& scratch) const {
    if (!chain.live) return;
    const int32_t dst = batch_.state_dst.as<int32_t>()[chain.segment_end - 1];
    for (int64_t at = 0; at < chain.drafts; ++at) {
      const HeadInputs x = inputs_.at(chain.row_of(chain.certain() + at), head, scratch);
      std::memcpy(pending_of(state_.pending_k, dst, at, head), x.k, Dk_ * sizeof(float));
      std::memcpy(pending_of(state_.pending_v, dst, at, head), x.v, Dv_ * sizeof(float));
    }
  }

  static float* pending_of(const Tensor& pending, int64_t slot, int64_t index, int64_t head) {
    return pending.as<float>() + slot * pending.stride(0) + index * pending.stride(1) + head * pending.stride(2);
  }
  float* S(int32_t slot, int64_t head) const {
    return state_.S.as<float>() + slot * state_.S.stride(0) + head * state_.S.stride(1);
  }
  float* out_of(int64_t row, int64_t head) const { return out_ + (row * H_ + head) * Dv_; }

  const LightningKernels& kernels_;
  const Inputs& inputs_;
  const Tensor& slope_;
  LightningState& state_;
  const Tensor& accepted_;
  const Batch& batch_;
  float* out_;
  const int64_t H_, Dk_, Dv_;
};

}  // namespace

size_t CpuBackend::lightning_bytes(int threads) { return static_cast<size_t>(threads) * sizeof(ThreadScratch); }

void CpuBackend::lightning_attention(ExecContext& ctx, const Tensor& q, const Tensor& k, const Tensor& v,
                                     const Tensor& slope, LightningState& state, const Tensor& accepted,
                                     const Batch& batch, DType activations, Tensor& out) {
  if (!supported(state)) {
    note_slow("lightning_attention", "head_dim of a multiple of 16 up to 256");
    return ReferenceBackend::lightning_attention(ctx, q, k, v, slope, state, accepted, batch, activations, out);
  }
  const GivenInputs inputs{q, k, v};
  LightningRun<GivenInputs>(lightning_, inputs, slope, state, accepted, batch, out.as<float>())
      .on(pool_, static_cast<ThreadScratch*>(lightning_scratch_.data()));
}

void CpuBackend::lightning_mixer(ExecContext& ctx, const Tensor& qkv, const Tensor& gate,
                                 const ops::LightningWeights& weights, const Tensor& table, LightningState& state,
                                 const Tensor& accepted, const Batch& batch, Tensor& out) {
  if (ctx.taps != nullptr || !supported(state))
    return Backend::lightning_mixer(ctx, qkv, gate, weights, table, state, accepted, batch, out);
  const size_t mark = ctx.workspace.mark();
  const Tensor o = ctx.workspace.alloc(DType::kF32, out.shape());
  if (!ctx.dry_run) {
    const int64_t T = out.size(0), groups = weights.norm_groups, width = out.size(1) / groups;
    const MixerInputs inputs{dense_, qkv, weights, table, state.S.size(1), state.S.size(2)};
    LightningRun<MixerInputs>(lightning_, inputs, weights.slope, state, accepted, batch, o.as<float>())
        .on(pool_, static_cast<ThreadScratch*>(lightning_scratch_.data()));
    const auto norm = dense_.gated_rms_norm[0][out.dtype() == DType::kBF16];
    for_each_row(pool_, T * groups, 2 * width, [&](int64_t i) {
      const int64_t t = i / groups, at = i % groups * width;
      norm(o.as<float>() + i * width, gate.as<float>() + t * gate.stride(0) + at, weights.g_norm.as<float>() + at,
           weights.eps, false, out.bytes_at(i * width), width);
    });
  }
  ctx.workspace.release(mark);
}

}  // namespace calandra

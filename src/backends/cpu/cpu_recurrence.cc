// Recurrences of CpuBackend: the convolution, the gated delta rule and the mixer around it. A task is a key head of a
// sequence, or a part of one when there are fewer key heads than keep the threads busy.
#include "backends/cpu/cpu_backend.h"
#include "backends/cpu/delta_group.h"
#include "backends/cpu/row_split.h"

namespace calandra {
namespace {

constexpr int64_t kConvTile = 256;  // channels of a task

bool is_bf16(const Tensor& x) { return x.dtype() == DType::kBF16; }

bool supported(const DeltaState& state) {
  const int64_t Hv = state.S.size(1), Dk = state.S.size(2), Dv = state.S.size(3);
  return Dk % 16 == 0 && Dv % 16 == 0 && Dk <= kMaxDeltaDim && Dv <= kMaxDeltaDim &&
         Hv / state.pending_k.size(2) <= kMaxValueHeads && state.pending_k.size(1) <= kDeltaChunk;
}

// Parts of a key head: heads one by one, then blocks of 32 columns, until the long sequences fill the threads.
struct Split {
  int64_t heads = 1;    // parts by value head
  int64_t columns = 1;  // parts of a head's columns
  int64_t parts() const { return heads * columns; }
};
Split split_for(const DeltaJob& job, int threads) {
  const int64_t long_ones = long_sequences(job.batch), blocks = std::max<int64_t>(1, job.Dv / 32);
  Split split;
  for (const Split& finer :
       {Split{1, 1}, Split{job.heads, 1}, Split{job.heads, std::min<int64_t>(2, blocks)}, Split{job.heads, blocks}}) {
    split = finer;
    if (keep_busy(long_ones * job.Hk * split.parts(), threads)) break;
  }
  return split;
}

DeltaPart part_of(const DeltaJob& job, const Split& split, int64_t index) {
  const int64_t h = index / split.columns, c = index % split.columns, blocks = job.Dv / 16;
  return {.head = split.heads == 1 ? 0 : h,
          .head_end = split.heads == 1 ? job.heads : h + 1,
          .column = 16 * (blocks * c / split.columns),
          .column_end = 16 * (blocks * (c + 1) / split.columns)};
}

void run_delta(ThreadPool& pool, const DeltaJob& job, const Tensor& accepted, RecurrenceScratch* scratch) {
  const Split split = split_for(job, pool.threads());
  const int64_t parts = split.parts(), heads = job.batch.sequences() * job.Hk;
  for_each_task(pool, heads * parts, [&](int64_t task, int thread) {
    const Chain chain = chain_of(job.batch, accepted, task / parts / job.Hk);
    DeltaGroup group(job, chain, task / parts % job.Hk, scratch[thread]);
    group.run(part_of(job, split, task % parts), parts == 1);
  });
  if (parts == 1) return;
  // What needs all parts of a key head: the norm over a head, and writing what all parts read.
  for_each_task(pool, heads, [&](int64_t task, int thread) {
    const Chain chain = chain_of(job.batch, accepted, task / job.Hk);
    DeltaGroup(job, chain, task % job.Hk, scratch[thread]).finish(split.columns > 1);
  });
}

}  // namespace

size_t CpuBackend::recurrence_bytes(int threads) { return static_cast<size_t>(threads) * sizeof(RecurrenceScratch); }

void CpuBackend::causal_conv1d_silu(ExecContext& ctx, const Tensor& x, const Tensor& weight, ConvState& state,
                                    const Tensor& accepted, const Batch& batch, Tensor& out) {
  const int64_t C = weight.size(0), W = weight.size(1), tiles = (C + kConvTile - 1) / kConvTile;
  if (W > kMaxConvKernel) {
    note_slow("causal_conv1d_silu", "linear_conv_kernel_dim up to 8");
    return ReferenceBackend::causal_conv1d_silu(ctx, x, weight, state, accepted, batch, out);
  }
  auto* scratch = static_cast<RecurrenceScratch*>(recurrence_scratch_.data());
  for_each_task(pool_, batch.sequences() * tiles, [&](int64_t task, int thread) {
    const Chain chain = chain_of(batch, accepted, task / tiles);
    const int64_t first = task % tiles * kConvTile, count = std::min(kConvTile, C - first);
    if (!chain.live) {
      for (int64_t row = chain.row; row < chain.row + chain.rows; ++row)
        std::memset(out.bytes_at(row * C + first), 0, count * size_of(out.dtype()));
      return;
    }
    const ConvChannels channels(x, state, chain, first, count, scratch[thread].window);
    transpose_conv_weight(weight.as<float>() + first * W, count, W, count, scratch[thread].conv_weight);
    for (int64_t row = chain.row; row < chain.row + chain.rows; ++row) {
      const void* taps[kMaxConvKernel];
      channels.taps(row - chain.row + chain.pending, taps);
      recurrence_.conv_silu(taps, is_bf16(x), static_cast<int>(W), scratch[thread].conv_weight, count,
                            static_cast<int>(count), out.bytes_at(row * C + first));
    }
    channels.write(batch);
  });
}

void CpuBackend::log_decay(ExecContext&, const Tensor& a, const Tensor& A_log, const Tensor& dt_bias, Tensor& out) {
  const int64_t Hv = a.size(1);
  for_each_row(pool_, a.size(0), Hv, [&](int64_t row) {
    recurrence_.log_decay(a.bytes_at(row * a.stride(0)), is_bf16(a), A_log.as<float>(), dt_bias.as<float>(),
                          static_cast<int>(Hv), out.as<float>() + row * Hv);
  });
}

void CpuBackend::l2_norm(ExecContext& ctx, const Tensor& x, Tensor& out) {
  const int64_t H = x.size(1), D = x.size(2);
  if (D % 16 != 0) return ReferenceBackend::l2_norm(ctx, x, out);
  for_each_row(pool_, x.size(0), H * D, [&](int64_t row) {
    for (int64_t h = 0; h < H; ++h)
      recurrence_.l2_norm(x.bytes_at(row * x.stride(0) + h * x.stride(1)), is_bf16(x), static_cast<int>(D), 1.0f,
                          out.as<float>() + (row * H + h) * D);
  });
}

void CpuBackend::gated_delta_rule(ExecContext& ctx, const Tensor& q, const Tensor& k, const Tensor& v, const Tensor& g,
                                  const Tensor& beta, DeltaState& state, const Tensor& accepted, const Batch& batch,
                                  Tensor& out) {
  if (ctx.dry_run) return;
  if (!supported(state)) {
    note_slow("gated_delta_rule", "linear head dims of multiples of 16 up to 256, up to 8 value heads per key head");
    return ReferenceBackend::gated_delta_rule(ctx, q, k, v, g, beta, state, accepted, batch, out);
  }
  const DeltaJob job{.kernels = recurrence_,
                     .dense = dense_,
                     .batch = batch,
                     .state = state,
                     .out = out,
                     .Hk = k.size(1),
                     .heads = v.size(1) / k.size(1),
                     .Dk = k.size(2),
                     .Dv = v.size(2),
                     .rule = DeltaJob::Rule{q, k, v, g, beta},
                     .mixer = std::nullopt};
  run_delta(pool_, job, accepted, static_cast<RecurrenceScratch*>(recurrence_scratch_.data()));
}

void CpuBackend::gated_delta_mixer(ExecContext& ctx, const Tensor& qkv, const Tensor& z, const Tensor& b,
                                   const Tensor& a, const ops::GatedDeltaWeights& weights, ConvState& conv,
                                   DeltaState& delta, const Tensor& accepted, const Batch& batch, Tensor& out) {
  if (ctx.taps != nullptr || !supported(delta) || weights.conv1d.size(1) > kMaxConvKernel)
    return Backend::gated_delta_mixer(ctx, qkv, z, b, a, weights, conv, delta, accepted, batch, out);
  if (ctx.dry_run) return;
  const int64_t Hk = delta.pending_k.size(2);
  const DeltaJob job{.kernels = recurrence_,
                     .dense = dense_,
                     .batch = batch,
                     .state = delta,
                     .out = out,
                     .Hk = Hk,
                     .heads = delta.S.size(1) / Hk,
                     .Dk = delta.S.size(2),
                     .Dv = delta.S.size(3),
                     .rule = std::nullopt,
                     .mixer = DeltaJob::Mixer{qkv, z, b, a, weights, conv}};
  run_delta(pool_, job, accepted, static_cast<RecurrenceScratch*>(recurrence_scratch_.data()));
}

}  // namespace calandra

#include "backends/cpu/delta_group.h"

#include <cmath>

namespace calandra {
namespace {

// Rows of tensors [slots, M, ...] and [T, ...] in elements.
float* pending_of(const Tensor& pending, int64_t slot, int64_t index, int64_t head) {
  const int64_t at = slot * pending.stride(0) + index * pending.stride(1) + head * pending.stride(2);
  return reinterpret_cast<float*>(pending.bytes_at(at));
}

}  // namespace

DeltaGroup::DeltaGroup(const DeltaJob& job, const Chain& chain, int64_t key_head, RecurrenceScratch& scratch)
    : job_(job), chain_(chain), key_head_(key_head), scratch_(scratch) {
  if (!job.mixer || !chain.live) return;
  const DeltaJob::Mixer& mixer = *job.mixer;
  const int64_t Dk = job.Dk, values = job.heads * job.Dv, W = mixer.weights.conv1d.size(1), channels = 2 * Dk + values;
  const int64_t first[] = {key_head * Dk, (job.Hk + key_head) * Dk, 2 * job.Hk * Dk + key_head * values};
  const int64_t window_bytes = (W - 1) * static_cast<int64_t>(size_of(mixer.qkv.dtype()));
  q_.emplace(mixer.qkv, mixer.conv, chain, first[0], Dk, scratch.window);
  k_.emplace(mixer.qkv, mixer.conv, chain, first[1], Dk, scratch.window + window_bytes * Dk);
  v_.emplace(mixer.qkv, mixer.conv, chain, first[2], values, scratch.window + window_bytes * 2 * Dk);
  const float* weight = mixer.weights.conv1d.as<float>();
  transpose_conv_weight(weight + first[0] * W, Dk, W, channels, scratch.conv_weight);
  transpose_conv_weight(weight + first[1] * W, Dk, W, channels, scratch.conv_weight + Dk);
  transpose_conv_weight(weight + first[2] * W, values, W, channels, scratch.conv_weight + 2 * Dk);
}

float* DeltaGroup::S(int32_t slot, int64_t head) const {
  const Tensor& S = job_.state.S;
  return S.as<float>() + slot * S.stride(0) + (key_head_ * job_.heads + head) * S.stride(1);
}

std::byte* DeltaGroup::out_of(int64_t row, int64_t head) const {
  return job_.out.bytes_at(row * job_.out.stride(0) + (key_head_ * job_.heads + head) * job_.Dv);
}

void DeltaGroup::run(const DeltaPart& part, bool whole) {
  const bool all_columns = part.column == 0 && part.column_end == job_.Dv;
  if (!chain_.live) {
    if (part.column != 0) return;
    const size_t bytes = static_cast<size_t>((part.head_end - part.head) * job_.Dv) * size_of(job_.out.dtype());
    for (int64_t row = chain_.row; row < chain_.row + chain_.rows; ++row) std::memset(out_of(row, part.head), 0, bytes);
    return;
  }
  int64_t token = 0;
  int32_t slot = chain_.src;
  for (int64_t s = chain_.segment_begin; s < chain_.segment_end; ++s) {
    const int32_t dst = job_.batch.state_dst.as<int32_t>()[s];
    const int64_t end = chain_.segment_tokens(job_.batch, s);
    if (token == end && slot != dst) copy_state(part, slot, dst);
    while (token < end) {
      const int64_t count = std::min<int64_t>(kDeltaChunk, end - token);
      prepare(token, count, part);
      run_chunk(token, count, part, slot, dst);
      token += count;
      slot = dst;
    }
    slot = dst;
  }
  // Drafts, from the state that is now in dst; at most one chunk of them.
  const int64_t end = token + chain_.drafts;
  if (token < end) {
    prepare(token, end - token, part);
    run_chunk(token, end - token, part, slot, -1);
    if (whole) write_pending();
  }
  if (job_.mixer && all_columns) gated_norm(chain_.row, chain_.rows, part);
  if (job_.mixer && whole)
    for (const auto* channels : {&*q_, &*k_, &*v_}) channels->write(job_.batch);
}

void DeltaGroup::finish(bool norm) {
  if (!chain_.live) return;
  if (chain_.drafts > 0) {
    prepare(chain_.certain(), chain_.drafts, all());
    write_pending();
  }
  if (!job_.mixer) return;
  if (norm) gated_norm(chain_.row, chain_.rows, all());
  for (const auto* channels : {&*q_, &*k_, &*v_}) channels->write(job_.batch);
}

void DeltaGroup::prepare(int64_t token, int64_t count, const DeltaPart& part) {
  for (int64_t at = 0; at < count; ++at) {
    if (token + at < chain_.pending)
      prepare_pending(token + at, at, part);
    else if (job_.mixer)
      prepare_mixer(token + at, at, part);
    else
      prepare_rule(token + at, at, part);
  }
  for (int64_t h = part.head; h < part.head_end; ++h)
    job_.kernels.exp(scratch_.g + h * kDeltaChunk, static_cast<int>(count), scratch_.decay + h * kDeltaChunk);
}

void DeltaGroup::prepare_pending(int64_t token, int64_t at, const DeltaPart& part) {
  const int64_t Dk = job_.Dk, Dv = job_.Dv;
  std::memset(scratch_.q + at * Dk, 0, Dk * sizeof(float));  // no output
  std::memcpy(scratch_.k + at * Dk, pending_of(job_.state.pending_k, chain_.src, token, key_head_), Dk * sizeof(float));
  for (int64_t h = part.head; h < part.head_end; ++h) {
    const int64_t head = key_head_ * job_.heads + h;
    std::memcpy(scratch_.v + (at * job_.heads + h) * Dv, pending_of(job_.state.pending_v, chain_.src, token, head),
                Dv * sizeof(float));
    scratch_.g[h * kDeltaChunk + at] = *pending_of(job_.state.pending_g, chain_.src, token, head);
    scratch_.beta[h * kDeltaChunk + at] = *pending_of(job_.state.pending_beta, chain_.src, token, head);
  }
}

void DeltaGroup::prepare_rule(int64_t token, int64_t at, const DeltaPart& part) {
  const DeltaJob::Rule& x = *job_.rule;
  const int64_t row = chain_.row_of(token);
  const int Dk = static_cast<int>(job_.Dk), Dv = static_cast<int>(job_.Dv);
  const float scale = 1.0f / std::sqrt(static_cast<float>(Dk));
  const auto of = [&](const Tensor& t, int64_t head) { return t.bytes_at(row * t.stride(0) + head * t.stride(1)); };
  job_.kernels.l2_norm(of(x.q, key_head_), job_.bf16(), Dk, scale, scratch_.q + at * Dk);
  job_.kernels.l2_norm(of(x.k, key_head_), job_.bf16(), Dk, 1.0f, scratch_.k + at * Dk);
  for (int64_t h = part.head; h < part.head_end; ++h) {
    const int64_t head = key_head_ * job_.heads + h;
    job_.kernels.widen(of(x.v, head), job_.bf16(), Dv, scratch_.v + (at * job_.heads + h) * Dv);
    scratch_.g[h * kDeltaChunk + at] = x.g.as<float>()[row * x.g.stride(0) + head];
    scratch_.beta[h * kDeltaChunk + at] = x.beta.as<float>()[row * x.beta.stride(0) + head];
  }
}

void DeltaGroup::prepare_mixer(int64_t token, int64_t at, const DeltaPart& part) {
  const DeltaJob::Mixer& x = *job_.mixer;
  const int64_t row = chain_.row_of(token), channels = 2 * job_.Dk + job_.heads * job_.Dv;
  const int Dk = static_cast<int>(job_.Dk), Dv = static_cast<int>(job_.Dv),
            W = static_cast<int>(x.weights.conv1d.size(1));
  const bool bf16 = job_.bf16();
  const float scale = 1.0f / std::sqrt(static_cast<float>(Dk));
  // Channels [first, first + count) of the group, convolved.
  const auto convolved = [&](const ConvChannels& inputs, int64_t first, int64_t skip, int64_t count) {
    const void* taps[kMaxConvKernel];
    inputs.taps(token, taps);
    const int64_t element = static_cast<int64_t>(size_of(x.qkv.dtype()));
    for (int j = 0; j < W; ++j) taps[j] = static_cast<const std::byte*>(taps[j]) + skip * element;
    std::byte* y = scratch_.conv_out + first * element;
    job_.kernels.conv_silu(taps, bf16, W, scratch_.conv_weight + first, channels, static_cast<int>(count), y);
    return y;
  };
  job_.kernels.l2_norm(convolved(*q_, 0, 0, Dk), bf16, Dk, scale, scratch_.q + at * Dk);
  job_.kernels.l2_norm(convolved(*k_, Dk, 0, Dk), bf16, Dk, 1.0f, scratch_.k + at * Dk);
  const int heads = static_cast<int>(part.head_end - part.head);
  const int64_t values = heads * Dv, first_value = part.head * Dv, head = key_head_ * job_.heads + part.head;
  job_.kernels.widen(convolved(*v_, 2 * Dk + first_value, first_value, values), bf16, static_cast<int>(values),
                     scratch_.v + at * job_.heads * Dv + first_value);

  float g[kMaxValueHeads], beta[kMaxValueHeads];
  job_.kernels.log_decay(x.a.bytes_at(row * x.a.stride(0) + head), bf16, x.weights.A_log.as<float>() + head,
                         x.weights.dt_bias.as<float>() + head, heads, g);
  job_.kernels.sigmoid(x.b.bytes_at(row * x.b.stride(0) + head), bf16, heads, beta);
  for (int h = 0; h < heads; ++h) {
    scratch_.g[(part.head + h) * kDeltaChunk + at] = g[h];
    scratch_.beta[(part.head + h) * kDeltaChunk + at] = beta[h];
  }
}

// The prepared tokens through the state of slot `from` (-1: empty) into slot `to` (-1: dropped).
void DeltaGroup::run_chunk(int64_t token, int64_t count, const DeltaPart& part, int32_t from, int32_t to) {
  const int64_t silent = std::clamp<int64_t>(chain_.pending - token, 0, count);
  for (int64_t h = part.head; h < part.head_end; ++h) {
    const DeltaChunk chunk{.tokens = static_cast<int>(count),
                           .Dk = static_cast<int>(job_.Dk),
                           .q = scratch_.q,
                           .k = scratch_.k,
                           .v = scratch_.v + h * job_.Dv,
                           .v_stride = job_.heads * job_.Dv,
                           .decay = scratch_.decay + h * kDeltaChunk,
                           .beta = scratch_.beta + h * kDeltaChunk,
                           .silent = static_cast<int>(silent),
                           .out = silent == count ? nullptr : out_of(chain_.row_of(token + silent), h),
                           .out_stride = job_.out.stride(0),
                           .bf16 = job_.bf16()};
    job_.kernels.delta(chunk, static_cast<int>(job_.Dv), static_cast<int>(part.column),
                       static_cast<int>(part.column_end - part.column), from < 0 ? nullptr : S(from, h),
                       to < 0 ? nullptr : S(to, h), scratch_.S);
  }
}

// The prepared drafts become the pending inputs of the last segment's slot. All old ones have been folded.
void DeltaGroup::write_pending() {
  const int32_t dst = job_.batch.state_dst.as<int32_t>()[chain_.segment_end - 1];
  const int64_t Dk = job_.Dk, Dv = job_.Dv;
  for (int64_t at = 0; at < chain_.drafts; ++at) {
    std::memcpy(pending_of(job_.state.pending_k, dst, at, key_head_), scratch_.k + at * Dk, Dk * sizeof(float));
    for (int64_t h = 0; h < job_.heads; ++h) {
      const int64_t head = key_head_ * job_.heads + h;
      std::memcpy(pending_of(job_.state.pending_v, dst, at, head), scratch_.v + (at * job_.heads + h) * Dv,
                  Dv * sizeof(float));
      *pending_of(job_.state.pending_g, dst, at, head) = scratch_.g[h * kDeltaChunk + at];
      *pending_of(job_.state.pending_beta, dst, at, head) = scratch_.beta[h * kDeltaChunk + at];
    }
  }
}

// In place: the outputs of the rule stand in `out`, rounded as the rule returns them.
void DeltaGroup::gated_norm(int64_t row, int64_t rows, const DeltaPart& part) {
  const DeltaJob::Mixer& x = *job_.mixer;
  const auto kernel = job_.dense.gated_rms_norm[job_.bf16()][job_.bf16()];
  const bool silu = x.weights.gate == ops::GateActivation::kSilu;
  for (int64_t t = row; t < row + rows; ++t)
    for (int64_t h = part.head; h < part.head_end; ++h)
      kernel(out_of(t, h), x.z.bytes_at(t * x.z.stride(0) + (key_head_ * job_.heads + h) * job_.Dv),
             x.weights.norm.as<float>(), x.weights.eps, silu, out_of(t, h), job_.Dv);
}

void DeltaGroup::copy_state(const DeltaPart& part, int32_t from, int32_t to) {
  const size_t bytes = static_cast<size_t>(part.column_end - part.column) * sizeof(float);
  for (int64_t h = part.head; h < part.head_end; ++h)
    for (int64_t i = 0; i < job_.Dk; ++i) {
      float* row = S(to, h) + i * job_.Dv + part.column;
      if (from < 0)
        std::memset(row, 0, bytes);
      else
        std::memcpy(row, S(from, h) + i * job_.Dv + part.column, bytes);
    }
}

}  // namespace calandra

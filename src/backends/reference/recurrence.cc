// Causal convolution and the gated delta rule with exact state (ops/recurrence.h).
#include <algorithm>
#include <cmath>
#include <cstring>

#include "backends/reference/reference.h"
#include "backends/reference/rows.h"
#include "backends/reference/segments.h"

namespace calandra {

using namespace reference;

namespace {

// y = x / sqrt(sum(x^2) + 1e-6), the factor rounded to f32.
void normalise_l2(std::span<float> x) {
  double sum = 0;
  for (float value : x) sum += double(value) * value;
  const float scale = static_cast<float>(1 / std::sqrt(sum + 1e-6));
  for (float& value : x) value *= scale;
}

void normalise_heads(std::vector<float>& row, int64_t D) {
  for (size_t begin = 0; begin < row.size(); begin += D) normalise_l2({&row[begin], static_cast<size_t>(D)});
}

// One head of the delta rule. All of it in f32, in the order written here.
struct DeltaHead {
  int64_t Dk, Dv;
  std::vector<float> S;  // [Dk, Dv]

  // S <- exp(g) S;   S <- S + k (beta (v - S^T k))^T
  void update(const float* k, const float* v, float g, float beta) {
    const float decay = static_cast<float>(std::exp(double(g)));
    for (float& value : S) value *= decay;
    const std::vector<float> seen = read(k);
    std::vector<float> delta(Dv);
    for (int64_t j = 0; j < Dv; ++j) delta[j] = beta * (v[j] - seen[j]);
    for (int64_t i = 0; i < Dk; ++i)
      for (int64_t j = 0; j < Dv; ++j) S[i * Dv + j] += k[i] * delta[j];
  }

  // S^T x
  std::vector<float> read(const float* x) const {
    std::vector<float> sum(Dv);
    for (int64_t i = 0; i < Dk; ++i)
      for (int64_t j = 0; j < Dv; ++j) sum[j] += S[i * Dv + j] * x[i];
    return sum;
  }
};

}  // namespace

void ReferenceBackend::causal_conv1d_silu(ExecContext&, const Tensor& x, const Tensor& weight, ConvState& state,
                                          const Tensor& accepted, const Batch& batch, Tensor& out) {
  const int64_t C = x.size(1), W = weight.size(1);
  const float* w = weight.as<float>();
  const auto run = [&](const Segment& segment) {
    // Raw inputs: the window, the accepted pending columns, then the rows of the segment.
    std::vector<std::vector<float>> inputs;
    for (int64_t j = 0; j < W - 1; ++j)
      inputs.push_back(segment.src >= 0 ? load_row(state.window[segment.src], j) : std::vector<float>(C));
    for (int64_t j = 0; j < segment.folded; ++j) inputs.push_back(load_row(state.pending[segment.src], j));
    const int64_t before = static_cast<int64_t>(inputs.size());
    for (int64_t t = segment.begin; t < segment.end; ++t) inputs.push_back(load_row(x, t));

    std::vector<float> y(C);
    for (int64_t t = segment.begin; t < segment.end; ++t) {
      const std::vector<float>* oldest = &inputs[before + t - segment.begin - (W - 1)];
      for (int64_t c = 0; c < C; ++c) {
        double sum = 0;
        for (int64_t j = 0; j < W; ++j) sum += double(w[c * W + j]) * oldest[j][c];
        y[c] = static_cast<float>(silu(sum));
      }
      store_row(y, out, t);
    }
    Tensor window = state.window[segment.dst], pending = state.pending[segment.dst];
    const int64_t certain = before + segment.drafts_begin - segment.begin;
    for (int64_t j = 0; j < W - 1; ++j) store_row(inputs[certain - (W - 1) + j], window, j);
    for (int64_t t = segment.drafts_begin; t < segment.end; ++t) copy_row(x, t, pending, t - segment.drafts_begin);
  };
  for_each_segment(batch, accepted, run, [&](int64_t t) { zero_row(out, t); });
}

void ReferenceBackend::log_decay(ExecContext&, const Tensor& a, const Tensor& A_log, const Tensor& dt_bias,
                                 Tensor& out) {
  for (int64_t t = 0; t < a.size(0); ++t) {
    std::vector<float> row = load_row(a, t);
    for (size_t h = 0; h < row.size(); ++h) {
      const double x = row[h] + dt_bias.as<float>()[h];
      const double softplus = x > 20 ? x : std::log1p(std::exp(x));
      row[h] = static_cast<float>(-std::exp(double(A_log.as<float>()[h])) * softplus);
    }
    store_row(row, out, t);
  }
}

void ReferenceBackend::l2_norm(ExecContext&, const Tensor& x, Tensor& out) {
  for (int64_t t = 0; t < x.size(0); ++t) {
    std::vector<float> row = load_row(x, t);
    normalise_heads(row, x.size(2));
    store_row(row, out, t);
  }
}

void ReferenceBackend::gated_delta_rule(ExecContext& ctx, const Tensor& q, const Tensor& k, const Tensor& v,
                                        const Tensor& g, const Tensor& beta, DeltaState& state, const Tensor& accepted,
                                        const Batch& batch, Tensor& out) {
  if (ctx.dry_run) return;
  const int64_t Hk = q.size(1), Dk = q.size(2), Hv = v.size(1), Dv = v.size(2);
  const float output_scale = static_cast<float>(1 / std::sqrt(double(Dk)));
  const auto run = [&](const Segment& segment) {
    const int64_t rows = segment.end - segment.begin;
    std::vector<std::vector<float>> qs, ks, vs, os;  // per row
    for (int64_t t = segment.begin; t < segment.end; ++t) {
      qs.push_back(load_row(q, t));
      ks.push_back(load_row(k, t));
      vs.push_back(load_row(v, t));
      os.emplace_back(Hv * Dv);
      normalise_heads(qs.back(), Dk);
      normalise_heads(ks.back(), Dk);
    }
    for (int64_t h = 0; h < Hv; ++h) {
      const int64_t key_head = h / (Hv / Hk);
      DeltaHead head{Dk, Dv, std::vector<float>(Dk * Dv)};
      if (segment.src >= 0) head.S = load_row(state.S[segment.src], h);
      for (int64_t j = 0; j < segment.folded; ++j) {
        const Tensor pk = state.pending_k[segment.src][j], pv = state.pending_v[segment.src][j];
        head.update(pk.as<float>() + key_head * Dk, pv.as<float>() + h * Dv,
                    state.pending_g[segment.src][j].as<float>()[h], state.pending_beta[segment.src][j].as<float>()[h]);
      }
      Tensor S_dst = state.S[segment.dst];
      for (int64_t t = segment.begin; t <= segment.end; ++t) {
        if (t == segment.drafts_begin) store_row(head.S, S_dst, h);  // what follows are drafts
        if (t == segment.end) break;
        const int64_t r = t - segment.begin;
        head.update(&ks[r][key_head * Dk], &vs[r][h * Dv], g[t].as<float>()[h], beta[t].as<float>()[h]);
        const std::vector<float> o = head.read(&qs[r][key_head * Dk]);
        for (int64_t j = 0; j < Dv; ++j) os[r][h * Dv + j] = o[j] * output_scale;
      }
    }
    for (int64_t r = 0; r < rows; ++r) store_row(os[r], out, segment.begin + r);
    // After all heads: src may be dst, and value heads share pending keys.
    Tensor pk = state.pending_k[segment.dst], pv = state.pending_v[segment.dst];
    Tensor pg = state.pending_g[segment.dst], pbeta = state.pending_beta[segment.dst];
    for (int64_t t = segment.drafts_begin; t < segment.end; ++t) {
      const int64_t j = t - segment.drafts_begin;
      CHECK_LT(j, pk.size(0));
      store_row(ks[t - segment.begin], pk, j);
      store_row(vs[t - segment.begin], pv, j);
      copy_row(g, t, pg, j);
      copy_row(beta, t, pbeta, j);
    }
  };
  for_each_segment(batch, accepted, run, [&](int64_t t) { zero_row(out, t); });
}

void ReferenceBackend::commit_slots(ExecContext&, const Tensor& hidden, SlotCounts& slots, Tensor& ring,
                                    const Batch& batch) {
  int32_t* N = slots.N.as<int32_t>();
  const auto run = [&](const Segment& segment) {
    const int64_t certain = segment.drafts_begin - segment.begin;
    Tensor kept = slots.hidden[segment.dst];
    if (certain > 0)
      copy_row(hidden, segment.drafts_begin - 1, kept, 0);
    else if (segment.src >= 0)
      copy_row(slots.hidden[segment.src], segment.folded, kept, 0);
    else
      zero_row(kept, 0);  // no token stands before the drafts
    for (int64_t t = segment.drafts_begin; t < segment.end; ++t)
      copy_row(hidden, t, kept, 1 + t - segment.drafts_begin);
    const int64_t begin = segment.src >= 0 ? N[segment.src] : 0;
    N[segment.dst] = static_cast<int32_t>(begin + segment.folded + certain);
    slots.accepted.as<int32_t>()[segment.dst] = 0;
  };
  for_each_segment(batch, slots.accepted, run, [](int64_t) {});
  if (ring.empty()) return;
  const int64_t R = ring.size(1);
  for (int64_t t = 0; t < hidden.size(0); ++t) {
    const int32_t b = batch.row_sequence.as<int32_t>()[t], index = batch.token_index.as<int32_t>()[t];
    if (batch.active.as<int32_t>()[b] == 0 || index < batch.seq_len.as<int32_t>()[b] - R) continue;
    Tensor lane = ring[batch.lane.as<int32_t>()[b]];
    copy_row(hidden, t, lane, index % R);
  }
}

}  // namespace calandra

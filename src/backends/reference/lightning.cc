// Lightning attention with exact state (ops/lightning.h).
#include <cmath>

#include "backends/reference/reference.h"
#include "backends/reference/rows.h"
#include "backends/reference/segments.h"

namespace calandra {

using namespace reference;

namespace {

// One head, all of it in f32, in the order written here.
struct LightningHead {
  int64_t Dk, Dv;
  float decay;
  std::vector<float> S;  // [Dk, Dv]

  // S <- decay S + k v^T
  void update(const float* k, const float* v) {
    for (int64_t i = 0; i < Dk; ++i)
      for (int64_t j = 0; j < Dv; ++j) S[i * Dv + j] = S[i * Dv + j] * decay + k[i] * v[j];
  }
  // S^T q Dk^(-1/2)
  void read(const float* q, float* o) const {
    const float scale = static_cast<float>(1 / std::sqrt(double(Dk)));
    for (int64_t i = 0; i < Dk; ++i)
      for (int64_t j = 0; j < Dv; ++j) o[j] += S[i * Dv + j] * (q[i] * scale);
  }
};

}  // namespace

void ReferenceBackend::lightning_attention(ExecContext&, const Tensor& q, const Tensor& k, const Tensor& v,
                                           const Tensor& slope, LightningState& state, const Tensor& accepted,
                                           const Batch& batch, DType, Tensor& out) {
  const int64_t H = q.size(1), Dk = q.size(2), Dv = v.size(2);
  const auto run = [&](const Segment& segment) {
    const auto row = [](const Tensor& x, int64_t t) { return x[t].as<float>(); };
    for (int64_t t = segment.begin; t < segment.end; ++t) zero_row(out, t);
    Tensor S_dst = state.S[segment.dst];
    for (int64_t h = 0; h < H; ++h) {
      LightningHead head{Dk, Dv, static_cast<float>(std::exp(-double(slope.as<float>()[h]))),
                         std::vector<float>(Dk * Dv)};
      if (segment.src >= 0) head.S = load_row(state.S[segment.src], h);
      for (int64_t j = 0; j < segment.folded; ++j)
        head.update(row(state.pending_k[segment.src], j) + h * Dk, row(state.pending_v[segment.src], j) + h * Dv);
      for (int64_t t = segment.begin; t <= segment.end; ++t) {
        if (t == segment.drafts_begin) store_row(head.S, S_dst, h);  // what follows are drafts
        if (t == segment.end) break;
        head.update(row(k, t) + h * Dk, row(v, t) + h * Dv);
        head.read(row(q, t) + h * Dk, row(out, t) + h * Dv);
      }
    }
    // After all heads: src may be dst.
    Tensor pk = state.pending_k[segment.dst], pv = state.pending_v[segment.dst];
    for (int64_t t = segment.drafts_begin; t < segment.end; ++t) {
      CHECK_LT(t - segment.drafts_begin, pk.size(0));
      copy_row(k, t, pk, t - segment.drafts_begin);
      copy_row(v, t, pv, t - segment.drafts_begin);
    }
  };
  for_each_segment(batch, accepted, run, [&](int64_t t) { zero_row(out, t); });
}

}  // namespace calandra

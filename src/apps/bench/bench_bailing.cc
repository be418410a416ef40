// `calandra bench ops` for a Bailing (Ling, Ring) shape.
#include <fmt/format.h>

#include "apps/bench/op_bench.h"

namespace calandra::apps {
namespace {

// Many states in turn, as in a step of many layers, so that none is in a cache.
void bench_lightning(OpBench& bench, const bailing_v2_5::Config& c) {
  const int64_t H = c.num_attention_heads, D = c.head_dim, half = c.rope.rotary_dim / 2;
  const int64_t layers = c.num_hidden_layers - c.num_hidden_layers / c.layer_group_size;
  for (const int64_t rows : {1, 512}) {
    const std::string name = fmt::format("lightning_mixer rows {}", rows);
    if (!bench.wants(name)) continue;
    OperandMemory memory(bench.backend());
    std::vector<LightningState> states;
    for (int64_t i = 0; i < (rows == 1 ? layers : 1); ++i)
      states.push_back({memory.zeros(DType::kF32, {1, H, D, D}), memory.zeros(DType::kF32, {1, 0, H, D}),
                        memory.zeros(DType::kF32, {1, 0, H, D})});
    ops::LightningWeights weights;
    weights.q_norm = memory.random(DType::kF32, {D});
    weights.k_norm = memory.random(DType::kF32, {D});
    weights.g_norm = memory.random(DType::kF32, {H * D});
    weights.slope = memory.zeros(DType::kF32, {H});
    const std::vector<float> slopes(H, 0.1f);
    bench.backend().copy_bytes(weights.slope.data(), slopes.data(), slopes.size() * sizeof(float));
    weights.norm_groups = c.group_norm_size;
    const Tensor accepted = memory.ints({0}, {1}), table = memory.random(DType::kF32, {2, rows, half});
    const Tensor qkv = memory.random(DType::kF32, {rows, 3 * H * D}), gate = memory.random(DType::kF32, {rows, H * D});
    const Batch batch = one_sequence(memory, rows, 64);
    const double S = static_cast<double>(H * D * D) * static_cast<double>(states.size()), T = static_cast<double>(rows);
    bench.run(fmt::format("{}, {} layers", name, states.size()), &batch, {2 * 4 * S, 5 * S * T}, [&](ExecContext& ctx) {
      const size_t mark = ctx.workspace.mark();
      for (LightningState& state : states) {
        ops::lightning_mixer(ctx, qkv, gate, weights, table, state, accepted, batch, DType::kBF16);
        ctx.workspace.release(mark);
      }
    });
  }
}

// Absorbed.
void bench_latent(OpBench& bench, const bailing_v2_5::Config& c) {
  const int64_t H = c.num_attention_heads, L = c.kv_lora_rank, R = c.qk_rope_head_dim, Dn = c.qk_nope_head_dim,
                Dv = c.v_head_dim;
  const struct { int64_t rows, context; } cases[] = {{1, 4095}, {512, 0}};
  OperandMemory weights(bench.backend());
  ops::LatentUpProjection up;
  for (const auto& [rows, context] : cases) {
    const std::string name = fmt::format("latent_attention rows {} context {}", rows, context);
    if (!bench.wants(name)) continue;
    if (up.key.E == 0) up = {weights.experts(H, L, Dn), weights.experts(H, Dv, L)};
    OperandMemory memory(bench.backend());
    const Batch batch = one_sequence(memory, rows, context);
    const int64_t count = batch.block_table.size(1);
    const LatentPages pages{memory.random(DType::kBF16, {count, 16, L}), memory.random(DType::kBF16, {count, 16, R})};
    const Tensor q_nope = memory.random(DType::kBF16, {rows, H, Dn}), q_pe = memory.random(DType::kBF16, {rows, H, R});
    const auto T = static_cast<double>(rows), C = static_cast<double>(context), heads = static_cast<double>(H);
    const double keys = T * C + T * (T + 1) / 2, projections = heads * static_cast<double>(L * (Dn + Dv));
    bench.run(name, &batch,
              {2 * (projections + (C + T) * static_cast<double>(L + R)),
               2 * (T * projections + heads * keys * static_cast<double>(2 * L + R))},
              [&](ExecContext& ctx) { ops::latent_attention(ctx, q_nope, q_pe, up, pages, batch, 0.07f); });
  }
}

}  // namespace

void bench_bailing(OpBench& bench, const bailing_v2_5::Config& c) {
  const int64_t D = c.hidden_size, width = c.num_attention_heads * c.head_dim;
  bench_linear(bench, "query_key_value and g_proj", 4 * width, D);
  bench_linear(bench, "dense", D, width);
  bench_linear(bench, "gate_up", 2 * c.intermediate_size, D);
  bench_linear(bench, "down", D, c.intermediate_size);
  bench_head(bench, c.vocab_size, D);
  bench_lightning(bench, c);
  if (c.full_attention == bailing_v2_5::FullAttention::kLatent)
    bench_latent(bench, c);
  else
    bench_attention(bench, c.num_attention_heads, c.num_key_value_heads, c.head_dim);
  bench_norm(bench, D);
  bench_sampler(bench, c.vocab_size);
  bench_mixture(bench, {D, c.num_experts, c.moe_intermediate_size, c.shared_intermediate_size}, c.router);
}

}  // namespace calandra::apps

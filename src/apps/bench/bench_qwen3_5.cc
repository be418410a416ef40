// `calandra bench ops` for a Qwen3.5 shape.
#include <fmt/format.h>

#include "apps/bench/op_bench.h"

namespace calandra::apps {
namespace {

void bench_delta(OpBench& bench, const qwen3_5::Config& c) {
  const int64_t Hk = c.linear_num_key_heads, Hv = c.linear_num_value_heads, Dk = c.linear_key_head_dim,
                Dv = c.linear_value_head_dim;
  const int64_t C = c.conv_dim(), W = c.linear_conv_kernel_dim;
  for (const int64_t rows : {1, 5, 512}) {
    OperandMemory memory(bench.backend());
    ConvState conv{memory.zeros(DType::kBF16, {1, W - 1, C}), memory.zeros(DType::kBF16, {1, 0, C})};
    DeltaState delta{memory.zeros(DType::kF32, {1, Hv, Dk, Dv}), memory.zeros(DType::kF32, {1, 0, Hk, Dk}),
                     memory.zeros(DType::kF32, {1, 0, Hv, Dv}), memory.zeros(DType::kF32, {1, 0, Hv}),
                     memory.zeros(DType::kF32, {1, 0, Hv})};
    const Tensor accepted = memory.ints({0}, {1});
    ops::GatedDeltaWeights weights;
    weights.conv1d = memory.random(DType::kF32, {C, W});
    weights.A_log = memory.random(DType::kF32, {Hv});
    weights.dt_bias = memory.random(DType::kF32, {Hv});
    weights.norm = memory.random(DType::kF32, {Dv});
    const Tensor qkv = memory.random(DType::kBF16, {rows, C}), z = memory.random(DType::kBF16, {rows, Hv * Dv});
    const Tensor b = memory.random(DType::kBF16, {rows, Hv}), a = memory.random(DType::kBF16, {rows, Hv});
    const Batch batch = one_sequence(memory, rows, 64);
    const double S = static_cast<double>(Hv * Dk * Dv), T = static_cast<double>(rows);
    bench.run(fmt::format("gated_delta_mixer rows {}", rows), &batch, {2 * 4 * S, 7 * S * T}, [&](ExecContext& ctx) {
      ops::gated_delta_mixer(ctx, qkv, z, b, a, weights, conv, delta, accepted, batch);
    });
  }
}

// One block of the largest tower of the family, whatever the shape, on a picture of 4096 patches.
void bench_vision(OpBench& bench) {
  constexpr int64_t P = 4096, H = 16, Dh = 72, D = H * Dh, I = 4304;
  constexpr auto p = static_cast<double>(P), d = static_cast<double>(D), i = static_cast<double>(I);
  OperandMemory memory(bench.backend());
  const Tensor qkv = memory.random(DType::kBF16, {P, 3 * D}), x = memory.random(DType::kBF16, {P, D}),
               h = memory.random(DType::kBF16, {P, I}), w = memory.random(DType::kF32, {D}),
               segments = memory.ints({0, P}, {2});
  const auto heads = [&](int64_t part) { return qkv.slice(1, part * D, (part + 1) * D).view({P, H, Dh}); };
  bench.run(fmt::format("segment_attention patches {} heads {} of {}", P, H, Dh), nullptr, {8 * p * d, 4 * p * p * d},
            [&](ExecContext& ctx) { ops::segment_attention(ctx, heads(0), heads(1), heads(2), segments, 0.118f); });
  bench.run(fmt::format("gelu [{}, {}] tanh", P, I), nullptr, {4 * p * i, 0},
            [&](ExecContext& ctx) { ops::gelu(ctx, h, ops::GeluForm::kTanh); });
  bench.run(fmt::format("gelu [{}, {}] erf", P / 4, 4 * D), nullptr, {4 * p * d, 0}, [&](ExecContext& ctx) {
    ops::gelu(ctx, x.view({P / 4, 4 * D}), ops::GeluForm::kErf);
  });
  bench.run(fmt::format("layer_norm [{}, {}]", P, D), nullptr, {4 * p * d, 0},
            [&](ExecContext& ctx) { ops::layer_norm(ctx, x, w, w, 1e-6f); });
}

}  // namespace

void bench_qwen3_5(OpBench& bench, const qwen3_5::Config& c) {
  const int64_t D = c.hidden_size;
  bench_linear(bench, "in_proj", c.conv_dim() + c.value_dim() + 2 * c.linear_num_value_heads, D);
  bench_linear(bench, "out_proj", D, c.value_dim());
  bench_linear(bench, "qkv_proj", (2 * c.num_attention_heads + 2 * c.num_key_value_heads) * c.head_dim, D);
  bench_linear(bench, "o_proj", D, c.num_attention_heads * c.head_dim);
  if (c.num_experts == 0) {
    bench_linear(bench, "gate_up", 2 * c.intermediate_size, D);
    bench_linear(bench, "down", D, c.intermediate_size);
  }
  bench_head(bench, c.vocab_size, D);
  bench_delta(bench, c);
  bench_attention(bench, c.num_attention_heads, c.num_key_value_heads, c.head_dim);
  bench_norm(bench, D);
  bench_sampler(bench, c.vocab_size);
  if (c.num_experts > 0)
    bench_mixture(bench, {D, c.num_experts, c.moe_intermediate_size, c.shared_expert_intermediate_size, true},
                  c.router);
  bench_vision(bench);
}

}  // namespace calandra::apps

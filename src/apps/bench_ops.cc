// `calandra bench ops`: each op in a release's shape, alone, against the probes of the same run.
#include <fmt/format.h>

#include <chrono>
#include <cstdio>
#include <functional>
#include <limits>
#include <set>

#include "apps/loaded_model.h"
#include "apps/probe.h"
#include "apps/verbs.h"
#include "base/cpu_topology.h"
#include "models/qwen3_5/config.h"
#include "weights/dummy_weights.h"

namespace calandra::apps {
namespace {

// What an op must move and compute at least.
struct Cost {
  double bytes = 0;
  double flops = 0;
};

// Device memory for one bench, filled with small values.
class Memory {
 public:
  explicit Memory(Backend& backend) : backend_(backend) {}

  Tensor random(DType dtype, Shape shape) {
    Tensor t = zeros(dtype, shape);
    std::vector<float> values(t.numel());
    for (size_t i = 0; i < values.size(); ++i) values[i] = static_cast<float>(i * 2654435761u % 1000) / 1000.0f - 0.5f;
    std::vector<bf16> narrow(values.begin(), values.end());
    const void* from = dtype == DType::kBF16 ? static_cast<const void*>(narrow.data()) : values.data();
    backend_.copy_bytes(t.data(), from, t.bytes());
    return t;
  }
  Tensor zeros(DType dtype, Shape shape) {
    buffers_.push_back(backend_.allocate(std::max<size_t>(64, shape.numel() * size_of(dtype))));
    return buffers_.back().tensor(dtype, shape);
  }
  Tensor ints(const std::vector<int32_t>& values, Shape shape) {
    Tensor t = zeros(DType::kI32, shape);
    backend_.copy_bytes(t.data(), values.data(), values.size() * sizeof(int32_t));
    return t;
  }
  // bf16, or f8_e4m3 in blocks of 128 x 128.
  PackedWeight weight(int64_t N, int64_t K, DType dtype = DType::kBF16) {
    std::vector<std::byte> values(static_cast<size_t>(N * K) * size_of(dtype));
    const Fp8Blocks blocks;
    StoredMatrix host{Tensor(values.data(), dtype, {N, K})};
    fill_dummy(fmt::format("{}x{}", N, K), 0, host.values);
    const int64_t block_rows = (N + blocks.N - 1) / blocks.N, block_columns = (K + blocks.K - 1) / blocks.K;
    std::vector<float> scales(static_cast<size_t>(block_rows * block_columns), dummy_scale(K));
    if (dtype == DType::kF8E4M3)
      host = {host.values, Tensor(scales.data(), DType::kF32, {block_rows, block_columns}), blocks.N, blocks.K};
    buffers_.push_back(backend_.allocate(backend_.packed_bytes(host)));
    return backend_.pack_weight(host, static_cast<std::byte*>(buffers_.back().data()));
  }
  // E matrices with the same numbers, each in its own memory.
  GroupedWeight experts(int64_t E, int64_t N, int64_t K) {
    std::vector<bf16> values(N * K);
    Tensor host(values.data(), DType::kBF16, {N, K});
    fill_dummy(fmt::format("{}x{}", N, K), 0, host);
    const auto bytes = static_cast<int64_t>(backend_.packed_bytes({host}));
    const int64_t stride = (bytes + kWeightAlignment - 1) / kWeightAlignment * kWeightAlignment;
    const Tensor packed = zeros(DType::kU8, {E, stride});
    for (int64_t e = 0; e < E; ++e) backend_.pack_weight({host}, packed.bytes_at(e * stride));
    return {E, N, K, DType::kBF16, packed};
  }

 private:
  Backend& backend_;
  std::vector<Buffer> buffers_;
};

// One sequence of `rows` new rows after `context` tokens, in slot 0.
Batch one_sequence(Memory& memory, int64_t rows, int64_t context, int64_t page) {
  std::vector<int32_t> index(rows), positions(3 * rows), table((context + rows + page - 1) / page);
  for (int64_t i = 0; i < rows; ++i) {
    index[i] = static_cast<int32_t>(context + i);
    for (int axis = 0; axis < 3; ++axis) positions[axis * rows + i] = index[i];
  }
  for (size_t i = 0; i < table.size(); ++i) table[i] = static_cast<int32_t>(i);
  const auto T = static_cast<int32_t>(rows), L = static_cast<int32_t>(context + rows);
  Batch batch;
  batch.token_ids = memory.ints(std::vector<int32_t>(rows, 1), {rows});
  batch.token_index = memory.ints(index, {rows});
  batch.positions = memory.ints(positions, {3, rows});
  batch.row_sequence = memory.ints(std::vector<int32_t>(rows, 0), {rows});
  batch.query_start = memory.ints({0, T}, {2});
  batch.seq_len = memory.ints({L}, {1});
  batch.active = memory.ints({1}, {1});
  batch.block_table = memory.ints(table, {1, static_cast<int64_t>(table.size())});
  batch.draft_count = memory.ints({0}, {1});
  batch.segment_start = memory.ints({0, T}, {2});
  batch.segment_sequence = memory.ints({0}, {1});
  batch.state_src = memory.ints({0}, {1});
  batch.state_dst = memory.ints({0}, {1});
  batch.max_query_len = rows;
  batch.max_seq_len = context + rows;
  return batch;
}

class OpBench {
 public:
  OpBench(const Options& options, Backend& backend, MachineProbe probe)
      : options_(options), backend_(backend), probe_(probe) {}

  bool ran() const { return ran_; }
  bool wants(const std::string& name) const { return name.find(options_.filter) != std::string::npos; }

  // `op` must be the same computation each time; the workspace is measured by a dry run first.
  void run(const std::string& name, const Batch* batch, Cost cost, const std::function<void(ExecContext&)>& op) {
    if (!wants(name)) return;
    ran_ = true;
    OneRank one;
    Workspace measured;
    ExecContext dry{backend_, measured, one};
    dry.dry_run = true;
    if (batch != nullptr) backend_.plan(dry, *batch);
    op(dry);
    Workspace workspace(measured, backend_.allocate(measured.bytes()));
    ExecContext ctx{backend_, workspace, one};
    double best = std::numeric_limits<double>::infinity();
    for (int64_t repetition = 0; repetition < options_.repetitions; ++repetition) {
      workspace.reset();
      if (batch != nullptr) backend_.plan(ctx, *batch);
      const auto start = std::chrono::steady_clock::now();
      op(ctx);
      best = std::min(best, std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count());
    }
    // The roofline: the slower of moving the bytes and computing, at the rates of the probes.
    const double bound = std::max(cost.bytes / probe_.read_bytes_per_s, cost.flops / probe_.flops_per_s);
    if (options_.json) {
      std::puts(to_json(json::object{{"op", name},
                                     {"seconds", best},
                                     {"bytes_per_s", cost.bytes / best},
                                     {"flops_per_s", cost.flops / best},
                                     {"fraction_of_roofline", bound / best}})
                    .c_str());
    } else {
      fmt::print("  {:<44} {:>9.1f} us  {:>6.1f} GB/s  {:>6.1f} GFLOP/s  {:>4.0f} %\n", name, 1e6 * best,
                 cost.bytes / best / 1e9, cost.flops / best / 1e9, 100 * bound / best);
    }
  }

 private:
  const Options& options_;
  Backend& backend_;
  MachineProbe probe_;
  bool ran_ = false;
};

void bench_linear(OpBench& bench, Backend& backend, const char* what, int64_t N, int64_t K) {
  for (const DType dtype : {DType::kBF16, DType::kF8E4M3}) {
    const auto name = [&](int64_t rows) {
      return fmt::format("linear {}{} [{}, {}] rows {}", what, dtype == DType::kF8E4M3 ? " fp8" : "", N, K, rows);
    };
    constexpr int64_t kRows[] = {1, 4, 16, 512};
    if (std::none_of(std::begin(kRows), std::end(kRows), [&](int64_t rows) { return bench.wants(name(rows)); }))
      continue;
    Memory memory(backend);
    const LinearPack pack{memory.weight(N, K, dtype)};
    const auto bytes = static_cast<double>(pack.parts()[0].packed.bytes());  // of fp8 with its scales
    for (const int64_t rows : kRows) {
      const Tensor x = memory.random(DType::kBF16, {rows, K});
      const double flops = 2 * static_cast<double>(N) * static_cast<double>(K) * static_cast<double>(rows);
      bench.run(name(rows), nullptr, {bytes, flops}, [&](ExecContext& ctx) { ops::linear(ctx, x, pack); });
    }
  }
}

void bench_delta(OpBench& bench, Backend& backend, const qwen3_5::Config& c) {
  const int64_t Hk = c.linear_num_key_heads, Hv = c.linear_num_value_heads, Dk = c.linear_key_head_dim,
                Dv = c.linear_value_head_dim;
  const int64_t C = c.conv_dim(), W = c.linear_conv_kernel_dim;
  for (const int64_t rows : {1, 5, 512}) {
    Memory memory(backend);
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
    const Batch batch = one_sequence(memory, rows, 64, 16);
    const double S = static_cast<double>(Hv * Dk * Dv), T = static_cast<double>(rows);
    bench.run(fmt::format("gated_delta_mixer rows {}", rows), &batch, {2 * 4 * S, 7 * S * T}, [&](ExecContext& ctx) {
      ops::gated_delta_mixer(ctx, qkv, z, b, a, weights, conv, delta, accepted, batch);
    });
  }
}

void bench_attention(OpBench& bench, Backend& backend, const qwen3_5::Config& c) {
  const int64_t H = c.num_attention_heads, Hkv = c.num_key_value_heads, Dh = c.head_dim;
  const float scale = 1.0f / 16;
  const struct { int64_t rows, context; } cases[] = {{1, 511}, {1, 4095}, {5, 4095}, {512, 0}};
  for (const auto& [rows, context] : cases) {
    Memory memory(backend);
    const Batch batch = one_sequence(memory, rows, context, 16);
    const int64_t pages = batch.block_table.size(1);
    const KvPages kv{memory.random(DType::kBF16, {pages, Hkv, 16, Dh}),
                     memory.random(DType::kBF16, {pages, Hkv, 16, Dh})};
    const Tensor q = memory.random(DType::kBF16, {rows, H, Dh});
    const auto T = static_cast<double>(rows), L = static_cast<double>(context);
    const double keys = T * L + T * (T + 1) / 2;
    bench.run(fmt::format("paged_attention rows {} context {}", rows, context), &batch,
              {4.0 * static_cast<double>(Hkv * Dh) * (L + T), 4.0 * static_cast<double>(H * Dh) * keys},
              [&](ExecContext& ctx) { ops::paged_attention(ctx, q, kv, batch, scale); });
  }
}

// Lightning attention of Ling-2.6-flash. Many states in turn, as in a step of many layers, so that none is in a cache.
void bench_lightning(OpBench& bench, Backend& backend) {
  constexpr int64_t kH = 32, kD = 128, kHalf = 32;
  for (const int64_t rows : {1, 512}) {
    const std::string name = fmt::format("lightning_mixer rows {}", rows);
    if (!bench.wants(name)) continue;
    Memory memory(backend);
    std::vector<LightningState> states;
    for (int64_t i = 0; i < (rows == 1 ? 28 : 1); ++i)
      states.push_back({memory.zeros(DType::kF32, {1, kH, kD, kD}), memory.zeros(DType::kF32, {1, 0, kH, kD}),
                        memory.zeros(DType::kF32, {1, 0, kH, kD})});
    ops::LightningWeights weights;
    weights.q_norm = memory.random(DType::kF32, {kD});
    weights.k_norm = memory.random(DType::kF32, {kD});
    weights.g_norm = memory.random(DType::kF32, {kH * kD});
    weights.slope = memory.zeros(DType::kF32, {kH});
    const std::vector<float> slopes(kH, 0.1f);
    backend.copy_bytes(weights.slope.data(), slopes.data(), slopes.size() * sizeof(float));
    weights.norm_groups = 4;
    const Tensor accepted = memory.ints({0}, {1}), table = memory.random(DType::kF32, {2, rows, kHalf});
    const Tensor qkv = memory.random(DType::kF32, {rows, 3 * kH * kD}),
                 gate = memory.random(DType::kF32, {rows, kH * kD});
    const Batch batch = one_sequence(memory, rows, 64, 16);
    const double S = static_cast<double>(kH * kD * kD) * static_cast<double>(states.size()),
                 T = static_cast<double>(rows);
    bench.run(fmt::format("{}, {} layers", name, states.size()), &batch, {2 * 4 * S, 5 * S * T}, [&](ExecContext& ctx) {
      const size_t mark = ctx.workspace.mark();
      for (LightningState& state : states) {
        ops::lightning_mixer(ctx, qkv, gate, weights, table, state, accepted, batch, DType::kBF16);
        ctx.workspace.release(mark);
      }
    });
  }
}

// Latent attention of Ling-2.6-flash, absorbed.
void bench_latent(OpBench& bench, Backend& backend) {
  constexpr int64_t kH = 32, kL = 512, kR = 64, kDn = 128, kDv = 128;
  const struct { int64_t rows, context; } cases[] = {{1, 4095}, {512, 0}};
  Memory weights(backend);
  ops::LatentUpProjection up;
  for (const auto& [rows, context] : cases) {
    const std::string name = fmt::format("latent_attention rows {} context {}", rows, context);
    if (!bench.wants(name)) continue;
    if (up.key.E == 0) up = {weights.experts(kH, kL, kDn), weights.experts(kH, kDv, kL)};
    Memory memory(backend);
    const Batch batch = one_sequence(memory, rows, context, 16);
    const int64_t count = batch.block_table.size(1);
    const LatentPages pages{memory.random(DType::kBF16, {count, 16, kL}), memory.random(DType::kBF16, {count, 16, kR})};
    const Tensor q_nope = memory.random(DType::kBF16, {rows, kH, kDn}),
                 q_pe = memory.random(DType::kBF16, {rows, kH, kR});
    const auto T = static_cast<double>(rows), C = static_cast<double>(context), H = static_cast<double>(kH);
    const double keys = T * C + T * (T + 1) / 2, projections = H * static_cast<double>(kL * (kDn + kDv));
    bench.run(name, &batch,
              {2 * (projections + (C + T) * static_cast<double>(kL + kR)),
               2 * (T * projections + H * keys * static_cast<double>(2 * kL + kR))},
              [&](ExecContext& ctx) { ops::latent_attention(ctx, q_nope, q_pe, up, pages, batch, 0.07f); });
  }
}

// How many experts the rows of x choose.
int64_t distinct_experts(Backend& backend, const Tensor& x, const PackedWeight& router,
                         const ops::RouterOptions& options) {
  OneRank one;
  const auto choose = [&](ExecContext& ctx) {
    return ops::route(ctx, ops::linear(ctx, x, router, DType::kF32), {}, options).experts;
  };
  Workspace measured;
  ExecContext dry{.backend = backend, .workspace = measured, .communicator = one, .dry_run = true};
  choose(dry);
  Workspace workspace(measured, backend.allocate(measured.bytes()));
  ExecContext ctx{.backend = backend, .workspace = workspace, .communicator = one};
  const Tensor experts = choose(ctx);
  std::vector<int32_t> chosen(static_cast<size_t>(experts.numel()));
  backend.copy_bytes(chosen.data(), experts.data(), static_cast<size_t>(experts.bytes()));
  return static_cast<int64_t>(std::set<int32_t>(chosen.begin(), chosen.end()).size());
}

// The mixture of Qwen3.5-35B-A3B, whatever the shape of the rest: 1.6 GB of experts.
void bench_mixture(OpBench& bench, Backend& backend) {
  constexpr int64_t kD = 2048, kE = 256, kF = 512;
  const ops::RouterOptions options{.top_k = 8};
  Memory memory(backend);
  ops::SparseMoeWeights weights;
  for (const int64_t rows : {1, 512}) {
    const std::string name = fmt::format("sparse_moe 35B-A3B rows {}", rows);
    if (!bench.wants(name)) continue;
    if (weights.gate.E == 0) {
      weights.router = memory.weight(kE, kD);
      weights.gate = memory.experts(kE, kF, kD);
      weights.up = memory.experts(kE, kF, kD);
      weights.down = memory.experts(kE, kD, kF);
      weights.shared_gate_up = {memory.weight(kF, kD), memory.weight(kF, kD)};
      weights.shared_down = memory.weight(kD, kF);
      weights.shared_gate = memory.weight(1, kD);
    }
    std::vector<bf16> values(rows * kD);
    const Tensor host(values.data(), DType::kBF16, {rows, kD}), x = memory.zeros(DType::kBF16, {rows, kD});
    fill_dummy("x", 0, host);
    backend.copy_bytes(x.data(), host.data(), static_cast<size_t>(x.bytes()));
    const auto expert = static_cast<double>(3 * kF * kD), router = static_cast<double>((kE + 1) * kD);
    const auto T = static_cast<double>(rows),
               read = static_cast<double>(distinct_experts(backend, x, weights.router, options));
    bench.run(name, nullptr,
              {2 * (expert * (read + 1) + router), 2 * T * (expert * static_cast<double>(options.top_k + 1) + router)},
              [&](ExecContext& ctx) { ops::sparse_moe(ctx, x, weights, options, x); });
  }
}

void bench_norm(OpBench& bench, Backend& backend, const qwen3_5::Config& c) {
  for (const int64_t rows : {1, 512}) {
    Memory memory(backend);
    const Tensor x = memory.random(DType::kBF16, {rows, c.hidden_size}),
                 w = memory.random(DType::kF32, {c.hidden_size});
    bench.run(fmt::format("add_rms_norm rows {}", rows), nullptr, {static_cast<double>(8 * rows * c.hidden_size), 0},
              [&](ExecContext& ctx) { ops::add_rms_norm(ctx, x, x, w, 1e-6f, 1); });
  }
}

// One block of the largest tower of the family, on a picture of 4096 patches.
void bench_vision(OpBench& bench, Backend& backend) {
  constexpr int64_t P = 4096, H = 16, Dh = 72, D = H * Dh, I = 4304;
  constexpr auto p = static_cast<double>(P), d = static_cast<double>(D), i = static_cast<double>(I);
  Memory memory(backend);
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

int bench_ops(const Options& options) {
  const std::string shape = options.model.shape.empty() ? "qwen3_5-0.8b" : options.model.shape;
  const qwen3_5::Config c = qwen3_5::parse_config(config_of_shape(shape), shape);
  const std::unique_ptr<Backend> backend = make_backend(options.model);
  const int threads = options.model.threads > 0 ? options.model.threads : default_thread_count();
  const MachineProbe probe = probe_machine(threads);
  if (!options.json)
    fmt::print(
        "ops of {} on {}, {} threads, bfloat16, best of {}\nprobe: read {:.1f} GB/s, f32 FMA {:.0f} GFLOP/s; last "
        "column: percent of "
        "the roofline these give\n",
        shape, backend->name(), threads, options.repetitions, probe.read_bytes_per_s / 1e9, probe.flops_per_s / 1e9);
  OpBench bench(options, *backend, probe);
  const int64_t D = c.hidden_size;
  bench_linear(bench, *backend, "in_proj", c.conv_dim() + c.value_dim() + 2 * c.linear_num_value_heads, D);
  bench_linear(bench, *backend, "out_proj", D, c.value_dim());
  bench_linear(bench, *backend, "gate_up", 2 * c.intermediate_size, D);
  bench_linear(bench, *backend, "down", D, c.intermediate_size);
  bench_delta(bench, *backend, c);
  bench_attention(bench, *backend, c);
  bench_norm(bench, *backend, c);
  bench_vision(bench, *backend);
  bench_mixture(bench, *backend);
  bench_lightning(bench, *backend);
  bench_latent(bench, *backend);
  return 0;
}

}  // namespace calandra::apps

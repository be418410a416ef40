// `calandra bench ops`: each op in a release's shape, alone, against the probes of the same run.
#include <fmt/format.h>

#include <chrono>
#include <cstdio>
#include <functional>
#include <limits>

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
  PackedWeight weight(int64_t N, int64_t K) {
    std::vector<bf16> values(N * K);
    Tensor host(values.data(), DType::kBF16, {N, K});
    fill_dummy(fmt::format("{}x{}", N, K), 0, host);
    PreparedWeight prepared = backend_.prepare_weight(host);
    buffers_.push_back(std::move(prepared.storage));
    return prepared.weight;
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

  // `op` must be the same computation each time; the workspace is measured by a dry run first.
  void run(const std::string& name, const Batch* batch, Cost cost, const std::function<void(ExecContext&)>& op) {
    if (name.find(options_.filter) == std::string::npos) return;
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
};

void bench_linear(OpBench& bench, Backend& backend, const char* what, int64_t N, int64_t K) {
  Memory memory(backend);
  const LinearPack pack{memory.weight(N, K)};
  for (const int64_t rows : {1, 4, 16, 512}) {
    const Tensor x = memory.random(DType::kBF16, {rows, K});
    const auto n = static_cast<double>(N), k = static_cast<double>(K), m = static_cast<double>(rows);
    bench.run(fmt::format("linear {} [{}, {}] rows {}", what, N, K, rows), nullptr, {2 * n * k, 2 * n * k * m},
              [&](ExecContext& ctx) { ops::linear(ctx, x, pack); });
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

void bench_norm(OpBench& bench, Backend& backend, const qwen3_5::Config& c) {
  for (const int64_t rows : {1, 512}) {
    Memory memory(backend);
    const Tensor x = memory.random(DType::kBF16, {rows, c.hidden_size}),
                 w = memory.random(DType::kF32, {c.hidden_size});
    bench.run(fmt::format("add_rms_norm rows {}", rows), nullptr, {static_cast<double>(8 * rows * c.hidden_size), 0},
              [&](ExecContext& ctx) { ops::add_rms_norm(ctx, x, x, w, 1e-6f, 1); });
  }
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
  return 0;
}

}  // namespace calandra::apps

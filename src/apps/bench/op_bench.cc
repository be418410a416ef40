#include "apps/bench/op_bench.h"

#include <fmt/format.h>
#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <limits>
#include <random>
#include <set>
#include <span>

#include "apps/output.h"
#include "base/log.h"
#include "base/progress.h"
#include "ops/sampling.h"
#include "weights/dummy_weights.h"

namespace calandra::apps {

Tensor OperandMemory::random(DType dtype, Shape shape) {
  Tensor t = zeros(dtype, shape);
  std::vector<float> values(t.numel());
  for (size_t i = 0; i < values.size(); ++i) values[i] = static_cast<float>(i * 2654435761u % 1000) / 1000.0f - 0.5f;
  std::vector<bf16> narrow(values.begin(), values.end());
  const void* from = dtype == DType::kBF16 ? static_cast<const void*>(narrow.data()) : values.data();
  backend_.copy_bytes(t.data(), from, t.bytes());
  return t;
}

Tensor OperandMemory::zeros(DType dtype, Shape shape) {
  buffers_.push_back(backend_.allocate(std::max<size_t>(64, shape.numel() * size_of(dtype))));
  return buffers_.back().tensor(dtype, shape);
}

Tensor OperandMemory::ints(const std::vector<int32_t>& values, Shape shape) {
  Tensor t = zeros(DType::kI32, shape);
  backend_.copy_bytes(t.data(), values.data(), values.size() * sizeof(int32_t));
  return t;
}

PackedWeight OperandMemory::weight(int64_t N, int64_t K, DType dtype) {
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

GroupedWeight OperandMemory::experts(int64_t E, int64_t N, int64_t K) {
  std::vector<bf16> values(N * K);
  Tensor host(values.data(), DType::kBF16, {N, K});
  fill_dummy(fmt::format("{}x{}", N, K), 0, host);
  const auto bytes = static_cast<int64_t>(backend_.packed_bytes({host}));
  const int64_t stride = (bytes + kWeightAlignment - 1) / kWeightAlignment * kWeightAlignment;
  const Tensor packed = zeros(DType::kU8, {E, stride});
  for (int64_t e = 0; e < E; ++e) backend_.pack_weight({host}, packed.bytes_at(e * stride));
  return {E, N, K, DType::kBF16, packed};
}

Batch one_sequence(OperandMemory& memory, int64_t rows, int64_t context) {
  constexpr int64_t kPage = 16;
  std::vector<int32_t> index(rows), positions(3 * rows), table((context + rows + kPage - 1) / kPage);
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

namespace {

// On a device of its own the sum of its kernels, each alone, with nothing of the last repetition in its caches.
double seconds_of(Backend& backend, const std::function<void()>& op) {
  if (backend.device().kind != DeviceKind::kCpu) {
    backend.read_bytes_per_s();
    double sum = 0;
    const auto kernels = backend.time_kernels(op);
    for (size_t i = 1; i < kernels.size(); ++i) sum += kernels[i].seconds;
    return sum;
  }
  const auto start = std::chrono::steady_clock::now();
  op();
  return std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
}

}  // namespace

void OpBench::leave_out(const std::string& name, const std::string& reason) {
  log_warning("{} is left out: {}", name, reason);
  matched_ = true;
}

bool OpBench::wants(const std::string& name) {
  names_.insert(name);
  return name.find(options_.filter) != std::string::npos;
}

void OpBench::run(const std::string& name, const Batch* batch, Cost cost, const std::function<void(ExecContext&)>& op) {
  if (!wants(name)) return;
  matched_ = true;
  OneRank one;
  Workspace measured;
  ExecContext dry{backend_, measured, one};
  dry.dry_run = true;
  if (batch != nullptr) backend_.plan(dry, *batch);
  op(dry);
  Workspace workspace(measured, backend_.allocate(measured.bytes()));
  ExecContext ctx{backend_, workspace, one};
  double best = std::numeric_limits<double>::infinity();
  uint32_t launches = 0;
  for (int64_t repetition = 0; repetition < options_.repetitions; ++repetition) {
    workspace.reset();
    if (batch != nullptr) backend_.plan(ctx, *batch);
    const uint32_t before = backend_.launches();
    best = std::min(best, seconds_of(backend_, [&] { op(ctx); }));
    launches = backend_.launches() - before;
  }
  // The roofline: the slower of moving the bytes and computing, at the rates of the probes.
  double bound = cost.bytes / probe_.read_bytes_per_s;
  if (probe_.flops_per_s > 0) bound = std::max(bound, cost.flops / probe_.flops_per_s);
  if (options_.json) {
    print_json(json::object{{"op", name},
                            {"seconds", best},
                            {"bytes_per_s", cost.bytes / best},
                            {"flops_per_s", cost.flops / best},
                            {"fraction_of_roofline", bound / best},
                            {"launches", launches}});
  } else {
    put("  {:<44} {:>9.1f} us  {:>6.1f} GB/s  {:>6.1f} GFLOP/s  {:>4.0f} %  {:>3}\n", name, 1e6 * best,
        cost.bytes / best / 1e9, cost.flops / best / 1e9, 100 * bound / best, launches);
    flush_output();
  }
}

namespace {

void bench_products(OpBench& bench, const char* what, int64_t N, int64_t K, DType dtype,
                    std::span<const int64_t> row_counts) {
  const auto name = [&](int64_t rows) {
    return fmt::format("linear {}{} [{}, {}] rows {}", what, dtype == DType::kF8E4M3 ? " fp8" : "", N, K, rows);
  };
  if (std::none_of(row_counts.begin(), row_counts.end(), [&](int64_t rows) { return bench.wants(name(rows)); })) return;
  OperandMemory memory(bench.backend());
  const LinearPack pack{memory.weight(N, K, dtype)};
  const auto bytes = static_cast<double>(pack.parts()[0].packed.bytes());  // of fp8 with its scales
  for (const int64_t rows : row_counts) {
    const Tensor x = memory.random(DType::kBF16, {rows, K});
    const double flops = 2 * static_cast<double>(N) * static_cast<double>(K) * static_cast<double>(rows);
    bench.run(name(rows), nullptr, {bytes, flops}, [&](ExecContext& ctx) { ops::linear(ctx, x, pack); });
  }
}

}  // namespace

void bench_linear(OpBench& bench, const char* what, int64_t N, int64_t K) {
  constexpr int64_t kRows[] = {1, 4, 16, 512};
  for (const DType dtype : {DType::kBF16, DType::kF8E4M3}) bench_products(bench, what, N, K, dtype, kRows);
}

void bench_head(OpBench& bench, int64_t vocab_size, int64_t hidden_size) {
  constexpr int64_t kRows[] = {1, 4, 16};
  bench_products(bench, "lm_head", vocab_size, hidden_size, DType::kBF16, kRows);
}

// Logits as of a model that is sure of little: normally distributed. The roofline is one read of them.
void bench_sampler(OpBench& bench, int64_t vocab_size) {
  const struct {
    const char* name;
    void (*change)(ops::SamplingRow& row, ops::SamplingBatch& batch);
  } kinds[] = {
      {"greedy", [](ops::SamplingRow& row, ops::SamplingBatch&) { row.temperature = 0; }},
      {"temperature", [](ops::SamplingRow&, ops::SamplingBatch&) {}},
      {"top_k 50 top_p 0.95",
       [](ops::SamplingRow& row, ops::SamplingBatch&) {
         row.top_k = 50;
         row.top_p = 0.95f;
       }},
      {"min_p 0.05 penalties logprobs 5",
       [](ops::SamplingRow& row, ops::SamplingBatch& batch) {
         row.min_p = 0.05f;
         row.repetition_penalty = 1.1f;
         row.num_logprobs = 5;
         row.counts.begin = static_cast<int32_t>(batch.counts.size());
         for (int32_t id = 0; id < 1000; ++id) batch.counts.push_back({7 * id, id % 3});
         row.counts.end = static_cast<int32_t>(batch.counts.size());
       }},
  };
  for (const int64_t rows : {1, 16, 64})
    for (const auto& [kind, change] : kinds) {
      const std::string name = fmt::format("sample {} [{}, {}]", kind, rows, vocab_size);
      if (!bench.wants(name)) continue;
      OperandMemory memory(bench.backend());
      const Tensor logits = memory.zeros(DType::kF32, {rows, vocab_size});
      std::vector<float> values(static_cast<size_t>(rows * vocab_size));
      std::mt19937 random(1);
      std::normal_distribution<float> normal(0, 3);
      for (float& value : values) value = normal(random);
      bench.backend().copy_bytes(logits.data(), values.data(), values.size() * sizeof(float));
      ops::SamplingBatch batch;
      for (int64_t i = 0; i < rows; ++i) {
        ops::SamplingRow row;
        row.logit_row = static_cast<int32_t>(i);
        row.seed = static_cast<uint64_t>(i);
        change(row, batch);
        batch.rows.push_back(row);
      }
      ops::SamplingResult result;
      bench.run(name, nullptr, {static_cast<double>(values.size() * sizeof(float)), 0},
                [&](ExecContext& ctx) { ops::sample(ctx, logits, batch, result); });
    }
}

void bench_norm(OpBench& bench, int64_t hidden_size) {
  for (const int64_t rows : {1, 512}) {
    OperandMemory memory(bench.backend());
    const Tensor x = memory.random(DType::kBF16, {rows, hidden_size}), w = memory.random(DType::kF32, {hidden_size});
    bench.run(fmt::format("add_rms_norm rows {}", rows), nullptr, {static_cast<double>(8 * rows * hidden_size), 0},
              [&](ExecContext& ctx) { ops::add_rms_norm(ctx, x, x, w, 1e-6f, 1); });
  }
}

void bench_attention(OpBench& bench, int64_t H, int64_t Hkv, int64_t Dh) {
  const float scale = 1.0f / 16;
  const struct { int64_t rows, context; } cases[] = {{1, 511}, {1, 4095}, {5, 4095}, {512, 0}};
  for (const auto& [rows, context] : cases) {
    OperandMemory memory(bench.backend());
    const Batch batch = one_sequence(memory, rows, context);
    const int64_t pages = batch.block_table.size(1);
    KvPages kv{memory.random(DType::kBF16, {pages, Hkv, 16, Dh}), memory.random(DType::kBF16, {pages, Hkv, 16, Dh})};
    const Tensor q = memory.random(DType::kBF16, {rows, H, Dh}), k = memory.random(DType::kBF16, {rows, Hkv, Dh}),
                 gate = memory.random(DType::kBF16, {rows, H * Dh}), norm = memory.random(DType::kF32, {Dh}),
                 table = memory.random(DType::kBF16, {2, rows, Dh / 8});
    const auto T = static_cast<double>(rows), L = static_cast<double>(context);
    const double keys = T * L + T * (T + 1) / 2;
    const Cost cost{4.0 * static_cast<double>(Hkv * Dh) * (L + T), 4.0 * static_cast<double>(H * Dh) * keys};
    bench.run(fmt::format("paged_attention rows {} context {}", rows, context), &batch, cost,
              [&](ExecContext& ctx) { ops::paged_attention(ctx, q, kv, batch, scale); });
    bench.run(fmt::format("attention_mixer rows {} context {}", rows, context), &batch, cost, [&](ExecContext& ctx) {
      ops::attention_mixer(ctx, q, k, k, gate, {norm, norm, 1e-6f, 1}, table, kv, batch, scale);
    });
  }
}

namespace {

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

}  // namespace

void bench_mixture(OpBench& bench, const MixtureSizes& s, const ops::RouterOptions& options) {
  OperandMemory memory(bench.backend());
  ops::SparseMoeWeights weights;
  const int64_t D = s.hidden_size, E = s.num_experts, F = s.expert_size;
  const int64_t needed = 3 * E * F * D * static_cast<int64_t>(sizeof(bf16)),
                machine = sysconf(_SC_PHYS_PAGES) * sysconf(_SC_PAGESIZE);
  for (const int64_t rows : {1, 512}) {
    const std::string name = fmt::format("sparse_moe {} of {} experts rows {}", options.top_k, E, rows);
    if (!bench.wants(name)) continue;
    if (needed > machine / 10 * 9) {
      bench.leave_out(name,
                      fmt::format("its experts take {}, the machine has {}", format_bytes(static_cast<double>(needed)),
                                  format_bytes(static_cast<double>(machine))));
      continue;
    }
    if (weights.gate.E == 0) {
      weights.router = memory.weight(E, D);
      weights.gate = memory.experts(E, F, D);
      weights.up = memory.experts(E, F, D);
      weights.down = memory.experts(E, D, F);
      if (s.shared_size > 0) {
        weights.shared_gate_up = {memory.weight(s.shared_size, D), memory.weight(s.shared_size, D)};
        weights.shared_down = memory.weight(D, s.shared_size);
      }
      if (s.shared_gate) weights.shared_gate = memory.weight(1, D);
    }
    std::vector<bf16> values(rows * D);
    const Tensor host(values.data(), DType::kBF16, {rows, D}), x = memory.zeros(DType::kBF16, {rows, D});
    fill_dummy("x", 0, host);
    bench.backend().copy_bytes(x.data(), host.data(), static_cast<size_t>(x.bytes()));
    const auto expert = static_cast<double>(3 * F * D),
               always = static_cast<double>(3 * s.shared_size * D + (E + (s.shared_gate ? 1 : 0)) * D);
    const auto T = static_cast<double>(rows),
               read = static_cast<double>(distinct_experts(bench.backend(), x, weights.router, options));
    bench.run(name, nullptr,
              {2 * (expert * read + always), 2 * T * (expert * static_cast<double>(options.top_k) + always)},
              [&](ExecContext& ctx) { ops::sparse_moe(ctx, x, weights, options, x); });
  }
}

}  // namespace calandra::apps

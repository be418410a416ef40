// What `calandra bench ops` times with: memory for operands, one op alone beside the roofline, and the ops that models
// share.
#pragma once

#include <functional>
#include <set>
#include <string>

#include "apps/bench/probe.h"
#include "apps/command_line.h"
#include "models/bailing_v2_5/config.h"
#include "models/qwen3_5/config.h"
#include "ops/backend.h"

namespace calandra::apps {

// What an op must move and compute at least.
struct Cost {
  double bytes = 0;
  double flops = 0;
};

// Device memory of one op, filled with small values.
class OperandMemory {
 public:
  explicit OperandMemory(Backend& backend) : backend_(backend) {}

  Tensor random(DType dtype, Shape shape);
  Tensor zeros(DType dtype, Shape shape);
  Tensor ints(const std::vector<int32_t>& values, Shape shape);
  // bf16, or f8_e4m3 in blocks of 128 x 128.
  PackedWeight weight(int64_t N, int64_t K, DType dtype = DType::kBF16);
  // E matrices with the same numbers, each in its own memory.
  GroupedWeight experts(int64_t E, int64_t N, int64_t K);

 private:
  Backend& backend_;
  std::vector<Buffer> buffers_;
};

// One sequence of `rows` new rows after `context` tokens, in slot 0; pages of 16 tokens.
Batch one_sequence(OperandMemory& memory, int64_t rows, int64_t context);

class OpBench {
 public:
  OpBench(const Options& options, Backend& backend, MachineProbe probe)
      : options_(options), backend_(backend), probe_(probe) {}

  Backend& backend() { return backend_; }
  // Whether --filter lets the op through. All names that were asked for are kept for the error when it lets none.
  bool wants(const std::string& name);
  const std::set<std::string>& names() const { return names_; }
  bool matched() const { return matched_; }  // some op was run or left out
  void leave_out(const std::string& name, const std::string& reason);

  // Times the op and prints its line. `op` must be the same computation each time; the workspace is measured by a dry
  // run first.
  void run(const std::string& name, const Batch* batch, Cost cost, const std::function<void(ExecContext&)>& op);

 private:
  const Options& options_;
  Backend& backend_;
  MachineProbe probe_;
  std::set<std::string> names_;
  bool matched_ = false;
};

void bench_linear(OpBench& bench, const char* what, int64_t N, int64_t K);
// lm_head of steps: few rows, bf16 in every release.
void bench_head(OpBench& bench, int64_t vocab_size, int64_t hidden_size);
void bench_norm(OpBench& bench, int64_t hidden_size);
void bench_sampler(OpBench& bench, int64_t vocab_size);
void bench_attention(OpBench& bench, int64_t heads, int64_t kv_heads, int64_t head_dim);

struct MixtureSizes {
  int64_t hidden_size, num_experts, expert_size, shared_size;  // shared_size 0: none
  bool shared_gate = false;
};
void bench_mixture(OpBench& bench, const MixtureSizes& sizes, const ops::RouterOptions& options);

// All ops of a model: bench_qwen3_5.cc, bench_bailing.cc.
void bench_qwen3_5(OpBench& bench, const qwen3_5::Config& config);
void bench_bailing(OpBench& bench, const bailing_v2_5::Config& config);

}  // namespace calandra::apps

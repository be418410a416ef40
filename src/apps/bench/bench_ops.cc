// `calandra bench ops`: each op in a release's shape, alone, against the probes of the same run.
#include <fmt/ranges.h>

#include "apps/bench/op_bench.h"
#include "apps/loaded_model.h"
#include "apps/output.h"
#include "apps/verbs.h"
#include "base/error.h"

namespace calandra::apps {
namespace {

void bench_architecture(OpBench& bench, const ModelConfig& config) {
  using bailing_v2_5::FullAttention;
  if (config.architecture.starts_with("Qwen3_5"))
    return bench_qwen3_5(bench, qwen3_5::parse_config(config.config, config.file));
  const bool latent = config.architecture == "BailingMoeV2_5ForCausalLM";
  bench_bailing(bench, bailing_v2_5::parse_config(config.config, config.file,
                                                  latent ? FullAttention::kLatent : FullAttention::kGroupedQuery));
}

}  // namespace

int bench_ops(const Options& options) {
  const std::string shape = options.model.shape.empty() ? "qwen3_5-0.8b" : options.model.shape;
  const ModelConfig config = check_config(config_of_shape(shape), "--shape " + shape);
  const std::unique_ptr<Backend> backend = make_backend(options.model);
  const int threads = thread_count(options.model);
  const MachineProbe probe = probe_of(*backend, threads);
  const bool device = backend->device().kind != DeviceKind::kCpu;
  if (!options.json)
    put("ops of {} on {}, {} threads, bfloat16, best of {}\nprobe: read {:.1f} GB/s{}; last columns: percent of the "
        "roofline, {}\n",
        shape, backend->name(), threads, options.repetitions, probe.read_bytes_per_s / 1e9,
        device ? "" : fmt::format(", f32 FMA {:.0f} GFLOP/s", probe.flops_per_s / 1e9),
        device ? "launches" : "barriers between the threads");
  OpBench bench(options, *backend, probe);
  bench_architecture(bench, config);
  if (!bench.matched())
    throw LoadError(fmt::format("--filter {} matches no op; ops of {} are {}", options.filter, shape,
                                fmt::join(bench.names(), ", ")));
  return 0;
}

}  // namespace calandra::apps

// `calandra bench latency`: prefill and decode speed of one batch, beside what the machine can do in the same minute.
#include <algorithm>
#include <chrono>

#include "apps/bench/probe.h"
#include "apps/limits.h"
#include "apps/output.h"
#include "apps/verbs.h"
#include "base/progress.h"

namespace calandra::apps {
namespace {

double seconds_since(std::chrono::steady_clock::time_point start) {
  return std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
}

struct Run {
  double prefill_s = 0;
  double decode_s = 0;                              // of all decode steps
  double host_s = 0;                                // of them, until the device had been given all it has to do
  uint32_t launches = 0;                            // of the last decode step
  std::vector<Backend::KernelTime> kernels;         // of one more step, if wanted
  std::vector<Backend::KernelTime> prompt_kernels;  // and of the prompts once more
};

// A step up to the point where the host could know a token: a device has computed its logits then. Returns the seconds
// until the device had been given the step.
double one_step(ModelRunner& runner, std::span<const ModelRunner::Part> parts, const std::vector<int32_t>& rows) {
  const auto start = std::chrono::steady_clock::now();
  const Tensor logits = runner.logits(runner.forward(parts), rows);
  const double given = seconds_since(start);
  float first = 0;
  runner.backend().copy_bytes(&first, logits.data(), sizeof first);
  return given;
}

// Prompts of fixed pseudo-random ids, with room for `output_len` more.
std::vector<Sequence> reserve_prompts(ModelRunner& runner, int64_t batch, int64_t input_len, int64_t output_len) {
  const auto vocab = static_cast<uint64_t>(runner.model().vocab_size());
  std::vector<Sequence> sequences(batch);
  for (int64_t b = 0; b < batch; ++b) {
    for (int64_t i = 0; i < input_len; ++i)
      sequences[b].tokens.push_back(static_cast<int32_t>((i * 7919 + b * 104729 + 17) % vocab));
    sequences[b].prompt_size = input_len;
    CHECK(runner.reserve(sequences[b], input_len + output_len));
  }
  return sequences;
}

void read_prompts(ModelRunner& runner, std::vector<Sequence>& sequences) {
  const int64_t budget = runner.limits().max_num_batched_tokens;
  for (Sequence& sequence : sequences) {
    while (sequence.computed < sequence.prompt_size) {
      const ModelRunner::Part part{&sequence, std::min(budget, sequence.prompt_size - sequence.computed)};
      const Tensor hidden = runner.forward({&part, 1});
      if (sequence.computed < sequence.prompt_size) continue;
      const Tensor logits = runner.logits(hidden, std::vector<int32_t>{static_cast<int32_t>(part.rows - 1)});
      float first = 0;
      runner.backend().copy_bytes(&first, logits.data(), sizeof first);
    }
  }
}

// The next token is a fixed id too, not the argmax: the cost of a step does not depend on it.
Run run_once(ModelRunner& runner, int64_t batch, int64_t input_len, int64_t output_len, bool profile,
             ProgressBar& bar) {
  Run run;
  if (profile) {
    std::vector<Sequence> sequences = reserve_prompts(runner, batch, input_len, 0);
    run.prompt_kernels = runner.backend().time_kernels([&] { read_prompts(runner, sequences); });
    for (Sequence& sequence : sequences) runner.release(sequence);
  }
  std::vector<Sequence> sequences = reserve_prompts(runner, batch, input_len, output_len + (profile ? 1 : 0));
  auto start = std::chrono::steady_clock::now();
  read_prompts(runner, sequences);
  run.prefill_s = seconds_since(start);

  std::vector<ModelRunner::Part> parts;
  std::vector<int32_t> rows;
  for (int64_t b = 0; b < batch; ++b) {
    parts.push_back({&sequences[b], 1});
    rows.push_back(static_cast<int32_t>(b));
  }
  start = std::chrono::steady_clock::now();
  for (int64_t step = 0; step + 1 < output_len; ++step) {
    for (Sequence& sequence : sequences)
      sequence.tokens.push_back(static_cast<int32_t>((step * 31 + 5) % runner.model().vocab_size()));
    const uint32_t before = runner.backend().launches();
    run.host_s += one_step(runner, parts, rows);
    run.launches = runner.backend().launches() - before;
    bar.update(step + 1);
  }
  run.decode_s = seconds_since(start);
  if (profile) {
    for (Sequence& sequence : sequences) sequence.tokens.push_back(5);
    run.kernels = runner.backend().time_kernels([&] { one_step(runner, parts, rows); });
  }
  for (Sequence& sequence : sequences) runner.release(sequence);
  return run;
}

json::array kernel_rows(const std::vector<Backend::KernelTime>& kernels) {
  json::array rows;
  for (const Backend::KernelTime& k : kernels)
    rows.push_back(json::object{{"kernel", k.name}, {"launches", k.launches}, {"seconds", k.seconds}});
  return rows;
}

// The first are kernels that do nothing.
void print_kernels(std::string_view of, const std::vector<Backend::KernelTime>& kernels) {
  if (kernels.empty()) return;
  double sum = 0;
  for (const Backend::KernelTime& k : std::span(kernels).subspan(1)) sum += k.seconds;
  put("  kernels of {}, each alone: {:.1f} us\n", of, 1e6 * sum);
  for (const Backend::KernelTime& k : kernels)
    put("  {:<32} {:>4} x {:>7.2f} us  {:>8.1f} us  {:>5.1f} %\n", k.name, k.launches,
        1e6 * k.seconds / static_cast<double>(k.launches), 1e6 * k.seconds, 100 * k.seconds / sum);
}

double median(std::vector<double> values) {
  std::sort(values.begin(), values.end());
  return (values[(values.size() - 1) / 2] + values[values.size() / 2]) / 2;
}

}  // namespace

int bench_latency(const Options& options) {
  LoadedModel loaded = load_model(options.model);
  const int64_t batch = options.batch_size, input = options.input_len, output = options.output_len;
  const Sizes sizes{batch, input + output + (options.profile ? 1 : 0)};
  ModelRunner runner(*loaded.model, *loaded.backend, runner_limits(loaded, options.model, sizes, sizes));
  const int threads = thread_count(options.model);

  std::vector<double> prefill, decode, host;
  uint32_t launches = 0;
  std::vector<Backend::KernelTime> kernels, prompt_kernels;
  const MachineProbe before = probe_of(*loaded.backend, threads);
  {
    ProgressBar bar("decoding", output - 1, "tokens");
    // The first does not count: memory is touched for the first time, and steps are recorded.
    for (int64_t repetition = 0; repetition <= options.repetitions; ++repetition) {
      const Run run = run_once(runner, batch, input, output, options.profile && repetition > 0, bar);
      if (repetition == 0) continue;
      prefill.push_back(run.prefill_s);
      decode.push_back(run.decode_s / static_cast<double>(output - 1));
      host.push_back(run.host_s / static_cast<double>(output - 1));
      launches = run.launches;
      kernels = run.kernels;
      prompt_kernels = run.prompt_kernels;
    }
  }
  const MachineProbe after = probe_of(*loaded.backend, threads);
  const double read = (before.read_bytes_per_s + after.read_bytes_per_s) / 2,
               fma = (before.flops_per_s + after.flops_per_s) / 2;

  // The least that a step must move: every weight once, the state read and written, keys and values of the mean
  // context.
  const StepCost cost = loaded.model->step_cost();
  const auto B = static_cast<double>(batch), T = static_cast<double>(input);
  const double mean_keys = T + static_cast<double>(output) / 2;
  const double decode_bytes =
      cost.weight_bytes_of(static_cast<int64_t>(B)) + B * (cost.state_bytes + cost.kv_bytes_per_key * mean_keys);
  const double prefill_flops =
      B * (T * cost.flops_per_row + T * (T + 1) / 2 * cost.flops_per_row_and_key + cost.flops_per_logit_row);
  const double decode_s = median(decode), prefill_s = median(prefill);

  if (options.json) {
    print_json(json::object{
        {"model", options.model.shape.empty() ? loaded.folder.string() : options.model.shape},
        {"backend", loaded.backend->name()},
        {"dtype", name_of(loaded.model->dtype())},
        {"threads", threads},
        {"batch_size", batch},
        {"input_len", input},
        {"output_len", output},
        {"load_s", loaded.load_seconds.all()},
        {"prefill_s", prefill_s},
        {"prefill_tok_s", B * T / prefill_s},
        {"prefill_flops_per_s", prefill_flops / prefill_s},
        {"prefill_fraction_of_fma_probe", fma > 0 ? json::value(prefill_flops / prefill_s / fma) : json::value()},
        {"decode_step_s", decode_s},
        {"host_step_s", loaded.backend->stream() != nullptr ? json::value(median(host)) : json::value()},
        {"decode_tok_s", B / decode_s},
        {"decode_bytes_per_step", decode_bytes},
        {"decode_bytes_per_s", decode_bytes / decode_s},
        {"decode_fraction_of_read_probe", decode_bytes / decode_s / read},
        {"decode_launches_per_step", launches},
        {"probe_read_bytes_per_s", read},
        {"probe_flops_per_s", fma},
        {"kernels", kernel_rows(kernels)},
        {"prompt_kernels", kernel_rows(prompt_kernels)}});
    return 0;
  }
  put("{} on {}, {} threads, {}; batch {}, {} + {} tokens, median of {}\n",
      options.model.shape.empty() ? loaded.folder.string() : options.model.shape, loaded.backend->name(), threads,
      name_of(loaded.model->dtype()), batch, input, output, options.repetitions);
  put("  probe     read {:.1f} GB/s{} (before and after, mean)\n", read / 1e9,
      fma > 0 ? fmt::format(", f32 FMA {:.0f} GFLOP/s", fma / 1e9) : "");
  put("  load      {:.2f} s\n", loaded.load_seconds.all());
  put("  prefill   {:.3f} s  {:.1f} tok/s  {:.0f} GFLOP/s{}\n", prefill_s, B * T / prefill_s,
      prefill_flops / prefill_s / 1e9,
      fma > 0 ? fmt::format(" = {:.0f} % of the FMA probe", 100 * prefill_flops / prefill_s / fma) : "");
  put("  decode    {:.2f} ms/step  {:.2f} tok/s  {:.1f} GB/s = {:.0f} % of the read probe ({} and {} {} "
      "per step){}\n",
      1e3 * decode_s, B / decode_s, decode_bytes / decode_s / 1e9, 100 * decode_bytes / decode_s / read,
      format_bytes(decode_bytes), launches, loaded.backend->device().kind == DeviceKind::kCpu ? "barriers" : "launches",
      loaded.backend->stream() != nullptr ? fmt::format(", of them {:.0f} us the host's", 1e6 * median(host)) : "");
  print_kernels("a step", kernels);
  print_kernels("the prompts", prompt_kernels);
  return 0;
}

}  // namespace calandra::apps

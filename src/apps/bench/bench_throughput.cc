// `calandra bench throughput`: many requests through the engine, beside what the machine can do in the same minute.
#include "apps/bench/bench_throughput.h"

#include <algorithm>
#include <limits>

#include "apps/conversation.h"
#include "apps/input_text.h"
#include "apps/output.h"
#include "apps/verbs.h"
#include "base/error.h"

namespace calandra::apps {
namespace {

std::vector<int32_t> text_ids(const Options& options, const LoadedModel& loaded) {
  const std::string& file = options.load.dataset_path;
  if (file.empty()) return {};
  if (!loaded.tokenizer) throw LoadError("--dataset-path needs a model with a tokenizer.json");
  std::vector<int32_t> ids = loaded.tokenizer->encode(read_text(file));
  if (ids.empty()) throw LoadError(file + " has no tokens");
  return ids;
}

Request common_request(const Options& options, const LoadedModel& loaded) {
  Request request;
  request.params = sampling_params(options, loaded);
  request.params.seed.reset();  // each request has one of its own
  request.params.max_tokens = static_cast<int32_t>(options.output_len);
  request.params.ignore_eos = true;
  return request;
}

bool is_agent(const Options& options) { return options.load.mix == "agent"; }
int64_t turns_of(const Options& options) { return is_agent(options) ? options.load.num_turns.value_or(8) : 1; }
int64_t prefix_of(const Options& options) { return is_agent(options) ? options.load.prefix_len.value_or(512) : 0; }

std::vector<BenchConversation> conversations_of(const Options& options, PromptSource& prompts) {
  const std::vector<int32_t> prefix = prompts.take(prefix_of(options));
  std::vector<BenchConversation> all(
      static_cast<size_t>(options.load.num_prompts.value_or(is_agent(options) ? 4 : 32)));
  double arrival = 0;
  for (BenchConversation& conversation : all) {
    conversation.prefix = prefix;
    for (int64_t turn = 0; turn < turns_of(options); ++turn)
      conversation.turns.push_back(prompts.take(options.input_len));
    if (options.load.request_rate) arrival += prompts.exponential() / *options.load.request_rate;
    conversation.arrival = arrival;
  }
  return all;
}

void print(const LoadSummary& s, const EngineStats& stats, double busy, double roofline) {
  s.print();
  if (s.failed > 0) put("  FAILED    {} requests\n", s.failed);
  if (stats.drafts > 0)
    put("  drafts    {} of {} accepted, {:.2f} tokens per run of drafts\n", stats.accepted_tokens, stats.draft_tokens,
        1 + static_cast<double>(stats.accepted_tokens) / static_cast<double>(stats.drafts));
  put("  steps     {}  {:.2f} ms each  {:.0f} % of the roofline of the probes\n", stats.steps,
      1e3 * busy / static_cast<double>(std::max<int64_t>(1, stats.steps)), 100 * roofline / busy);
}

}  // namespace

BenchSubject::BenchSubject(const Options& options)
    : loaded(load_for_engine(options, /*vision=*/false)),
      name(options.model.shape.empty() ? loaded.folder.string() : options.model.shape),
      prompts(text_ids(options, loaded), loaded.model->vocab_size(), options.model.seed.value_or(0)),
      request(common_request(options, loaded)),
      seed(options.model.seed.value_or(0)) {}

BenchEngine::BenchEngine(const BenchSubject& subject, const Options& options, const Sizes& sizes)
    : model(*subject.loaded.model, options.engine.speculative.has_value()),
      setup(
          engine_setup(subject.loaded, options, {.usual = sizes, .least = {1, sizes.tokens}, .prefix_caching = true})),
      runner(model, *subject.loaded.backend, setup.limits) {
  runner.watch([this](int64_t pass, const StepShape& shape) { model.note(pass, shape); });
  setup.options.seed = subject.seed;
  if (!options.load.synthetic_acceptance.empty()) model.accept_drafts(options.load.synthetic_acceptance, subject.seed);
}

HardwareSpeed speed_of(const MachineProbe& before, const MachineProbe& after) {
  const double flops = (before.flops_per_s + after.flops_per_s) / 2;
  return {(before.read_bytes_per_s + after.read_bytes_per_s) / 2,
          flops > 0 ? flops : std::numeric_limits<double>::infinity()};
}

int bench_throughput(const Options& options) {
  BenchSubject subject(options);
  if (options.load.compare_speculation) return compare_speculation(options, subject);
  std::vector<int64_t> levels = options.load.max_concurrency;
  if (levels.empty()) levels = {options.load.request_rate ? 32 : 8};
  const int64_t longest = prefix_of(options) + turns_of(options) * (options.input_len + options.output_len);
  BenchEngine engine(subject, options, {*std::max_element(levels.begin(), levels.end()), longest});
  const Tokenizer* tokenizer = subject.loaded.tokenizer ? &*subject.loaded.tokenizer : nullptr;
  const int threads = thread_count(options.model);
  std::function<void(Request&)> script;
  if (!options.load.synthetic_acceptance.empty()) script = [&](Request& request) { engine.model.script(request); };
  if (!options.json)
    put("{} on {}, {} threads, {}; {} mix, {} + {} tokens{}\n  load      {:.2f} s\n", subject.name,
        subject.loaded.backend->name(), threads, name_of(subject.loaded.model->dtype()), options.load.mix,
        options.input_len, options.output_len,
        is_agent(options) ? fmt::format(" a turn, {} turns after {} tokens", turns_of(options), prefix_of(options))
                          : "",
        subject.loaded.load_seconds.all());
  for (const int64_t level : levels) {
    const std::vector<BenchConversation> conversations = conversations_of(options, subject.prompts);
    EngineCore core(engine.runner, tokenizer, engine.setup.options);
    if (level == levels.front()) core.warm_up();  // as a server is before its first request
    Backend& backend = *subject.loaded.backend;
    const MachineProbe before = probe_of(backend, threads);
    const double waited = backend.waited_seconds();
    engine.model.take_work({1, 1});
    const LoadTimes times = run_load(core, conversations, level, subject.request, script);
    const double busy = times.seconds - times.idle_seconds, host = busy - (backend.waited_seconds() - waited);
    const HardwareSpeed speed = speed_of(before, probe_of(backend, threads));
    const BenchModel::Work work = engine.model.take_work(speed);
    const LoadSummary summary(times);
    const EngineStats& stats = core.stats();
    const bool on_device = backend.device().kind != DeviceKind::kCpu;
    if (!options.json) {
      put("max concurrency {}\n  probe     read {:.1f} GB/s{} (before and after, mean)\n", level,
          speed.bytes_per_second / 1e9,
          on_device ? "" : fmt::format(", f32 FMA {:.0f} GFLOP/s", speed.flops_per_second / 1e9));
      print(summary, stats, busy, work.roofline_seconds);
      if (on_device)
        put("  host      {:.1f} us a step at work, not waiting for the device; {} of {} steps launched ahead\n",
            1e6 * host / static_cast<double>(std::max<int64_t>(1, stats.steps)), stats.steps_ahead, stats.steps);
      flush_output();
      continue;
    }
    json::object line{{"model", subject.name},
                      {"backend", subject.loaded.backend->name()},
                      {"dtype", name_of(subject.loaded.model->dtype())},
                      {"threads", threads},
                      {"mix", options.load.mix},
                      {"max_concurrency", level},
                      {"num_prompts", std::ssize(conversations)},
                      {"input_len", options.input_len},
                      {"output_len", options.output_len},
                      {"load_s", subject.loaded.load_seconds.all()}};
    line["request_rate"] = options.load.request_rate ? json::value(*options.load.request_rate) : json::value(nullptr);
    summary.add_to(line);
    line["steps"] = stats.steps;
    line["steps_ahead"] = stats.steps_ahead;
    line["host_step_s"] = on_device ? json::value(host / static_cast<double>(stats.steps)) : json::value(nullptr);
    line["preemptions"] = stats.preemptions;
    line["drafts"] = stats.drafts;
    line["draft_tokens"] = stats.draft_tokens;
    line["accepted_tokens"] = stats.accepted_tokens;
    line["fraction_of_roofline"] = work.roofline_seconds / busy;
    line["probe_read_bytes_per_s"] = speed.bytes_per_second;
    line["probe_flops_per_s"] = on_device ? 0 : speed.flops_per_second;
    print_json(line);
  }
  return 0;
}

}  // namespace calandra::apps

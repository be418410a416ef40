// `calandra bench throughput --compare-speculation`: the same requests without drafts and with them, in turns within
// one run, since a machine's speed changes from minute to minute. Their tokens must be equal.
#include <algorithm>
#include <cmath>
#include <ctime>
#include <deque>

#include "apps/bench/bench_throughput.h"
#include "apps/output.h"
#include "base/error.h"
#include "base/progress.h"

namespace calandra::apps {
namespace {

constexpr int64_t kSlotsOfSequence = 3;  // its own, and the states kept before its answer and after it

// One way of drafting, with an engine of its own.
struct Arm {
  Arm(std::string name, const BenchSubject& subject, const Options& options, const Sizes& sizes)
      : name(std::move(name)),
        engine(subject, options, sizes),
        core(engine.runner, subject.loaded.tokenizer ? &*subject.loaded.tokenizer : nullptr, engine.setup.options) {
    core.warm_up();  // as a server is before its first request
  }

  std::string name;
  BenchEngine engine;
  EngineCore core;
  std::vector<double> seconds;      // of each round
  std::vector<double> cpu_seconds;  // of all threads; the same, but for what other programs take
  std::vector<double> token_times;  // mean time per output token of each round
  EngineStats first;                // after the first round, which does not count
};

// How many times faster than the first arm: the geometric mean over the rounds, and two standard errors around it.
struct Ratio {
  double mean = 1, low = 1, high = 1;
};
Ratio ratio_of(const std::vector<double>& plain, const std::vector<double>& with) {
  const auto n = static_cast<double>(plain.size());
  double sum = 0, squares = 0;
  for (size_t i = 0; i < plain.size(); ++i) sum += std::log(plain[i] / with[i]);
  for (size_t i = 0; i < plain.size(); ++i) squares += std::pow(std::log(plain[i] / with[i]) - sum / n, 2);
  const double spread = 2 * std::sqrt(squares / (n - 1) / n);
  return {std::exp(sum / n), std::exp(sum / n - spread), std::exp(sum / n + spread)};
}

void run_round(Arm& arm, std::span<const BenchConversation> prompts, const Request& request,
               const std::function<void(Request&)>& change, std::vector<std::vector<int32_t>>& answers) {
  const std::clock_t before = std::clock();
  const LoadTimes times = run_load(arm.core, prompts, std::ssize(prompts), request, change);
  arm.cpu_seconds.push_back(static_cast<double>(std::clock() - before) / CLOCKS_PER_SEC);
  const LoadSummary summary(times);
  if (summary.failed > 0) throw LoadError(fmt::format("{} requests failed", summary.failed));
  arm.seconds.push_back(times.seconds);
  arm.token_times.push_back(summary.tpot.mean);
  for (size_t i = 0; i < times.requests.size(); ++i) {
    if (answers.size() == i) answers.push_back(times.requests[i].answer);
    if (answers[i] != times.requests[i].answer)
      throw LoadError(fmt::format("prompt {} has another answer with {}: drafts changed a token", i, arm.name));
  }
}

void report(Arm& arm, const Arm& plain, int64_t batch, const Options& options, const BenchSubject& subject) {
  const Ratio whole = ratio_of(plain.seconds, arm.seconds), tokens = ratio_of(plain.token_times, arm.token_times),
              cpu = ratio_of(plain.cpu_seconds, arm.cpu_seconds);
  double seconds = 0;
  for (const double s : arm.seconds) seconds += s;
  const auto rounds = static_cast<double>(arm.seconds.size());
  const double speed = rounds * static_cast<double>(batch * options.output_len) / seconds;
  const EngineStats& stats = arm.core.stats();
  const int64_t steps = stats.steps - arm.first.steps, drafted = stats.draft_tokens - arm.first.draft_tokens,
                accepted = stats.accepted_tokens - arm.first.accepted_tokens;
  if (options.json) {
    print_json(json::object{{"model", subject.name},
                            {"backend", subject.loaded.backend->name()},
                            {"threads", thread_count(options.model)},
                            {"batch_size", batch},
                            {"input_len", options.input_len},
                            {"output_len", options.output_len},
                            {"rounds", std::ssize(arm.seconds)},
                            {"drafts", arm.name},
                            {"output_throughput", speed},
                            {"speedup", whole.mean},
                            {"speedup_low", whole.low},
                            {"speedup_high", whole.high},
                            {"tpot_speedup", tokens.mean},
                            {"tpot_speedup_low", tokens.low},
                            {"tpot_speedup_high", tokens.high},
                            {"cpu_speedup", cpu.mean},
                            {"cpu_speedup_low", cpu.low},
                            {"cpu_speedup_high", cpu.high},
                            {"steps", steps},
                            {"draft_tokens", drafted},
                            {"accepted_tokens", accepted}});
    return;
  }
  put("  {:>5}  {:<9} {:>9.1f} tok/s  {:.3f}x ({:.3f} to {:.3f})  TPOT {:.3f}x ({:.3f} to {:.3f})  CPU {:.3f}x ({:.3f} "
      "to {:.3f})  {} steps, {} of {} "
      "drafts\n",
      batch, arm.name, speed, whole.mean, whole.low, whole.high, tokens.mean, tokens.low, tokens.high, cpu.mean,
      cpu.low, cpu.high, steps, accepted, drafted);
  flush_output();
}

}  // namespace

int compare_speculation(const Options& options, BenchSubject& subject) {
  std::vector<int64_t> batches = options.load.max_concurrency;
  if (batches.empty()) batches = {1, 2, 4, 8, 16};
  Options plain = options;
  plain.engine.speculative.reset();
  std::vector<std::pair<std::string, Options>> ways = {
      {"none", plain}, {options.engine.speculative->adaptive ? "adaptive" : "given", options}};
  for (const int64_t k : options.load.fixed_drafts) {
    Options& fixed = ways.emplace_back(fmt::format("fixed {}", k), options).second;
    fixed.engine.speculative->num_speculative_tokens = static_cast<int>(k);
    fixed.engine.speculative->adaptive = false;
  }
  if (!options.json)
    put("{} on {}, {} threads, {}; {} + {} tokens, {} rounds in turns; times faster than none, mean and two standard "
        "errors\n  batch  drafts\n",
        subject.name, subject.loaded.backend->name(), thread_count(options.model),
        name_of(subject.loaded.model->dtype()), options.input_len, options.output_len, options.load.rounds);
  const auto rounds = static_cast<size_t>(options.load.rounds);
  for (const int64_t batch : batches) {
    std::deque<Arm> arms;
    for (const auto& [name, given] : ways) {
      // As many states as one round keeps: memory that is touched for the first time, and is more of it with drafts,
      // would be measured as well.
      Options flags = given;
      if (!flags.model.num_state_slots) flags.model.num_state_slots = kSlotsOfSequence * batch + 1;
      arms.emplace_back(name, subject, flags, Sizes{batch, options.input_len + options.output_len});
    }
    std::function<void(Request&)> script;
    if (!options.load.synthetic_acceptance.empty())
      script = [&model = arms[0].engine.model](Request& request) { model.script(request); };
    {
      ProgressBar bar("comparing", options.load.rounds, "rounds");
      for (size_t round = 0; round <= rounds; ++round) {
        std::vector<BenchConversation> prompts(static_cast<size_t>(batch));
        for (BenchConversation& prompt : prompts) prompt.turns = {subject.prompts.take(options.input_len)};
        std::vector<std::vector<int32_t>> answers;
        for (size_t i = 0; i < arms.size(); ++i)
          run_round(arms[(round + i) % arms.size()], prompts, subject.request, script, answers);
        bar.update(static_cast<int64_t>(round));
        if (round > 0) continue;
        for (Arm& arm : arms) {  // memory is touched for the first time, and the drafts' times are learned
          arm.seconds.clear();
          arm.token_times.clear();
          arm.cpu_seconds.clear();
          arm.first = arm.core.stats();
        }
      }
    }
    for (Arm& arm : arms) report(arm, arms[0], batch, options, subject);
  }
  return 0;
}

}  // namespace calandra::apps

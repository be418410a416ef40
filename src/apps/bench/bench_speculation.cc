// `calandra bench throughput --compare-speculation`: the same requests without drafts and with them, in turns within
// one run, since a machine's speed changes from minute to minute. Their tokens must be equal.
//
// Two engines that are alike differ by up to a percent, by where their memory lies, and that stays the same for as long
// as they live. So all of them are made anew several times, and the interval is that of the mean over these sets. A
// second engine without drafts shows what such intervals are worth: its ratio is 1.
#include <algorithm>
#include <array>
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

// Means over the rounds of one set of engines, of logarithms of seconds.
struct Logarithms {
  double wall = 0;
  double cpu = 0;         // of all threads; the same, but for what other programs take
  double token_time = 0;  // mean time per output token
};

// One way of drafting, and what was measured of it.
struct Way {
  std::string name;
  Options options;
  std::vector<Logarithms> sets = {};
  double seconds = 0;  // of all rounds
  int64_t steps = 0, draft_tokens = 0, accepted_tokens = 0;
};

// An engine for it.
struct Arm {
  Arm(Way& way, const BenchSubject& subject, const Options& options, const Sizes& sizes)
      : way(way),
        engine(subject, options, sizes),
        core(engine.runner, subject.loaded.tokenizer ? &*subject.loaded.tokenizer : nullptr, engine.setup.options) {
    core.warm_up();  // as a server is before its first request
  }

  Way& way;
  BenchEngine engine;
  EngineCore core;
};

// How many times faster than the first way: the geometric mean over the sets, and its 95 % confidence interval.
struct Ratio {
  double mean = 1, low = 1, high = 1;
};
Ratio ratio_of(const Way& plain, const Way& with, double Logarithms::*time) {
  // Quantiles of Student's t for 1, 2, ... degrees of freedom; more have that of the last, which is wider than theirs.
  constexpr auto kQuantiles = std::to_array({12.71, 4.30, 3.18, 2.78, 2.57, 2.45, 2.36, 2.31, 2.26, 2.23});
  const size_t n = plain.sets.size();
  const auto count = static_cast<double>(n);
  const auto difference = [&](size_t i) { return plain.sets[i].*time - with.sets[i].*time; };
  double sum = 0, squares = 0;
  for (size_t i = 0; i < n; ++i) sum += difference(i);
  for (size_t i = 0; i < n; ++i) squares += std::pow(difference(i) - sum / count, 2);
  const double spread = kQuantiles[std::min(n - 1, kQuantiles.size()) - 1] * std::sqrt(squares / (count - 1) / count);
  return {std::exp(sum / count), std::exp(sum / count - spread), std::exp(sum / count + spread)};
}

// Geometric mean over the sets, in milliseconds.
double tpot_ms(const Way& way) {
  double sum = 0;
  for (const Logarithms& set : way.sets) sum += set.token_time;
  return std::exp(sum / static_cast<double>(way.sets.size())) * 1e3;
}

// One answer of every sequence. `rounds`: how many count alike; 0: this one does not count.
void run_round(Arm& arm, std::span<const BenchConversation> prompts, const Request& request, int64_t rounds,
               const std::function<void(Request&)>& change, std::vector<std::vector<int32_t>>& answers) {
  const EngineStats stats = arm.core.stats();
  const std::clock_t before = std::clock();
  const LoadTimes times = run_load(arm.core, prompts, std::ssize(prompts), request, change);
  const double cpu_seconds = static_cast<double>(std::clock() - before) / CLOCKS_PER_SEC;
  const LoadSummary summary(times);
  if (summary.failed > 0) throw LoadError(fmt::format("{} requests failed", summary.failed));
  for (size_t i = 0; i < times.requests.size(); ++i) {
    if (answers.size() == i) answers.push_back(times.requests[i].answer);
    if (answers[i] != times.requests[i].answer)
      throw LoadError(fmt::format("prompt {} has another answer with {}: drafts changed a token", i, arm.way.name));
  }
  if (rounds == 0) return;
  Logarithms& set = arm.way.sets.back();
  set.wall += std::log(times.seconds) / static_cast<double>(rounds);
  set.cpu += std::log(cpu_seconds) / static_cast<double>(rounds);
  set.token_time += std::log(summary.tpot.mean) / static_cast<double>(rounds);
  arm.way.seconds += times.seconds;
  arm.way.steps += arm.core.stats().steps - stats.steps;
  arm.way.draft_tokens += arm.core.stats().draft_tokens - stats.draft_tokens;
  arm.way.accepted_tokens += arm.core.stats().accepted_tokens - stats.accepted_tokens;
}

// Rounds with one set of engines after the other.
void measure(std::vector<Way>& ways, int64_t batch, const Options& options, BenchSubject& subject) {
  const int64_t rounds = options.load.rounds, engines = options.load.engines;
  ProgressBar bar("comparing", engines * rounds, "rounds");
  for (int64_t set = 0; set < engines; ++set) {
    std::deque<Arm> arms;
    for (size_t i = 0; i < ways.size(); ++i) {
      Way& way = ways[(static_cast<size_t>(set) + i) % ways.size()];
      way.sets.emplace_back();
      // As many states as one round keeps: memory that is touched for the first time, and is more of it with drafts,
      // would be measured as well.
      Options flags = way.options;
      if (!flags.model.num_state_slots) flags.model.num_state_slots = kSlotsOfSequence * batch + 1;
      arms.emplace_back(way, subject, flags, Sizes{batch, options.input_len + options.output_len});
    }
    std::function<void(Request&)> script;
    if (!options.load.synthetic_acceptance.empty())
      script = [&model = arms[0].engine.model](Request& request) { model.script(request); };
    // The first round does not count: memory is touched for the first time, and the drafts' times are learned.
    for (int64_t round = 0; round <= rounds; ++round) {
      std::vector<BenchConversation> prompts(static_cast<size_t>(batch));
      for (BenchConversation& prompt : prompts) prompt.turns = {subject.prompts.take(options.input_len)};
      std::vector<std::vector<int32_t>> answers;
      const auto order = static_cast<size_t>(set * rounds + round);
      for (size_t i = 0; i < arms.size(); ++i) {
        const size_t at = order % 2 == 0 ? i : arms.size() - 1 - i;  // each behind each other as often
        run_round(arms[(order / 2 + at) % arms.size()], prompts, subject.request, round == 0 ? 0 : rounds, script,
                  answers);
      }
      bar.update(set * rounds + round);
    }
  }
}

void report(const Way& way, const Way& plain, int64_t batch, const Options& options, const BenchSubject& subject) {
  const Ratio wall = ratio_of(plain, way, &Logarithms::wall), tokens = ratio_of(plain, way, &Logarithms::token_time),
              cpu = ratio_of(plain, way, &Logarithms::cpu);
  const int64_t rounds = options.load.rounds * options.load.engines;
  const double speed = static_cast<double>(rounds * batch * options.output_len) / way.seconds;
  if (options.json) {
    print_json(json::object{{"model", subject.name},
                            {"backend", subject.loaded.backend->name()},
                            {"threads", thread_count(options.model)},
                            {"batch_size", batch},
                            {"input_len", options.input_len},
                            {"output_len", options.output_len},
                            {"engines", options.load.engines},
                            {"rounds", options.load.rounds},
                            {"drafts", way.name},
                            {"output_throughput", speed},
                            {"speedup", wall.mean},
                            {"speedup_low", wall.low},
                            {"speedup_high", wall.high},
                            {"tpot_ms", tpot_ms(way)},
                            {"tpot_speedup", tokens.mean},
                            {"tpot_speedup_low", tokens.low},
                            {"tpot_speedup_high", tokens.high},
                            {"cpu_speedup", cpu.mean},
                            {"cpu_speedup_low", cpu.low},
                            {"cpu_speedup_high", cpu.high},
                            {"steps", way.steps},
                            {"draft_tokens", way.draft_tokens},
                            {"accepted_tokens", way.accepted_tokens}});
    return;
  }
  put("  {:>5}  {:<10} {:>9.1f} tok/s  {:.3f}x ({:.3f} to {:.3f})  TPOT {:.3f} ms, {:.3f}x ({:.3f} to {:.3f})  "
      "CPU {:.3f}x ({:.3f} to {:.3f})  {} steps, {} of {} drafts\n",
      batch, way.name, speed, wall.mean, wall.low, wall.high, tpot_ms(way), tokens.mean, tokens.low, tokens.high,
      cpu.mean, cpu.low, cpu.high, way.steps, way.accepted_tokens, way.draft_tokens);
  flush_output();
}

std::vector<Way> ways_of(const Options& options) {
  Options plain = options;
  plain.engine.speculative.reset();
  std::vector<Way> ways = {
      {"none", plain}, {"none again", plain}, {options.engine.speculative->adaptive ? "adaptive" : "given", options}};
  for (const int64_t k : options.load.fixed_drafts) {
    Options& fixed = ways.emplace_back(fmt::format("fixed {}", k), options).options;
    fixed.engine.speculative->num_speculative_tokens = static_cast<int>(k);
    fixed.engine.speculative->adaptive = false;
  }
  return ways;
}

}  // namespace

int compare_speculation(const Options& options, BenchSubject& subject) {
  std::vector<int64_t> batches = options.load.max_concurrency;
  if (batches.empty()) batches = {1, 2, 4, 8, 16};
  const std::vector<Way> ways = ways_of(options);
  if (!options.json)
    put("{} on {}, {} threads, {}; {} + {} tokens, {} rounds in turns with each of {} sets of engines; times faster "
        "than none, mean and 95 % interval\n  batch  drafts\n",
        subject.name, subject.loaded.backend->name(), thread_count(options.model),
        name_of(subject.loaded.model->dtype()), options.input_len, options.output_len, options.load.rounds,
        options.load.engines);
  for (const int64_t batch : batches) {
    std::vector<Way> measured = ways;
    measure(measured, batch, options, subject);
    for (const Way& way : measured) report(way, measured[0], batch, options, subject);
  }
  return 0;
}

}  // namespace calandra::apps

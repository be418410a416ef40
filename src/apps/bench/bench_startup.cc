// `calandra bench startup`: from the start of the process to the first token, phase by phase, beside the least that
// reading the files and bringing them to the device can take.
#include <time.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <fstream>
#include <iterator>
#include <sstream>
#include <thread>

#include "apps/bench/probe.h"
#include "apps/engine_setup.h"
#include "apps/output.h"
#include "apps/stopwatch.h"
#include "apps/verbs.h"
#include "base/progress.h"

namespace calandra::apps {
namespace {

constexpr int64_t kUsualSequences = 32;  // as `serve`
constexpr int64_t kUsualTokens = 32768;
constexpr int64_t kProbedBytes = int64_t{4} << 30;  // of the files
constexpr int64_t kProbePiece = int64_t{4} << 20;
constexpr size_t kCopiedBytes = size_t{256} << 20;

// Since the process began, to a hundredth; 0 where /proc does not tell.
double process_seconds() {
  std::ifstream file("/proc/self/stat");
  std::string stat(std::istreambuf_iterator<char>(file), {});
  const size_t name_end = stat.rfind(')');
  if (name_end == std::string::npos) return 0;
  std::istringstream fields(stat.substr(name_end + 1));
  std::string field;
  for (int i = 3; i <= 22 && fields >> field; ++i) {
  }
  timespec now{};
  if (!fields || clock_gettime(CLOCK_BOOTTIME, &now) != 0) return 0;
  return static_cast<double>(now.tv_sec) + 1e-9 * static_cast<double>(now.tv_nsec) -
         std::stod(field) / static_cast<double>(sysconf(_SC_CLK_TCK));
}

// The first gigabytes of the files by all threads at once, into the memory that loading reads them into.
double probe_files(Backend& backend, const WeightFiles& files, int threads) {
  struct Part {
    const SafetensorsFile* file;
    const SafetensorsFile::Entry* entry;
    int64_t begin, bytes;
  };
  std::vector<Part> parts;
  int64_t total = 0;
  for (const SafetensorsFile& file : files.files())
    for (const SafetensorsFile::Entry& entry : file.entries())
      for (int64_t begin = 0; begin < entry.bytes && total < kProbedBytes; begin += kProbePiece) {
        parts.push_back({&file, &entry, begin, std::min(kProbePiece, entry.bytes - begin)});
        total += parts.back().bytes;
      }
  std::vector<Buffer> memory;
  for (int i = 0; i < threads; ++i) memory.push_back(backend.allocate_host(static_cast<size_t>(kProbePiece)));
  std::atomic<size_t> next{0};
  Stopwatch watch;
  {
    std::vector<std::jthread> team;
    for (const Buffer& to : memory)
      team.emplace_back([&parts, &next, &to] {
        for (size_t i = next++; i < parts.size(); i = next++)
          parts[i].file->read(*parts[i].entry, parts[i].begin, parts[i].bytes, to.data());
      });
  }
  return static_cast<double>(total) / watch.lap();
}

// To the device, the best of a few; 0 without one.
double probe_copies(Backend& backend) {
  if (backend.device().kind == DeviceKind::kCpu) return 0;
  const Buffer from = backend.allocate_host(kCopiedBytes), to = backend.allocate(kCopiedBytes);
  double best = 0;
  for (int i = 0; i < 4; ++i) {
    Stopwatch watch;
    backend.copy_bytes(to.data(), from.data(), kCopiedBytes);
    best = std::max(best, static_cast<double>(kCopiedBytes) / watch.lap());
  }
  return best;
}

int64_t bytes_of(const WeightFiles& files) {
  int64_t bytes = 0;
  for (const SafetensorsFile& file : files.files())
    for (const SafetensorsFile::Entry& entry : file.entries()) bytes += entry.bytes;
  return bytes;
}

std::vector<int32_t> prompt_of(int64_t tokens, int64_t vocab) {
  std::vector<int32_t> ids;
  for (int64_t i = 0; i < tokens; ++i) ids.push_back(static_cast<int32_t>((i * 7919 + 17) % vocab));
  return ids;
}

double first_token(EngineCore& engine, std::vector<int32_t> prompt) {
  Request request;
  request.prompt_token_ids = std::move(prompt);
  request.params.max_tokens = 1;
  request.params.ignore_eos = true;
  Stopwatch watch;
  engine.run({request});
  return watch.lap();
}

struct Phase {
  const char* name;
  double seconds;
  int64_t bytes = 0;
};

}  // namespace

int bench_startup(const Options& options) {
  std::vector<Phase> phases{{"process", process_seconds()}};
  const LoadedModel loaded = load_for_engine(options, /*vision=*/false);
  const int64_t file_bytes = loaded.checkpoint != nullptr ? bytes_of(*loaded.checkpoint) : 0;
  const LoadSeconds& load = loaded.load_seconds;
  phases.push_back({"config", load.config});
  phases.push_back({"backend", load.backend});
  phases.push_back({"model", load.model});
  phases.push_back({"weights", load.weights, file_bytes > 0 ? file_bytes : loaded.store->summary().packed_bytes});
  phases.push_back({"tokenizer", load.tokenizer});

  Stopwatch watch;
  const int64_t longest = std::min(kUsualTokens, loaded.model->max_position_embeddings());
  const EngineSetup setup = engine_setup(loaded, options,
                                         {.usual = {kUsualSequences, options.model.max_model_len.value_or(longest)},
                                          .least = {1, 1},
                                          .prefix_caching = true});
  ModelRunner runner(*loaded.model, *loaded.backend, setup.limits);
  EngineCore engine(runner, loaded.tokenizer ? &*loaded.tokenizer : nullptr, setup.options);
  phases.push_back({"memory", watch.lap(), runner.memory().total()});
  first_token(engine, {0, 1});
  engine.warm_up();
  phases.push_back({"warm-up", watch.lap()});
  double ready = 0;
  for (const Phase& phase : phases) ready += phase.seconds;
  phases.push_back({"first token", first_token(engine, prompt_of(options.input_len, loaded.model->vocab_size()))});

  const int threads = thread_count(options.model);
  const double read = file_bytes > 0 ? probe_files(*loaded.backend, *loaded.checkpoint, threads) : 0;
  const double copied = probe_copies(*loaded.backend);
  const double slower = copied > 0 ? std::min(read, copied) : read;
  const double floor = file_bytes > 0 ? static_cast<double>(file_bytes) / slower : 0;
  const double all = ready + phases.back().seconds;
  const std::string model = options.model.shape.empty() ? loaded.folder.string() : options.model.shape;
  if (options.json) {
    json::array rows;
    for (const Phase& phase : phases)
      rows.push_back({{"phase", phase.name}, {"seconds", phase.seconds}, {"bytes", phase.bytes}});
    print_json(json::object{{"model", model},
                            {"backend", loaded.backend->name()},
                            {"threads", threads},
                            {"file_bytes", file_bytes},
                            {"phases", std::move(rows)},
                            {"recorded_steps", runner.recorded_steps()},
                            {"ready_s", ready},
                            {"input_len", options.input_len},
                            {"first_token_s", all},
                            {"probe_file_bytes_per_s", read},
                            {"probe_copy_bytes_per_s", copied},
                            {"floor_s", floor},
                            {"weights_over_floor", floor > 0 ? json::value(load.weights / floor) : json::value()},
                            {"first_token_over_floor", floor > 0 ? json::value(all / floor) : json::value()}});
    return 0;
  }
  put("{} on {}, {} threads; first token after a prompt of {}\n", model, loaded.backend->name(), threads,
      options.input_len);
  double so_far = 0;
  for (const Phase& phase : phases) {
    so_far += phase.seconds;
    put("  {:<12} {:>8.3f} s  {:>8.3f} s{}\n", phase.name, phase.seconds, so_far,
        phase.bytes > 0 ? fmt::format("  {}, {:.2f} GB/s", format_bytes(static_cast<double>(phase.bytes)),
                                      static_cast<double>(phase.bytes) / phase.seconds * 1e-9)
                        : "");
    if (std::string_view(phase.name) == "warm-up")
      put("  {:<12} {:>21.3f} s  {} steps recorded\n", "ready", so_far, runner.recorded_steps());
  }
  if (file_bytes == 0) return 0;
  put("  probe        files {:.2f} GB/s{}\n", read * 1e-9,
      copied > 0 ? fmt::format(", copies to the device {:.2f} GB/s", copied * 1e-9) : "");
  put("  floor        {:.3f} s for {}; weights took {:.2f} times as long, the first token {:.2f} times\n", floor,
      format_bytes(static_cast<double>(file_bytes)), load.weights / floor, all / floor);
  return 0;
}

}  // namespace calandra::apps

#include "apps/loaded_model.h"

#include <fmt/format.h>
#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <limits>

#include "apps/model_folder.h"
#include "backends/cpu/cpu_backend.h"
#include "backends/reference/reference.h"
#include "base/cpu_topology.h"
#include "base/error.h"
#include "base/log.h"
#include "base/progress.h"

namespace calandra::apps {
namespace {

namespace fs = std::filesystem;

// --hf-overrides: objects are merged, everything else is replaced.
void merge(json::object& into, const json::object& from) {
  for (const auto& member : from) {
    json::value* old = into.if_contains(member.key());
    if (old != nullptr && old->is_object() && member.value().is_object()) {
      merge(old->get_object(), member.value().get_object());
    } else {
      into[member.key()] = member.value();
    }
  }
}

// Overrides are written flat, also for configs that keep the language model's keys in text_config: what the top level
// does not have goes there.
void override_config(json::object& config, const json::object& overrides) {
  for (const auto& [key, value] : overrides) {
    json::value* text = config.if_contains("text_config");  // a key that is added moves it
    const bool at_top = text == nullptr || !text->is_object() || config.contains(key) || key == "quantization_config";
    merge(at_top ? config : text->get_object(), {{key, value}});
  }
}

json::object read_object(const fs::path& file) {
  json::value root = read_json_file(file);
  if (!root.is_object()) throw LoadError(file.string() + " must hold a JSON object");
  return std::move(root.get_object());
}

void add_ids(std::vector<int32_t>& ids, const json::value* value) {
  if (value == nullptr) return;
  if (value->is_array()) {
    for (const json::value& id : value->get_array()) add_ids(ids, &id);
  } else if (value->is_int64()) {
    const int64_t id = value->get_int64();
    if (id < 0 || id > std::numeric_limits<int32_t>::max())
      throw LoadError(fmt::format("generation_config.json: eos_token_id {} is no token id", id));
    if (std::find(ids.begin(), ids.end(), id) == ids.end()) ids.push_back(static_cast<int32_t>(id));
  }
}

void cut_layers(json::object& config, int64_t layers) {
  json::value* nested = config.if_contains("text_config");
  json::object& text = nested != nullptr && nested->is_object() ? nested->get_object() : config;
  text["num_hidden_layers"] = layers;
  if (json::value* types = text.if_contains("layer_types"); types != nullptr && types->is_array())
    types->get_array().resize(std::min<size_t>(layers, types->get_array().size()));
}

void check_longest(const ModelOptions& options, const CausalLM& model) {
  if (options.max_model_len && *options.max_model_len > model.max_position_embeddings())
    throw LoadError(fmt::format("--max-model-len {} is above the model's max_position_embeddings {}",
                                *options.max_model_len, model.max_position_embeddings()));
}

constexpr const char* kAdvice =
    "lower --max-num-seqs, --max-model-len, --max-num-batched-tokens, --num-gpu-blocks-override or --num-state-slots";

void check_fit(const ModelOptions& options, const RunnerLimits& limits, const Sizes& least) {
  const auto check = [](const char* flag, int64_t given, int64_t needed, const char* what) {
    if (given < needed) throw LoadError(fmt::format("{} {} is too small: {} {} are needed", flag, given, needed, what));
  };
  if (options.max_model_len) check("--max-model-len", limits.max_model_len, least.tokens, "tokens");
  if (limits.max_model_len < least.tokens)
    throw LoadError(fmt::format("{} tokens are more than the model's max_position_embeddings {}", least.tokens,
                                limits.max_model_len));
  check("--max-num-seqs", limits.max_num_seqs, least.sequences, "sequences");
  const int64_t pages_each = (least.tokens + limits.block_size - 1) / limits.block_size;
  if (options.num_gpu_blocks_override)
    check("--num-gpu-blocks-override", limits.num_blocks, least.sequences * pages_each, "pages");
  if (options.num_state_slots) check("--num-state-slots", limits.num_state_slots, least.sequences, "slots");
  const int64_t pages = limits.max_num_seqs * ((limits.max_model_len + limits.block_size - 1) / limits.block_size);
  if (std::max(pages, limits.num_blocks) > std::numeric_limits<int32_t>::max())
    throw LoadError(fmt::format("{} sequences of {} tokens are {} pages, more than can be counted; {}",
                                limits.max_num_seqs, limits.max_model_len, pages, kAdvice));
}

void check_memory(const LoadedModel& loaded, const RunnerLimits& limits) {
  const auto bytes = [](int64_t n) { return format_bytes(static_cast<double>(n)); };
  const int64_t machine = sysconf(_SC_PHYS_PAGES) * sysconf(_SC_PAGESIZE);
  const MemoryPlan plan = ModelRunner::plan_memory(*loaded.model, *loaded.backend, limits);
  if (plan.total() > machine)
    throw LoadError(fmt::format(
        "{} of memory are needed beside the weights ({} for {} pages, {} for {} slots, {} of "
        "workspace), the machine has {}; {}",
        bytes(plan.total()), bytes(plan.pages * plan.page_bytes), plan.pages, bytes(plan.slots * plan.slot_bytes),
        plan.slots, bytes(plan.workspace_bytes), bytes(machine), kAdvice));
}

}  // namespace

std::unique_ptr<Backend> make_backend(const ModelOptions& options) {
  if (options.backend == "reference") return std::make_unique<ReferenceBackend>();
  CpuOptions cpu;
  cpu.threads = static_cast<int>(options.threads);
  if (!options.isa.empty()) {
    cpu.isa = isa_by_name(options.isa);
    if (!machine_has(*cpu.isa)) throw UsageError("--isa " + options.isa + ": this machine does not have it");
  }
  return make_cpu_backend(cpu);
}

int thread_count(const ModelOptions& options) {
  return options.threads > 0 ? static_cast<int>(options.threads) : default_thread_count();
}

LoadedModel load_model(const ModelOptions& options, const ModelParts& parts, bool weights) {
  const auto start = std::chrono::steady_clock::now();
  LoadedModel loaded;
  json::object config;
  std::string config_file;
  if (!options.shape.empty()) {
    config = config_of_shape(options.shape);
    config_file = "--shape " + options.shape;
  } else {
    loaded.folder = find_model_folder(options.model);
    const fs::path file = loaded.folder / "config.json";
    config = read_object(file);
    config_file = file.string();
    if (fs::exists(loaded.folder / "generation_config.json"))
      loaded.generation_config = read_object(loaded.folder / "generation_config.json");
    if (fs::exists(loaded.folder / "tokenizer.json")) loaded.tokenizer = Tokenizer::load(loaded.folder);
  }
  override_config(config, options.hf_overrides);
  if (options.num_hidden_layers) cut_layers(config, *options.num_hidden_layers);

  loaded.config = check_config(std::move(config), config_file);
  loaded.eos_token_ids = loaded.config.eos_token_ids;
  add_ids(loaded.eos_token_ids, loaded.generation_config.if_contains("eos_token_id"));
  if (loaded.tokenizer && loaded.tokenizer->eos_id()) {
    const json::value id = *loaded.tokenizer->eos_id();
    add_ids(loaded.eos_token_ids, &id);
  }
  for (const std::string_view token : loaded.config.end_tokens)
    if (const auto id = loaded.tokenizer ? loaded.tokenizer->token_to_id(token) : std::nullopt) {
      const json::value value = *id;
      add_ids(loaded.eos_token_ids, &value);
    }
  const DType dtype = options.dtype == "auto"       ? loaded.config.dtype
                      : options.dtype == "bfloat16" ? DType::kBF16
                                                    : DType::kF32;

  loaded.backend = make_backend(options);
  const bool dummy = options.load_format == "dummy" || !options.shape.empty();
  if (!dummy) loaded.checkpoint = std::make_unique<Checkpoint>(loaded.folder);
  loaded.store = std::make_unique<WeightStore>(*loaded.backend, loaded.checkpoint.get(), loaded.config.fp8);
  loaded.model = make_model(loaded.config, loaded.store->reader(), *loaded.backend, dtype, parts);
  check_longest(options, *loaded.model);
  if (weights) {
    ProgressBar bar(dummy ? "making random weights" : "loading weights", 0, "B");
    const std::vector<UnusedTensors> unused = unused_tensors(loaded.config, parts);
    loaded.store->load(unused, thread_count(options), [&](int64_t done, int64_t total) { bar.update(done, total); });
  }
  loaded.load_seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
  return loaded;
}

Tokenizer load_tokenizer(const ModelOptions& options) { return Tokenizer::load(find_model_folder(options.model)); }

RunnerLimits planned_limits(const LoadedModel& loaded, const ModelOptions& options, const Sizes& usual,
                            const Sizes& least) {
  RunnerLimits limits;
  limits.max_num_seqs = options.max_num_seqs.value_or(usual.sequences);
  limits.max_model_len =
      options.max_model_len.value_or(std::min(usual.tokens, loaded.model->max_position_embeddings()));
  limits.max_num_batched_tokens =
      std::min(options.max_num_batched_tokens.value_or(512), limits.max_model_len * limits.max_num_seqs);
#ifdef CALANDRA_HOSTILE
  limits.block_size = options.block_size.value_or(1);
#else
  limits.block_size = options.block_size.value_or(16);
#endif
  limits.num_blocks = options.num_gpu_blocks_override.value_or(0);
  limits.num_state_slots = options.num_state_slots.value_or(0);
  check_fit(options, limits, least);
  return limits;
}

RunnerLimits runner_limits(const LoadedModel& loaded, const ModelOptions& options, const Sizes& usual,
                           const Sizes& least) {
  const RunnerLimits limits = planned_limits(loaded, options, usual, least);
  check_memory(loaded, limits);
  return limits;
}

}  // namespace calandra::apps

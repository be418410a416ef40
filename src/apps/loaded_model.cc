#include "apps/loaded_model.h"

#include <fmt/format.h>

#include <algorithm>
#include <chrono>
#include <thread>

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
    const auto id = static_cast<int32_t>(value->get_int64());
    if (std::find(ids.begin(), ids.end(), id) == ids.end()) ids.push_back(id);
  }
}

void cut_layers(json::object& config, int64_t layers) {
  json::object& text = config.contains("text_config") ? config["text_config"].as_object() : config;
  text["num_hidden_layers"] = layers;
  if (json::value* types = text.if_contains("layer_types"); types != nullptr && types->is_array())
    types->get_array().resize(std::min<size_t>(layers, types->get_array().size()));
}

}  // namespace

std::unique_ptr<Backend> make_backend(const ModelOptions& options) {
  if (options.backend == "reference") return std::make_unique<ReferenceBackend>();
  CpuOptions cpu;
  cpu.threads = options.threads;
  if (!options.isa.empty()) {
    cpu.isa = isa_by_name(options.isa);
    if (!machine_has(*cpu.isa)) throw UsageError("--isa " + options.isa + ": this machine does not have it");
  }
  return make_cpu_backend(cpu);
}

LoadedModel load_model(const ModelOptions& options, const ModelParts& parts, bool weights) {
  const auto start = std::chrono::steady_clock::now();
  LoadedModel loaded;
  json::object config;
  std::string config_file;
  if (!options.shape.empty()) {
    if (!options.model.empty()) throw UsageError("give MODEL or --shape, not both");
    if (weights && options.load_format != "dummy")
      throw UsageError("--shape has no weight files: add --load-format dummy");
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
  if (!options.hf_overrides.empty()) {
    const json::value overrides = parse_json(options.hf_overrides, "--hf-overrides");
    if (!overrides.is_object()) throw UsageError("--hf-overrides must be a JSON object");
    merge(config, overrides.get_object());
  }
  if (options.num_hidden_layers) cut_layers(config, *options.num_hidden_layers);

  loaded.config = check_config(std::move(config), config_file);
  loaded.eos_token_ids = loaded.config.eos_token_ids;
  add_ids(loaded.eos_token_ids, loaded.generation_config.if_contains("eos_token_id"));
  if (loaded.tokenizer && loaded.tokenizer->eos_id()) {
    const json::value id = *loaded.tokenizer->eos_id();
    add_ids(loaded.eos_token_ids, &id);
  }
  const DType dtype = options.dtype == "auto"       ? loaded.config.dtype
                      : options.dtype == "bfloat16" ? DType::kBF16
                                                    : DType::kF32;

  loaded.backend = make_backend(options);
  const bool dummy = options.load_format == "dummy" || !options.shape.empty();
  if (!dummy) loaded.checkpoint = std::make_unique<Checkpoint>(loaded.folder);
  loaded.store = std::make_unique<WeightStore>(*loaded.backend, loaded.checkpoint.get(), loaded.config.fp8);
  loaded.model = make_model(loaded.config, loaded.store->reader(), *loaded.backend, dtype, parts);
  if (weights) {
    const int threads = options.threads > 0 ? options.threads : default_thread_count();
    ProgressBar bar(dummy ? "making random weights" : "loading weights", 0, "B");
    const std::vector<UnusedTensors> unused = unused_tensors(loaded.config, parts);
    loaded.store->load(unused, threads, [&](int64_t done, int64_t total) { bar.update(done, total); });
  }
  loaded.load_seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
  return loaded;
}

Tokenizer load_tokenizer(const ModelOptions& options) { return Tokenizer::load(find_model_folder(options.model)); }

RunnerLimits runner_limits(const ModelOptions& options, const CausalLM& model, int64_t sequences, int64_t model_len) {
  RunnerLimits limits;
  limits.max_num_seqs = options.max_num_seqs.value_or(sequences);
  limits.max_model_len = options.max_model_len.value_or(std::min(model_len, model.max_position_embeddings()));
  if (limits.max_model_len > model.max_position_embeddings())
    throw UsageError(fmt::format("--max-model-len {} is above the model's {}", limits.max_model_len,
                                 model.max_position_embeddings()));
  limits.max_num_batched_tokens = std::min(options.max_num_batched_tokens.value_or(512),
                                           std::max(limits.max_model_len * limits.max_num_seqs, limits.max_num_seqs));
#ifdef CALANDRA_HOSTILE
  limits.block_size = options.block_size.value_or(1);
#else
  limits.block_size = options.block_size.value_or(16);
#endif
  limits.num_blocks = options.num_gpu_blocks_override.value_or(0);
  limits.num_state_slots = options.num_state_slots.value_or(0);
  return limits;
}

}  // namespace calandra::apps

#include "apps/loaded_model.h"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <future>
#include <limits>
#include <set>

#include "apps/model_folder.h"
#include "apps/stopwatch.h"
#include "backends/cpu/cpu_backend.h"
#include "backends/cuda/plugin_loader.h"
#include "backends/reference/reference.h"
#include "base/cpu_topology.h"
#include "base/error.h"
#include "base/log.h"
#include "base/progress.h"
#include "models/config_fields.h"

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

// What else stands in the place of a model is named.
fs::path config_file_in(const fs::path& folder) {
  const fs::path file = folder / "config.json";
  if (fs::exists(file)) return file;
  if (fs::exists(folder / "adapter_config.json"))
    throw LoadError(folder.string() + " holds a LoRA adapter (adapter_config.json), which is not supported yet");
  for (const auto& entry : fs::directory_iterator(folder))
    if (entry.path().extension() == ".gguf")
      throw LoadError(entry.path().string() +
                      " is in the format GGUF, which is not supported; use the safetensors files");
  throw LoadError(folder.string() + " has no config.json; a model is a folder with config.json and model.safetensors");
}

// Keys of the config that others than the models read.
constexpr std::string_view kOtherKeys[] = {"image_token_id",      "video_token_id", "vision_start_token_id",
                                           "vision_end_token_id", "is_matryoshka",  "matryoshka_dimensions"};

void find_unread(const json::object& overrides, const std::set<std::string, std::less<>>& read,
                 std::vector<std::string>& unread) {
  for (const auto& [key, value] : overrides) {
    const bool other = std::find(std::begin(kOtherKeys), std::end(kOtherKeys), key) != std::end(kOtherKeys);
    if (!other && !read.contains(std::string_view(key)))
      unread.emplace_back(key);
    else if (value.is_object())
      find_unread(value.get_object(), read, unread);
  }
}

// A misspelt override would have no effect.
ModelConfig check_overridden(json::object config, const std::string& file, const json::object& overrides) {
  std::set<std::string, std::less<>> read;
  struct Noting {
    explicit Noting(std::set<std::string, std::less<>>* keys) { ConfigFields::note_keys(keys); }
    ~Noting() { ConfigFields::note_keys(nullptr); }
  };
  const auto checked = [&] {
    const Noting noting(&read);
    return check_config(std::move(config), file);
  };
  ModelConfig result = checked();
  std::vector<std::string> unread;
  find_unread(overrides, read, unread);
  if (!unread.empty())
    log_warning_once("--hf-overrides: nothing reads {}, so it has no effect", fmt::join(unread, ", "));
  return result;
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
  if (const json::value* all = text.if_contains("num_hidden_layers");
      all != nullptr && all->is_int64() && all->get_int64() < layers)
    throw LoadError(fmt::format("--num-hidden-layers {} is above the model's {}", layers, all->get_int64()));
  text["num_hidden_layers"] = layers;
  if (json::value* types = text.if_contains("layer_types"); types != nullptr && types->is_array())
    types->get_array().resize(std::min<size_t>(layers, types->get_array().size()));
}

void check_longest(const ModelOptions& options, const CausalLM& model) {
  if (options.max_model_len && *options.max_model_len > model.max_position_embeddings())
    throw LoadError(fmt::format("--max-model-len {} is above the model's max_position_embeddings {}",
                                *options.max_model_len, model.max_position_embeddings()));
}

// Those of config, generation config and tokenizer.
void set_eos_token_ids(LoadedModel& loaded) {
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
}

std::vector<int32_t> draft_ids(const LoadedModel& loaded, int64_t draft_vocab) {
  const json::object& config = loaded.config.config;
  const json::value* text = config.if_contains("text_config");
  const json::value* rows =
      (text != nullptr && text->is_object() ? text->get_object() : config).if_contains("vocab_size");
  const int64_t V = rows != nullptr && rows->is_int64() ? rows->get_int64() : 0;  // the model's own check says more
  std::vector<int32_t> ids;
  for (int64_t id = 0; id < V; ++id) {
    const auto token = static_cast<int32_t>(id);
    const bool ends =
        std::find(loaded.eos_token_ids.begin(), loaded.eos_token_ids.end(), token) != loaded.eos_token_ids.end();
    if (id < draft_vocab || ends || (loaded.tokenizer && loaded.tokenizer->is_added(token))) ids.push_back(token);
  }
  return ids;
}

}  // namespace

std::unique_ptr<Backend> make_backend(const ModelOptions& options) {
  if (options.backend == "reference") return std::make_unique<ReferenceBackend>();
  if (options.backend == "cuda" || (options.backend == "auto" && options.isa.empty())) {
    OpenedCuda cuda = open_cuda_backend({.enforce_eager = options.enforce_eager,
                                         .deterministic = options.deterministic,
                                         .gives_back = options.can_sleep});
    if (cuda.backend != nullptr) return std::move(cuda.backend);
    if (options.backend == "cuda") throw LoadError("--backend cuda: " + cuda.why_not);
    if (cuda.plugin_found) log_info("running on the CPU: {}", cuda.why_not);
  }
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

LoadedModel load_model(const ModelOptions& options, ModelParts parts, bool weights, int64_t draft_vocab) {
  Stopwatch watch;
  LoadedModel loaded;
  std::future<Tokenizer> tokenizer;
  json::object config;
  std::string config_file;
  if (!options.shape.empty()) {
    config = config_of_shape(options.shape);
    config_file = "--shape " + options.shape;
  } else {
    loaded.folder = find_model_folder(options.model);
    const fs::path file = config_file_in(loaded.folder);
    config = read_object(file);
    config_file = file.string();
    if (fs::exists(loaded.folder / "generation_config.json"))
      loaded.generation_config = read_object(loaded.folder / "generation_config.json");
    if (fs::exists(loaded.folder / "tokenizer.json"))  // takes as long as the weights of a small model
      tokenizer = std::async(std::launch::async, [folder = loaded.folder] { return Tokenizer::load(folder); });
  }
  override_config(config, options.hf_overrides);
  if (options.num_hidden_layers) cut_layers(config, *options.num_hidden_layers);

  loaded.config = check_overridden(std::move(config), config_file, options.hf_overrides);
  const DType dtype = options.dtype == "auto"       ? loaded.config.dtype
                      : options.dtype == "bfloat16" ? DType::kBF16
                                                    : DType::kF32;

  const auto take_tokenizer = [&] {
    if (tokenizer.valid()) loaded.tokenizer = tokenizer.get();
    set_eos_token_ids(loaded);
    loaded.load_seconds.tokenizer += watch.lap();
  };
  loaded.load_seconds.config = watch.lap();

  loaded.backend = make_backend(options);
  loaded.load_seconds.backend = watch.lap();
  if (draft_vocab > 0) {
    take_tokenizer();
    parts.draft_ids = draft_ids(loaded, draft_vocab);
  }
  const bool dummy = options.load_format == "dummy" || !options.shape.empty();
  if (!dummy) loaded.checkpoint = std::make_unique<WeightFiles>(loaded.folder);
  loaded.store = std::make_unique<WeightStore>(*loaded.backend, loaded.checkpoint.get(), loaded.config.fp8);
  loaded.model = make_model(loaded.config, loaded.store->reader(), *loaded.backend, dtype, parts);
  loaded.parts = std::move(parts);
  check_longest(options, *loaded.model);
  loaded.load_seconds.model = watch.lap();
  if (weights) load_weights(loaded, options);
  watch.lap();
  if (draft_vocab == 0) take_tokenizer();
  return loaded;
}

void load_weights(LoadedModel& loaded, const ModelOptions& options) {
  Stopwatch watch;
  if (loaded.parts.drafter) check_drafter(loaded);
  {
    ProgressBar bar(loaded.checkpoint == nullptr ? "making random weights" : "loading weights", 0, "B");
    const std::vector<UnusedTensors> unused = unused_tensors(loaded.config, loaded.parts);
    loaded.store->load(unused, thread_count(options), [&](int64_t done, int64_t total) { bar.update(done, total); });
  }
  loaded.load_seconds.weights = watch.lap();
}

void check_drafter(const LoadedModel& loaded) {
  if (loaded.model->drafter() == nullptr)
    throw LoadError(
        loaded.config.file +
        ": the model has no MTP layers, so it cannot draft; --speculative-config with the method ngram works "
        "without");
}

Tokenizer load_tokenizer(const ModelOptions& options) { return Tokenizer::load(find_model_folder(options.model)); }

}  // namespace calandra::apps

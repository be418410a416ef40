// `calandra inspect`: what a model is and what it takes.
#include <fmt/ranges.h>

#include <optional>

#include "apps/engine_setup.h"
#include "apps/output.h"
#include "apps/verbs.h"
#include "base/error.h"
#include "base/log.h"
#include "base/progress.h"

namespace calandra::apps {
namespace {

std::string bytes(int64_t n) { return format_bytes(static_cast<double>(n)); }

// The model, and what it takes under the given flags.
struct Plan {
  LoadedModel loaded;
  EngineSetup setup;
  MemoryPlan memory;
  WeightStore::Summary weights;
  int64_t scratch;  // of the backend

  int64_t pages() const { return memory.pages * memory.page_bytes; }
  int64_t slots() const { return memory.slots * memory.slot_bytes; }
  int64_t total() const { return weights.packed_bytes + memory.total() + scratch; }
};

Plan plan_of(LoadedModel loaded, const Options& options) {
  Plan plan{std::move(loaded), {}, {}, {}, 0};
  plan.setup = engine_setup(plan.loaded, options, {.usual = {8, 4096}, .least = {1, 1}, .any_memory = true});
  plan.memory = ModelRunner::plan_memory(*plan.loaded.model, *plan.loaded.backend, plan.setup.limits);
  plan.weights = plan.loaded.store->summary();
  plan.scratch = static_cast<int64_t>(plan.loaded.backend->scratch_bytes(plan.weights.columns));
  return plan;
}

LoadedModel load(const Options& options, bool vision) { return load_for_engine(options, vision, /*weights=*/false); }

// What a part of the model adds to the text model when it is loaded too.
struct Addition {
  int64_t parameters, weights, caches, rest;
  int64_t total() const { return weights + caches + rest; }
};

Addition addition(const Plan& with, const Plan& text) {
  const int64_t caches = with.pages() + with.slots() - text.pages() - text.slots();
  const int64_t weights = with.weights.packed_bytes - text.weights.packed_bytes;
  return {with.weights.parameters - text.weights.parameters, weights, caches,
          with.total() - text.total() - weights - caches};
}

// Drafting as --speculative-config '{"method": "mtp"}' does it.
std::optional<Addition> drafter_of(Options options, const Plan& text) {
  options.engine.speculative = SpeculativeConfig{};
  try {
    LoadedModel loaded = load(options, false);
    if (loaded.model->drafter() == nullptr) return std::nullopt;
    return addition(plan_of(std::move(loaded), options), text);
  } catch (const LoadError& error) {  // the config announces draft layers that the checkpoint does not have
    log_warning("{}", error.what());
    return std::nullopt;
  }
}

std::optional<Addition> vision_of(const Options& options, const Plan& text) {
  LoadedModel loaded = load(options, true);
  if (loaded.model->vision() == nullptr) return std::nullopt;
  return addition(plan_of(std::move(loaded), options), text);
}

json::array tensors_of(const WeightFiles& checkpoint) {
  json::array tensors;
  for (const SafetensorsFile& file : checkpoint.files())
    for (const auto& entry : file.entries())
      tensors.push_back({{"name", entry.name},
                         {"dtype", entry.dtype},
                         {"shape", json::array(entry.shape.begin(), entry.shape.end())},
                         {"file", file.path().filename().string()}});
  return tensors;
}

json::value json_of(const std::optional<Addition>& part) {
  if (!part) return nullptr;
  return {{"parameters", part->parameters},
          {"weights", part->weights},
          {"caches", part->caches},
          {"workspace", part->rest},
          {"total", part->total()}};
}

void line(const std::string& name, const std::string& value) { put("  {:<20} {}\n", name, value); }

void part_line(const char* name, const std::optional<Addition>& part) {
  if (!part) return;
  line(name, fmt::format("{} more  ({} parameters: {} of weights, {} of pages and slots, {} of workspace)",
                         bytes(part->total()), format_count(part->parameters), bytes(part->weights),
                         bytes(part->caches), bytes(part->rest)));
}

}  // namespace

int inspect(const Options& given) {
  Options options = given;
  if (!options.model.shape.empty()) options.model.load_format = "dummy";
  const Plan plan = plan_of(load(options, false), options);
  const auto& [loaded, setup, memory, weights, scratch] = plan;
  const RunnerLimits& limits = setup.limits;
  const bool drafts = loaded.model->drafter() != nullptr;
  const std::optional<Addition> drafter = drafts ? std::nullopt : drafter_of(options, plan),
                                vision = vision_of(options, plan);

  if (options.json) {
    json::object facts;
    for (const auto& [name, value] : describe(loaded.config)) facts[name] = value;
    json::object out{{"architecture", loaded.config.architecture},
                     {"config", std::move(facts)},
                     {"backend", loaded.backend->name()},
                     {"dtype", name_of(loaded.model->dtype())},
                     {"parameters", weights.parameters},
                     {"memory",
                      {{"weights", weights.packed_bytes},
                       {"pages", plan.pages()},
                       {"page_bytes", memory.page_bytes},
                       {"num_pages", memory.pages},
                       {"slots", plan.slots()},
                       {"slot_bytes", memory.slot_bytes},
                       {"num_slots", memory.slots},
                       {"workspace", memory.workspace_bytes},
                       {"batch", memory.batch_bytes},
                       {"rings", memory.ring_bytes},
                       {"scratch", scratch},
                       {"total", plan.total()},
                       {"checkpoint_bytes", setup.options.checkpoint_bytes},
                       {"host_checkpoint_bytes", setup.options.host_checkpoint_bytes}}},
                     {"drafter", json_of(drafter)},
                     {"vision", json_of(vision)},
                     {"max_num_seqs", limits.max_num_seqs},
                     {"max_model_len", limits.max_model_len},
                     {"block_size", limits.block_size}};
    if (options.tensors && loaded.checkpoint) out["tensors"] = tensors_of(*loaded.checkpoint);
    print_json(out);
    return 0;
  }

  put("{}\n", loaded.folder.empty() ? loaded.config.file : loaded.folder.string());
  line("architecture", loaded.config.architecture);
  for (const auto& [name, value] : describe(loaded.config)) line(name, value);
  line("parameters", fmt::format("{} ({:.2f} B) of the text model", format_count(weights.parameters),
                                 static_cast<double>(weights.parameters) / 1e9));
  line("activations", fmt::format("{} on the {} backend", name_of(loaded.model->dtype()), loaded.backend->name()));
  put("memory for {} sequences of up to {} tokens, steps of {} tokens\n", limits.max_num_seqs, limits.max_model_len,
      limits.max_num_batched_tokens);
  line("weights", bytes(weights.packed_bytes));
  line("pages", fmt::format("{}  ({} of {} tokens, {} per token)", bytes(plan.pages()), memory.pages, limits.block_size,
                            bytes(memory.page_bytes / limits.block_size)));
  line("slots", fmt::format("{}  ({} of {}: the recurrent state of one sequence, however long)", bytes(plan.slots()),
                            memory.slots, bytes(memory.slot_bytes)));
  line("workspace", bytes(memory.workspace_bytes));
  line("batch", bytes(memory.batch_bytes));
  if (drafts) line("hidden rows", fmt::format("{}  (that wait for the drafter)", bytes(memory.ring_bytes)));
  line("scratch", fmt::format("{}  (of the backend's threads)", bytes(scratch)));
  line("total", bytes(plan.total()));
  if (setup.options.checkpoint_bytes > 0)
    line("kept states",
         fmt::format("at most {}, in slots and pages that are free", bytes(setup.options.checkpoint_bytes)));
  if (setup.options.host_checkpoint_bytes > 0)
    line("", fmt::format("at most {} more in host memory", bytes(setup.options.host_checkpoint_bytes)));
  part_line("with draft layers", drafter);
  part_line("with vision", vision);
  if (options.tensors && loaded.checkpoint) {
    for (const SafetensorsFile& file : loaded.checkpoint->files()) {
      put("{}\n", file.path().filename().string());
      for (const auto& entry : file.entries())
        put("  {:<64} {:>5} [{}]\n", entry.name, entry.dtype, fmt::join(entry.shape, ", "));
    }
  }
  return 0;
}

}  // namespace calandra::apps

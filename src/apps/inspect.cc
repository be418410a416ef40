// `calandra inspect`: what a model is and what it takes.
#include <fmt/ranges.h>

#include <optional>

#include "apps/loaded_model.h"
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
  RunnerLimits limits;
  MemoryPlan memory;
  WeightStore::Summary weights;

  int64_t pages() const { return memory.pages * memory.page_bytes; }
  int64_t slots() const { return memory.slots * memory.slot_bytes; }
  int64_t total() const { return weights.packed_bytes + memory.total(); }
};

Plan plan_of(const ModelOptions& options, const ModelParts& parts) {
  Plan plan{load_model(options, parts, /*weights=*/false), {}, {}, {}};
  plan.limits = planned_limits(plan.loaded, options, {8, 4096}, {1, 1});
  plan.memory = ModelRunner::plan_memory(*plan.loaded.model, *plan.loaded.backend, plan.limits);
  plan.weights = plan.loaded.store->summary();
  return plan;
}

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

std::optional<Addition> drafter_of(const ModelOptions& options, const Plan& text) {
  try {
    const Plan with = plan_of(options, {.drafter = true});
    if (with.loaded.model->drafter() == nullptr) return std::nullopt;
    return addition(with, text);
  } catch (const LoadError& error) {  // the config announces draft layers that the checkpoint does not have
    log_warning("{}", error.what());
    return std::nullopt;
  }
}

std::optional<Addition> vision_of(const ModelOptions& options, const Plan& text) {
  const Plan with = plan_of(options, {.vision = true});
  if (with.loaded.model->vision() == nullptr) return std::nullopt;
  return addition(with, text);
}

json::array tensors_of(const Checkpoint& checkpoint) {
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

int inspect(const Options& options) {
  ModelOptions model_options = options.model;
  if (!model_options.shape.empty()) model_options.load_format = "dummy";
  const Plan plan = plan_of(model_options, {});
  const auto& [loaded, limits, memory, weights] = plan;
  const std::optional<Addition> drafter = drafter_of(model_options, plan), vision = vision_of(model_options, plan);

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
                       {"total", plan.total()}}},
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
  int64_t bytes_per_token = 0;
  for (const CacheSpec& spec : loaded.model->cache_specs()) bytes_per_token += spec.bytes_per_token();
  line("weights", bytes(weights.packed_bytes));
  line("pages", fmt::format("{}  ({} of {} tokens, {} per token)", bytes(plan.pages()), memory.pages, limits.block_size,
                            bytes(bytes_per_token)));
  line("slots", fmt::format("{}  ({} of {}: the recurrent state of one sequence, however long)", bytes(plan.slots()),
                            memory.slots, bytes(memory.slot_bytes)));
  line("workspace", bytes(memory.workspace_bytes));
  line("batch", bytes(memory.batch_bytes));
  line("total", bytes(plan.total()));
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

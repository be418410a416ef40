// `calandra inspect`: what a model is and what it takes.
#include <fmt/format.h>
#include <fmt/ranges.h>

#include <cstdio>

#include "apps/loaded_model.h"
#include "apps/verbs.h"
#include "base/progress.h"

namespace calandra::apps {

int inspect(const Options& options) {
  ModelOptions model_options = options.model;
  model_options.load_format = model_options.shape.empty() ? model_options.load_format : "dummy";
  LoadedModel loaded = load_model(model_options, {}, /*weights=*/false);
  const CausalLM& model = *loaded.model;
  const RunnerLimits limits = runner_limits(options.model, model, 8, 4096);
  const MemoryPlan plan = ModelRunner::plan_memory(model, *loaded.backend, limits);
  const WeightStore::Summary weights = loaded.store->summary();
  int64_t bytes_per_token = 0;
  for (const CacheSpec& spec : model.cache_specs()) bytes_per_token += spec.bytes_per_token();

  if (options.json) {
    json::object facts;
    for (const auto& [name, value] : describe(loaded.config)) facts[name] = value;
    json::object out{{"architecture", loaded.config.architecture},
                     {"config", std::move(facts)},
                     {"backend", loaded.backend->name()},
                     {"dtype", name_of(model.dtype())},
                     {"parameters", weights.parameters},
                     {"memory",
                      {{"weights", weights.packed_bytes},
                       {"pages", plan.pages * plan.page_bytes},
                       {"page_bytes", plan.page_bytes},
                       {"num_pages", plan.pages},
                       {"slots", plan.slots * plan.slot_bytes},
                       {"slot_bytes", plan.slot_bytes},
                       {"num_slots", plan.slots},
                       {"workspace", plan.workspace_bytes},
                       {"batch", plan.batch_bytes},
                       {"total", weights.packed_bytes + plan.total()}}},
                     {"max_num_seqs", limits.max_num_seqs},
                     {"max_model_len", limits.max_model_len},
                     {"block_size", limits.block_size}};
    if (options.tensors && loaded.checkpoint) {
      json::array tensors;
      for (const SafetensorsFile& file : loaded.checkpoint->files())
        for (const auto& entry : file.entries())
          tensors.push_back({{"name", entry.name},
                             {"dtype", entry.dtype},
                             {"shape", json::array(entry.shape.begin(), entry.shape.end())},
                             {"file", file.path().filename().string()}});
      out["tensors"] = std::move(tensors);
    }
    std::puts(to_json(out).c_str());
    return 0;
  }

  fmt::print("{}\n", loaded.folder.empty() ? loaded.config.file : loaded.folder.string());
  const auto line = [](const std::string& name, const std::string& value) { fmt::print("  {:<20} {}\n", name, value); };
  line("architecture", loaded.config.architecture);
  for (const auto& [name, value] : describe(loaded.config)) line(name, value);
  line("parameters", fmt::format("{} ({:.2f} B) of the text model", format_count(weights.parameters),
                                 static_cast<double>(weights.parameters) / 1e9));
  line("activations", fmt::format("{} on the {} backend", name_of(model.dtype()), loaded.backend->name()));
  fmt::print("memory for {} sequences of up to {} tokens, steps of {} tokens\n", limits.max_num_seqs,
             limits.max_model_len, limits.max_num_batched_tokens);
  line("weights", format_bytes(static_cast<double>(weights.packed_bytes)));
  line("pages", fmt::format("{}  ({} of {} tokens, {} per token)",
                            format_bytes(static_cast<double>(plan.pages * plan.page_bytes)), plan.pages,
                            limits.block_size, format_bytes(static_cast<double>(bytes_per_token))));
  line("slots", fmt::format("{}  ({} of {}: the recurrent state of one sequence, however long)",
                            format_bytes(static_cast<double>(plan.slots * plan.slot_bytes)), plan.slots,
                            format_bytes(static_cast<double>(plan.slot_bytes))));
  line("workspace", format_bytes(static_cast<double>(plan.workspace_bytes)));
  line("batch", format_bytes(static_cast<double>(plan.batch_bytes)));
  line("total", format_bytes(static_cast<double>(weights.packed_bytes + plan.total())));
  if (options.tensors && loaded.checkpoint) {
    for (const SafetensorsFile& file : loaded.checkpoint->files()) {
      fmt::print("{}\n", file.path().filename().string());
      for (const auto& entry : file.entries())
        fmt::print("  {:<64} {:>5} [{}]\n", entry.name, entry.dtype, fmt::join(entry.shape, ", "));
    }
  }
  return 0;
}

}  // namespace calandra::apps

// `calandra serve` with a ScriptedModel in the place of the model: everything else is that of the program.
//   scripted_server SCRIPTS.json serve [MODEL] [flags of serve]
// SCRIPTS.json: {"name": "text"} or {"name": {"text": "…", "endless": true}}; marker and texts: scripted_model.h.
// The gate `load` (gate.h) holds up the load, the gate `step` every step.
#include <cstdio>

#include "apps/engine_setup.h"
#include "apps/verbs.h"
#include "base/error.h"
#include "base/json.h"
#include "tests/scripted/gate.h"
#include "tests/scripted/scripted_model.h"

namespace calandra::scripted {
namespace {

std::map<std::string, Script> read_scripts(const char* file) {
  std::map<std::string, Script> scripts;
  const json::value root = read_json_file(file);
  for (const auto& [name, value] : root.as_object()) {
    const bool is_text = value.is_string();
    const json::string& text = is_text ? value.as_string() : value.at("text").as_string();
    scripts[std::string(name)] = {std::string(text), !is_text && value.at("endless").as_bool()};
  }
  return scripts;
}

int serve(int argc, char** argv) {
  const auto options = apps::parse_command_line(argc - 1, argv + 1);
  if (!options || options->verb != apps::Verb::kServe) throw UsageError("scripted_server SCRIPTS.json serve ...");
  const Tokenizer tokenizer = apps::load_tokenizer(options->model);
  return apps::serve(*options, [&] {
    pass_gate("load");
    apps::LoadedModel loaded = apps::load_for_engine(*options, /*vision=*/false);
    if (loaded.eos_token_ids.empty()) throw LoadError("the model has no end token");
    loaded.model = std::make_unique<ScriptedModel>(
        tokenizer, read_scripts(argv[1]),
        ScriptedModel::Shape{loaded.model->vocab_size(), loaded.model->max_position_embeddings(),
                             loaded.eos_token_ids.front(), loaded.model->drafter() != nullptr});
    return loaded;
  });
}

}  // namespace
}  // namespace calandra::scripted

int main(int argc, char** argv) {
  try {
    if (argc < 3) throw calandra::UsageError("scripted_server SCRIPTS.json serve ...");
    return calandra::scripted::serve(argc, argv);
  } catch (const std::exception& error) {
    std::fprintf(stderr, "%s\n", error.what());
    return 1;
  }
}

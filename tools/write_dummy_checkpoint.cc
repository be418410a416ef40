// write_dummy_checkpoint: a model folder of random weights in the shape of a release, for benches of starting
// (`calandra bench startup`) where the release itself cannot be had. Its weights are those that the program makes with
// --load-format dummy, so the shape alone decides what is written; the tokenizer is another model's, of fewer tokens.
#include <fmt/format.h>

#include <cstdio>
#include <fstream>

#include "apps/flag_groups.h"
#include "apps/loaded_model.h"
#include "apps/model_folder.h"
#include "base/error.h"
#include "base/log.h"
#include "base/progress.h"
#include "weights/dummy_checkpoint.h"

namespace calandra::apps {
namespace {

namespace fs = std::filesystem;

constexpr int64_t kShardBytes = 5'000'000'000;  // as releases have them

int write(int argc, char** argv) {
  ModelOptions model;
  std::string folder, tokenizer;
  CLI::App app("Writes a model folder of random weights");
  app.add_option("FOLDER", folder, "Where: a folder that is not there yet, or empty")->required();
  add_shape_flags(&app, model);
  add_object(
      &app, "--hf-overrides", model.hf_overrides,
      R"(Keys of the config: {"quantization_config": {"quant_method": "fp8", "weight_block_size": [128, 128]}})");
  add_text(&app, "--tokenizer", tokenizer, "Model whose tokenizer files are copied (demo:qwen3_5)");
  CLI11_PARSE(app, argc, argv);
  if (model.shape.empty()) throw UsageError("--shape says which release");

  const fs::path to = folder;
  if (fs::exists(to) && !(fs::is_directory(to) && fs::is_empty(to)))
    throw LoadError(to.string() + " exists and is no empty folder");
  fs::create_directories(to);
  model.backend = "reference";
  // Models without MTP layers or a vision tower leave those parts out.
  const LoadedModel loaded = load_model(model, {.drafter = true, .vision = true}, /*weights=*/false);
  const fs::path words = find_model_folder(tokenizer);
  for (const char* file : {"tokenizer.json", "tokenizer_config.json", "chat_template.jinja", "preprocessor_config.json",
                           "video_preprocessor_config.json"})
    if (fs::exists(words / file)) fs::copy_file(words / file, to / file);
  std::ofstream config(to / "config.json");
  config << json::serialize(loaded.config.config) << '\n';
  config.close();
  if (!config) throw LoadError((to / "config.json").string() + ": cannot be written");
  ProgressBar bar("writing", 0, "B");
  write_dummy_checkpoint(to, loaded.store->stored_tensors(), kShardBytes, thread_count(model),
                         [&](int64_t done, int64_t total) { bar.update(done, total); });
  return 0;
}

}  // namespace
}  // namespace calandra::apps

int main(int argc, char** argv) {
  try {
    return calandra::apps::write(argc, argv);
  } catch (const std::exception& error) {
    calandra::log_error("{}", error.what());
    return 1;
  }
}

// `calandra serve` with a HashModel in the place of the model: any mix-up of pages, slots or rows changes an answer,
// and a step costs next to nothing, so that what is left is the server. Everything else is that of the program.
//   hash_server serve [MODEL] [flags of serve]
#include <cstdio>

#include "apps/engine_setup.h"
#include "apps/verbs.h"
#include "base/error.h"
#include "tests/hashsim/hash_model.h"

namespace calandra::hashsim {
namespace {

int serve(int argc, char** argv) {
  const auto options = apps::parse_command_line(argc, argv);
  if (!options || options->verb != apps::Verb::kServe) throw UsageError("hash_server serve ...");
  return apps::serve(*options, [&options] {
    apps::LoadedModel loaded = apps::load_for_engine(*options, /*vision=*/true);
    HashModelConfig config;
    config.vocab_size = loaded.model->vocab_size();
    config.max_position_embeddings = loaded.model->max_position_embeddings();
    config.mtp_layers = loaded.model->drafter() == nullptr ? 0 : 1;
    if (const VisionEncoder* vision = loaded.model->vision()) {
      config.vision = true;
      config.patch_size = vision->patch_size();
      config.temporal_patch_size = vision->temporal_patch_size();
    }
    config.step_cost.weight_bytes = config.draft_cost.weight_bytes = 1e6;
    loaded.model = std::make_unique<HashModel>(config);
    return loaded;
  });
}

}  // namespace
}  // namespace calandra::hashsim

int main(int argc, char** argv) {
  try {
    return calandra::hashsim::serve(argc, argv);
  } catch (const std::exception& error) {
    std::fprintf(stderr, "%s\n", error.what());
    return 1;
  }
}

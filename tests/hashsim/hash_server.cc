// `calandra serve` with a HashModel in the place of the model: any mix-up of pages, slots or rows changes an answer,
// and a step costs next to nothing, so that what is left is the server. Everything else is that of the program.
//   hash_server serve [MODEL] [flags of serve]
// With HASH_SERVER_STEPS=FILE each step begins with a line there: the clock (monotonic, in seconds), and of each
// sequence LANE:INDEX:TOKEN, the place in the sequence of its first row and that row's token. With
// HASH_SERVER_STEP_SECONDS=S it sleeps until S seconds are over since the last began, as the processor does while a
// device computes.
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <fstream>
#include <memory>
#include <thread>

#include "apps/engine_setup.h"
#include "apps/verbs.h"
#include "base/error.h"
#include "tests/hashsim/hash_model.h"

namespace calandra::hashsim {
namespace {

// What HASH_SERVER_STEPS and HASH_SERVER_STEP_SECONDS ask for.
class Steps {
 public:
  Steps() {
    if (const char* path = std::getenv("HASH_SERVER_STEPS")) file_.open(path);
    if (const char* seconds = std::getenv("HASH_SERVER_STEP_SECONDS")) seconds_ = Seconds(std::atof(seconds));
  }

  // The tokens it reads were handed to the server at the end of the last step.
  void begin(const Batch& batch) {
    const auto now = std::chrono::steady_clock::now();
    if (file_.is_open()) write(now.time_since_epoch(), batch);
    std::this_thread::sleep_until(last_ + std::chrono::duration_cast<std::chrono::nanoseconds>(seconds_));
    last_ = std::chrono::steady_clock::now();
  }

 private:
  using Seconds = std::chrono::duration<double>;

  void write(Seconds clock, const Batch& batch) {
    file_ << std::fixed << clock.count();
    for (int64_t b = 0; b < batch.sequences(); ++b) {
      const int32_t row = batch.query_start.as<int32_t>()[b];
      file_ << ' ' << batch.lane.as<int32_t>()[b] << ':' << batch.token_index.as<int32_t>()[row] << ':'
            << batch.token_ids.as<int32_t>()[row];
    }
    file_ << std::endl;
  }

  std::ofstream file_;
  Seconds seconds_{0};
  std::chrono::steady_clock::time_point last_{};
};

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
    auto model = std::make_unique<HashModel>(config);
    model->before_forward([steps = std::make_shared<Steps>()](const Batch& batch) { steps->begin(batch); });
    loaded.model = std::move(model);
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

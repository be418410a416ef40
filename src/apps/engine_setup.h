// The flags of an engine as its limits and options, for a loaded model.
#pragma once

#include "apps/limits.h"
#include "engine/engine_core.h"

namespace calandra::apps {

// MODEL with the drafter that the flags ask for. Throws LoadError when it has none.
LoadedModel load_for_engine(const Options& options, bool vision, bool weights = true);

// What a verb asks of the engine.
struct EngineUse {
  Sizes usual, least;           // as for planned_limits
  bool prefix_caching = false;  // unless the flags say otherwise
  bool any_memory = false;      // more than the machine has (plans)
};

struct EngineSetup {
  RunnerLimits limits;
  EngineOptions options;
};

// Throws LoadError as runner_limits does.
EngineSetup engine_setup(const LoadedModel& loaded, const Options& options, const EngineUse& use);

}  // namespace calandra::apps

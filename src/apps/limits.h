// What fits into one step and into memory: the flags' limits, checked against the work, the model and the machine.
#pragma once

#include <functional>

#include "apps/loaded_model.h"
#include "engine/model_runner.h"

namespace calandra::apps {

// Sequences at once, and tokens of each.
struct Sizes {
  int64_t sequences = 1;
  int64_t tokens = 1;
};

// The limits that the flags give; `usual` where they are absent, its tokens cut to what the model can. Throws LoadError
// naming the flag when `least` does not fit, or when the model cannot.
RunnerLimits planned_limits(const LoadedModel& loaded, const ModelOptions& options, const Sizes& usual,
                            const Sizes& least);
// The same, when the machine has the memory; else with fewer sequences, and a warning. Throws LoadError, saying how
// much is missing, when not even those of `least` fit.
RunnerLimits runner_limits(const LoadedModel& loaded, const ModelOptions& options, const Sizes& usual,
                           const Sizes& least);

// The same for limits that depend on the number of sequences: the most in [least, most] that fit. `more` bytes are
// taken beside the plan.
RunnerLimits fitting_limits(const LoadedModel& loaded, int64_t least, int64_t most, int64_t more,
                            const std::function<RunnerLimits(int64_t sequences)>& limits_for);

// Bytes of the memory in which the backend keeps weights and caches.
int64_t memory_of(const Backend& backend);

}  // namespace calandra::apps

// How a planted fault is looked for: by all checks of the simulation, or by one kind alone.
#pragma once

#include "tests/hashsim/engine_sim.h"

namespace calandra::hashsim {

inline int32_t* ints(const Tensor& tensor) { return tensor.as<int32_t>(); }

// How many of the seeds report a violation. `fault` makes the options anew for each.
template <class Fault>
int seen(const Fault& fault, int seeds = 150) {
  int reports = 0;
  for (uint64_t seed = 1; seed <= static_cast<uint64_t>(seeds); ++seed) {
    EngineSim sim(seed, fault());
    reports += !sim.run().empty();
  }
  return reports;
}

enum class By { kTokens, kDrafts, kStates, kAll };

inline SimOptions only(By by) {
  SimOptions options;
  if (by == By::kAll) return options;
  options.ownership = false;
  options.tokens = by == By::kTokens;
  options.drafts = by == By::kDrafts;
  options.states = by == By::kStates;
  return options;
}

}  // namespace calandra::hashsim

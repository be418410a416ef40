// What the forms of `bench throughput` have in common.
#pragma once

#include "apps/bench/bench_load.h"
#include "apps/bench/bench_model.h"
#include "apps/bench/probe.h"
#include "apps/engine_setup.h"

namespace calandra::apps {

// A model with its drafter, if the flags ask for one, and what all requests have in common.
struct BenchSubject {
  explicit BenchSubject(const Options& options);

  LoadedModel loaded;
  std::string name;
  PromptSource prompts;
  Request request;  // answers of exactly --output-len tokens
  uint64_t seed;
};

// An engine's limits and options for the flags, and the model it runs.
struct BenchEngine {
  BenchEngine(const BenchSubject& subject, const Options& options, const Sizes& sizes);

  BenchModel model;
  EngineSetup setup;
  ModelRunner runner;
};

// Reads and computes: the mean of two probes. What was not probed bounds nothing.
HardwareSpeed speed_of(const MachineProbe& before, const MachineProbe& after);

// `bench throughput --compare-speculation`.
int compare_speculation(const Options& options, BenchSubject& subject);

}  // namespace calandra::apps

// A server's model asleep: its memory is the system's meanwhile. Levels, modes and tags are vLLM's.
#pragma once

#include <atomic>
#include <optional>

#include "apps/loaded_model.h"
#include "engine/engine.h"

namespace calandra::apps {

class Sleeper {
 public:
  // All must outlive it.
  Sleeper(Engine& engine, LoadedModel& loaded, const ModelOptions& options)
      : engine_(engine), loaded_(loaded), options_(options) {}

  // One thread at a time calls these two; both wait until it is done.
  // Level 1: pages, slots, checkpoints, pictures and the workspace are given back. Level 2: the weights too. Requests
  // that run end (abort) or come to their end first; further ones are refused.
  std::optional<RequestError> sleep(int level, bool abort);
  // Weights are read again where they were given back. Requests are taken when both parts are awake. What fails leaves
  // it asleep.
  std::optional<RequestError> wake_up(bool weights, bool caches);
  // Any thread may ask.
  bool is_sleeping() const { return weights_sleep_ || caches_sleep_; }

 private:
  bool take_back_caches();  // false: the engine has ended. Throws LoadError
  Engine& engine_;
  LoadedModel& loaded_;
  const ModelOptions& options_;
  std::atomic<bool> weights_sleep_ = false, caches_sleep_ = false;
  bool has_weights_ = true;
};

}  // namespace calandra::apps

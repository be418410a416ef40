// StepTimer: how long launches take by the engine's clock. Those that were the first of their shape, or recorded it,
// take longer than the next ones will, and tell nothing.
#pragma once

#include <optional>

#include "engine/clock.h"
#include "engine/model_runner.h"

namespace calandra {

class StepTimer {
 public:
  // Both must outlive it.
  StepTimer(const ModelRunner& runner, const Clock& clock) : runner_(&runner), clock_(&clock) {}

  // Before the first of the launches.
  void launch() {
    first_runs_ = runner_->first_runs();
    start();
  }
  // The device turns to them now: what it did before does not count.
  void start() { begun_ = (*clock_)(); }
  // Seconds since then; nothing when they are no measure of the next ones.
  std::optional<double> seconds() const {
    if (runner_->first_runs() != first_runs_) return std::nullopt;
    return (*clock_)() - begun_;
  }

 private:
  const ModelRunner* runner_;
  const Clock* clock_;
  double begun_ = 0;
  int64_t first_runs_ = 0;
};

}  // namespace calandra

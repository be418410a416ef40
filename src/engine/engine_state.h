// EngineState: what stands where in an engine, for the log when it stands still. Counts alone: nothing that users
// wrote.
#pragma once

#include <string>
#include <vector>

#include "engine/choice.h"

namespace calandra {

struct EngineState {
  static constexpr size_t kMostChoices = 64;  // the oldest ones; those behind them are only counted

  struct One {
    RequestId request = 0;
    int32_t choice = 0;
    Choice::Status status = Choice::Status::kUnborn;
    int64_t prompt = 0, outputs = 0, computed = 0, pages = 0, drafts = 0;
    int32_t slot = -1;  // that it writes
  };
  std::vector<One> choices;
  int64_t steps = 0, running = 0, waiting = 0;              // choices
  int64_t pages = 0, free_pages = 0, checkpoint_pages = 0;  // the last: held by checkpoints alone
  int64_t slots = 0, free_slots = 0, checkpoints = 0;
};

// A line for the whole and one for each choice.
std::string text_of(const EngineState& state);

}  // namespace calandra

#include "engine/engine_state.h"

#include <fmt/format.h>

#include <iterator>

#include "engine/engine_core.h"

namespace calandra {
namespace {

std::string_view name_of(Choice::Status status) {
  switch (status) {
    case Choice::Status::kUnborn:
      return "unborn";
    case Choice::Status::kWaiting:
      return "waiting";
    case Choice::Status::kRunning:
      return "running";
    case Choice::Status::kFinished:
      return "finished";
  }
  return "?";
}

}  // namespace

// Called before every step, so it takes no memory once `to` has some.
void EngineCore::describe(EngineState& to) const {
  to.choices.clear();
  to.choices.reserve(EngineState::kMostChoices);
  for (const auto& [id, state] : requests_) {
    for (const auto& choice : state->choices) {
      if (to.choices.size() == EngineState::kMostChoices) break;
      const Sequence& s = choice->sequence;
      to.choices.push_back({id, s.choice, choice->status, s.prompt_size, s.outputs(), s.computed,
                            std::ssize(s.block_table), std::ssize(choice->drafts), s.slot});
    }
    if (to.choices.size() == EngineState::kMostChoices) break;
  }
  to.steps = stats_.steps;
  to.running = std::ssize(scheduler_->running());
  to.waiting = scheduler_->waiting();
  to.pages = runner_.pages().pages();
  to.free_pages = runner_.pages().free_pages();
  to.checkpoint_pages = runner_.pages().cached_only_pages();
  to.slots = runner_.slots().slots();
  to.free_slots = runner_.slots().free_slots();
  to.checkpoints = cache_ ? cache_->size() : 0;
}

void EngineCore::give_back_memory() {
  CHECK(idle());
  if (cache_) cache_->clear();
  if (encoder_) encoder_->clear();
  runner_.give_back_memory();
}

void EngineCore::take_back_memory() { runner_.take_back_memory(); }

std::string text_of(const EngineState& state) {
  std::string text = fmt::format(
      "step {}: choices {} running, {} waiting; pages {} of {} free, {} of checkpoints; slots {} of {} free; {} "
      "checkpoints",
      state.steps + 1, state.running, state.waiting, state.free_pages, state.pages, state.checkpoint_pages,
      state.free_slots, state.slots, state.checkpoints);
  for (const EngineState::One& one : state.choices)
    fmt::format_to(std::back_inserter(text),
                   "\n  request {} choice {}: {}, prompt {}, answer {}, run {} tokens; {} pages, slot {}, {} drafts",
                   one.request, one.choice, name_of(one.status), one.prompt, one.outputs, one.computed, one.pages,
                   one.slot, one.drafts);
  return text;
}

}  // namespace calandra

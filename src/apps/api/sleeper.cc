#include "apps/api/sleeper.h"

#include <malloc.h>

#include <exception>
#include <memory>

#include "base/error.h"
#include "base/log.h"

namespace calandra::apps {
namespace {

RequestError has_ended() { return {503, "service_unavailable", "", "the server is shutting down"}; }

}  // namespace

std::optional<RequestError> Sleeper::sleep(int level, bool abort) {
  const RequestError refusal{503, "model_asleep", "", "the model is asleep; POST /wake_up wakes it"};
  if (!engine_.pause(refusal, abort)) return has_ended();
  weights_sleep_ = caches_sleep_ = true;
  if (!engine_.between_steps([](EngineCore& core) { core.give_back_memory(); })) return has_ended();
  if (level > 1 && has_weights_) {
    has_weights_ = false;
    loaded_.store->give_back();
  }
  malloc_trim(0);
  log_info("the model is asleep, level {}", level);
  return {};
}

// What was taken back before memory ended goes again.
bool Sleeper::take_back_caches() {
  const auto failure = std::make_shared<std::exception_ptr>();
  const bool done = engine_.between_steps([failure](EngineCore& core) {
    try {
      core.take_back_memory();
    } catch (const LoadError&) {
      *failure = std::current_exception();
      core.give_back_memory();
    }
  });
  if (*failure) std::rethrow_exception(*failure);
  return done;
}

std::optional<RequestError> Sleeper::wake_up(bool weights, bool caches) {
  if (!is_sleeping()) return {};
  try {
    if (weights && !has_weights_) load_weights(loaded_, options_);
    has_weights_ |= weights;
    if (caches && caches_sleep_ && !take_back_caches()) return has_ended();
  } catch (const LoadError& error) {
    if (!has_weights_) loaded_.store->give_back();  // what was read of them
    log_error("the model stays asleep: {}", error.what());
    return RequestError{500, "internal_error", "", "the model could not be woken up; the log says more"};
  }
  if (weights) weights_sleep_ = false;
  if (caches) caches_sleep_ = false;
  if (is_sleeping()) return {};
  engine_.resume();
  log_info("the model is awake");
  return {};
}

}  // namespace calandra::apps

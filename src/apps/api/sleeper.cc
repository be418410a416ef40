#include "apps/api/sleeper.h"

#include <fmt/format.h>
#include <malloc.h>

#include "base/error.h"
#include "base/log.h"
#include "tensor/give_back.h"

namespace calandra::apps {
namespace {

RequestError has_ended() { return {503, "service_unavailable", "", "the server is shutting down"}; }

}  // namespace

std::optional<RequestError> Sleeper::sleep(int level, bool abort) {
  if (!can_give_back(loaded_.backend->device()))
    return RequestError{
        501, "unsupported", "",
        fmt::format("the {} backend cannot give its memory back yet, so the model cannot sleep; end the server instead",
                    loaded_.backend->name())};
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

std::optional<RequestError> Sleeper::wake_up(bool weights, bool caches) {
  if (!is_sleeping()) return {};
  if (weights && !has_weights_) {
    try {
      load_weights(loaded_, options_);
    } catch (const LoadError& error) {
      log_error("the model stays asleep: {}", error.what());
      return RequestError{500, "internal_error", "", "the weights could not be read again; the log says more"};
    }
    has_weights_ = true;
  }
  if (weights) weights_sleep_ = false;
  if (caches) caches_sleep_ = false;
  if (is_sleeping()) return {};
  engine_.resume();
  log_info("the model is awake");
  return {};
}

}  // namespace calandra::apps

// What `serve` has once its model is loaded: the engine, and the API over it.
#pragma once

#include <optional>
#include <string>
#include <vector>

#include "apps/api/admin_api.h"
#include "apps/api/openai_api.h"
#include "apps/engine_setup.h"

namespace calandra::apps {

// Names that a request's `model` may have.
std::vector<std::string> served_names(const Options& options);

class ServedModel {
 public:
  // Ready means warm: the first request of a user is not the first of the engine. Throws LoadError. `options` must
  // outlive it.
  ServedModel(const Options& options, LoadedModel loaded);
  ServedModel(const ServedModel&) = delete;

  // Any thread may call it.
  OpenAiApi::Result handle(const server::HttpRequest& request, server::Wake wake);
  // From now on no request is taken. When the engine stands still those that run end at once.
  void drain();
  // What still runs ends soon, or at once. Does not wait.
  void give_up(bool at_once);
  // Waits a while for the threads to end. False: one does what nobody can wait for.
  bool stop();

 private:
  EngineLoopOptions loop_options(const ServeFlags& flags) const;
  void warm_up();

  const Options& options_;
  LoadedModel loaded_;
  const Tokenizer* const tokenizer_;  // may be null
  const int64_t longest_;             // tokens of a sequence
  EngineSetup setup_;
  ModelRunner runner_;
  Engine engine_;
  BatchReader reader_;
  BatchWriter writer_;
  OpenAiApi api_;
  std::optional<AdminApi> admin_;
};

// The reply to all that needs the model, while it is loaded.
server::HttpReply reply_while_loading(const server::HttpRequest& request, const Options& options);

}  // namespace calandra::apps

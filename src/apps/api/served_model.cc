#include "apps/api/served_model.h"

#include <algorithm>

#include "apps/api/api_reply.h"
#include "apps/output.h"
#include "base/error.h"
#include "base/log.h"
#include "server/api_error.h"

namespace calandra::apps {
namespace {

constexpr int64_t kUsualSequences = 32;  // at once
constexpr int64_t kUsualTokens = 32768;  // of a sequence, where the model allows it
constexpr double kUsualStallSeconds = 30;
constexpr int kStalled = 70;  // EX_SOFTWARE of sysexits.h

int64_t longest_of(const Options& options, const LoadedModel& loaded) {
  return options.model.max_model_len.value_or(std::min(kUsualTokens, loaded.model->max_position_embeddings()));
}

// A device's steps are far below this. Without one, the largest step of a slow machine must not count as a stall.
double usual_stall_seconds(const LoadedModel& loaded, const RunnerLimits& limits) {
  constexpr double kSlowFlops = 10e9, kSlowBytes = 1e9;  // per second
  if (loaded.backend->stream() != nullptr) return kUsualStallSeconds;
  const StepCost cost = loaded.model->step_cost();
  int64_t rows = limits.max_num_batched_tokens;
  if (loaded.model->vision() != nullptr) rows += EngineOptions().encoder_budget;
  const double flops_per_row =
      cost.flops_per_row + cost.flops_per_row_and_key * static_cast<double>(limits.max_model_len);
  const double bytes = cost.weight_bytes + cost.expert_bytes * cost.experts;
  return std::max(kUsualStallSeconds, static_cast<double>(rows) * flops_per_row / kSlowFlops + bytes / kSlowBytes);
}

}  // namespace

std::vector<std::string> served_names(const Options& options) {
  if (!options.served_model_names.empty()) return options.served_model_names;
  return {options.model.model.empty() ? "demo:qwen3_5" : options.model.model};
}

ServedModel::ServedModel(const Options& options, LoadedModel loaded)
    : options_(options),
      loaded_(std::move(loaded)),
      tokenizer_(loaded_.tokenizer ? &*loaded_.tokenizer : nullptr),
      longest_(longest_of(options, loaded_)),
      setup_(engine_setup(loaded_, options,
                          {.usual = {kUsualSequences, longest_}, .least = {1, 1}, .prefix_caching = true})),
      runner_(*loaded_.model, *loaded_.backend, setup_.limits),
      engine_(runner_, tokenizer_, std::move(setup_.options), loop_options(options.serve)),
      reader_(loaded_, options, served_names(options), longest_),
      writer_(tokenizer_, served_names(options).front()),
      api_(engine_, reader_, writer_, tokenizer_, options.serve.enable_admin_endpoints) {
  warm_up();
  if (options.serve.enable_admin_endpoints) admin_.emplace(engine_, loaded_, options.model);
}

OpenAiApi::Result ServedModel::handle(const server::HttpRequest& request, server::Wake wake) {
  if (admin_ && AdminApi::is_admin(request.path)) return admin_->handle(request, std::move(wake));
  return api_.handle(request, std::move(wake));
}

void ServedModel::drain() {
  api_.set_draining();
  if (!engine_.healthy()) engine_.give_up(cut_off());
}

void ServedModel::give_up(bool at_once) {
  api_.give_up();
  if (admin_) admin_->give_up();
  if (at_once)
    engine_.give_up(cut_off());
  else
    engine_.end();
}

bool ServedModel::stop() {
  constexpr double kSeconds = 5;
  api_.stop();
  if (admin_) admin_->give_up();
  if (!engine_.stop(kSeconds) || (admin_ && !admin_->is_idle())) return false;
  if (admin_) admin_->stop();
  return true;
}

EngineLoopOptions ServedModel::loop_options(const ServeFlags& flags) const {
  EngineLoopOptions loop;
  if (options_.disable_log_stats) loop.stats_seconds = 0;
  loop.max_waiting = flags.max_waiting;
  loop.stall_seconds = flags.engine_stall_timeout.value_or(usual_stall_seconds(loaded_, setup_.limits));
  loop.stall_grace_seconds = flags.engine_stall_grace.value_or(loop.stall_grace_seconds);
  // Nobody can wait for a thread that stands still.
  loop.on_stalled = [] {
    log_error("the engine stands still; the server ends, so that whoever watches it starts it again");
    leave(kStalled);
  };
  return loop;
}

void ServedModel::warm_up() {
  SamplingParams params;
  params.max_tokens = 2;
  params.ignore_eos = true;
  auto submitted = engine_.submit({.prompt_token_ids = {0, 1}, .params = params});
  if (const auto* error = std::get_if<RequestError>(&submitted)) throw LoadError("warming up: " + error->message);
  while (auto event = std::get<std::shared_ptr<Stream>>(submitted)->next())
    if (event->answer && event->answer->error) throw LoadError("warming up: " + event->answer->error->message);
  engine_.between_steps([](EngineCore& core) { core.warm_up(); });
}

server::HttpReply reply_while_loading(const server::HttpRequest& request, const Options& options) {
  if (request.path == "/version") return version_reply();
  if (request.path == "/load") return {.body = R"({"server_load":0})"};
  if (request.path == "/metrics") return metrics_reply({}, served_names(options).front(), 0);
  return server::error_reply({503, "model_loading", "", "the model is being loaded; try again later"}, request.path);
}

}  // namespace calandra::apps

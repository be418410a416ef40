// `calandra serve`: the OpenAI-compatible HTTP server.
#include <cstdlib>

#include "apps/engine_setup.h"
#include "apps/openai_api.h"
#include "apps/output.h"
#include "apps/verbs.h"
#include "base/error.h"
#include "base/log.h"
#include "server/http_server.h"

namespace calandra::apps {
namespace {

constexpr int64_t kUsualSequences = 32;  // at once
constexpr int64_t kUsualTokens = 32768;  // of a sequence, where the model allows it

server::ServerOptions server_options(const ServeFlags& flags) {
  server::ServerOptions options;
  options.host = flags.host;
  options.port = static_cast<uint16_t>(flags.port);
  options.api_keys = flags.api_keys;
  if (const char* key = std::getenv("VLLM_API_KEY"); options.api_keys.empty() && key != nullptr && *key != '\0')
    options.api_keys = {key};
  options.ssl_certfile = flags.ssl_certfile;
  options.ssl_keyfile = flags.ssl_keyfile;
  options.allowed_origins = flags.allowed_origins;
  if (options.allowed_origins.empty()) options.allowed_origins = {"*"};
  options.body_bytes = static_cast<size_t>(flags.max_body_bytes);
  options.all_body_bytes = 8 * options.body_bytes;
  options.shutdown_seconds = static_cast<double>(flags.shutdown_timeout);
  return options;
}

// Of prompts and answers nothing is said.
void log_access(const server::AccessRecord& record, bool as_json) {
  if (!as_json)
    return log_info("{} {} {} {} {:.1f} ms", record.client, record.request.method,
                    to_json(json::string(record.request.path)), record.status, record.seconds * 1e3);
  try {
    print_json({{"request_id", record.request.request_id},
                {"client", record.client},
                {"method", record.request.method},
                {"path", record.request.path},
                {"status", record.status},
                {"bytes", record.bytes},
                {"seconds", record.seconds}});
  } catch (const OutputError& error) {  // answers matter more
    log_warning_once("access lines are lost: {}", error.what());
  }
}

// The first request of a user must not be the first of the engine.
void warm_up(Engine& engine) {
  SamplingParams params;
  params.max_tokens = 2;
  params.ignore_eos = true;
  auto submitted = engine.submit({.prompt_token_ids = {0, 1}, .params = params});
  if (const auto* error = std::get_if<RequestError>(&submitted)) throw LoadError("warming up: " + error->message);
  while (auto event = std::get<std::shared_ptr<Stream>>(submitted)->next())
    if (event->answer && event->answer->error) throw LoadError("warming up: " + event->answer->error->message);
}

}  // namespace

int serve(const Options& options) {
  const ServeFlags& flags = options.serve;
  LoadedModel loaded = load_for_engine(options, /*vision=*/false);
  const Tokenizer* tokenizer = loaded.tokenizer ? &*loaded.tokenizer : nullptr;
  std::vector<std::string> served = options.served_model_names;
  if (served.empty()) served = {options.model.model.empty() ? "demo:qwen3_5" : options.model.model};
  const int64_t longest =
      options.model.max_model_len.value_or(std::min(kUsualTokens, loaded.model->max_position_embeddings()));

  EngineSetup setup =
      engine_setup(loaded, options, {.usual = {kUsualSequences, longest}, .least = {1, 1}, .prefix_caching = true});
  ModelRunner runner(*loaded.model, *loaded.backend, setup.limits);
  EngineLoopOptions loop;
  if (options.disable_log_stats) loop.stats_seconds = 0;
  loop.max_waiting = flags.max_waiting;
  Engine engine(runner, tokenizer, std::move(setup.options), loop);
  warm_up(engine);

  BatchReader reader(loaded, options, served, longest);
  BatchWriter writer(tokenizer, served.front());
  OpenAiApi api(engine, reader, writer, tokenizer, CALANDRA_VERSION);
  server::HttpServer server(server_options(flags), [&](const server::HttpRequest& request, server::Wake wake) {
    return api.handle(request, std::move(wake));
  });
  server.on_give_up = [&] { engine.drain(0); };
  server.on_drain = [&] { api.set_draining(); };
  if (options.json || !flags.disable_access_log)
    server.on_access = [&](const server::AccessRecord& record) { log_access(record, options.json); };
  log_info("serving {} on {}://{}:{}", served.front(), flags.ssl_certfile.empty() ? "http" : "https", flags.host,
           server.port());
  server.run();
  engine.drain(0);  // before the server goes, which the engine's thread wakes
  log_info("shut down");
  return 0;
}

}  // namespace calandra::apps

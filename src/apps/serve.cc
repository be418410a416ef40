// `calandra serve`: the OpenAI-compatible HTTP server.
#include <cstdlib>

#include "apps/engine_setup.h"
#include "apps/openai_api.h"
#include "apps/output.h"
#include "apps/verbs.h"
#include "apps/web_page.h"
#include "base/error.h"
#include "base/log.h"
#include "server/http_server.h"
#include "server/trace_exporter.h"
#include "text/utf8.h"

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
  if (!flags.disable_web_page) options.open_paths = web_paths();
  options.body_bytes = static_cast<size_t>(flags.max_body_bytes);
  options.all_body_bytes = 8 * options.body_bytes;
  options.shutdown_seconds = static_cast<double>(flags.shutdown_timeout);
  return options;
}

// Of prompts and answers nothing is said.
void log_access(const server::AccessRecord& record, bool as_json) {
  if (!as_json)
    return log_info("{} {} {} {} {:.1f} ms", record.client, record.request.method,
                    ascii_json(json::string(record.request.path)), record.status, record.seconds * 1e3);
  try {
    write_output(ascii_json({{"request_id", record.request.request_id},
                             {"client", record.client},
                             {"method", record.request.method},
                             {"path", record.request.path},
                             {"status", record.status},
                             {"bytes", record.bytes},
                             {"seconds", record.seconds}}) +
                 "\n");
    flush_output();
  } catch (const OutputError& error) {  // answers matter more
    log_warning_once("access lines are lost: {}", error.what());
  }
}

server::Span span_of(const server::AccessRecord& record, const std::string& model) {
  const auto end = std::chrono::system_clock::now();
  const auto taken = std::chrono::duration<double>(record.seconds);
  const std::string path = replace_invalid_utf8(record.request.path);
  server::Span span{.name = record.request.method + " " + path,
                    .parent = server::read_traceparent(record.request.traceparent),
                    .start = end - std::chrono::duration_cast<std::chrono::nanoseconds>(taken),
                    .end = end,
                    .failed = record.status >= 500};
  span.attributes = {{"http.request.method", record.request.method},
                     {"url.path", path},
                     {"http.response.status_code", record.status},
                     {"gen_ai.request.id", record.request.request_id},
                     {"gen_ai.response.model", model},
                     {"gen_ai.latency.e2e", record.seconds}};
  for (const auto& [name, value] : record.measures) {
    if (name.starts_with("gen_ai.latency."))
      span.attributes[name] = value;
    else
      span.attributes[name] = static_cast<int64_t>(value);
  }
  return span;
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
  return serve(options, load_for_engine(options, !options.media.language_model_only));
}

int serve(const Options& options, LoadedModel loaded) {
  const ServeFlags& flags = options.serve;
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
    if (!flags.disable_web_page)
      if (auto page = web_reply(request)) return OpenAiApi::Result(*std::move(page));
    return api.handle(request, std::move(wake));
  });
  server.on_give_up = [&] {
    api.give_up_media();
    engine.drain(0);
  };
  server.on_drain = [&] { api.set_draining(); };
  std::optional<server::TraceExporter> traces;
  if (!flags.otlp_traces_endpoint.empty()) traces.emplace(server::TraceExporter::Options{flags.otlp_traces_endpoint});
  server.on_access = [&](const server::AccessRecord& record) {
    if (options.json || !flags.disable_access_log) log_access(record, options.json);
    if (traces) traces->add(span_of(record, served.front()));
  };
  log_info("serving {} on {}://{}:{}", served.front(), flags.ssl_certfile.empty() ? "http" : "https", flags.host,
           server.port());
  server.run();
  api.stop();  // both before the server goes, which their threads wake
  engine.drain(0);
  log_info("shut down");
  return 0;
}

}  // namespace calandra::apps

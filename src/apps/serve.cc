// `calandra serve`: the OpenAI-compatible HTTP server.
#include <malloc.h>

#include <fmt/format.h>

#include <atomic>
#include <cstdlib>
#include <exception>
#include <thread>

#include "apps/api/served_model.h"
#include "apps/api/web_page.h"
#include "apps/output.h"
#include "apps/verbs.h"
#include "base/log.h"
#include "server/http_server.h"
#include "server/trace_exporter.h"
#include "text/utf8.h"

namespace calandra::apps {
namespace {

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

// Loads the model on a thread, while the server already answers.
class Loading {
 public:
  ~Loading() {
    if (thread_.joinable()) thread_.join();
  }

  // `on_end` is called by the thread, also when the load failed.
  void start(const Options& options, const LoadModel& load, std::function<void()> on_end) {
    thread_ = std::thread([this, &options, &load, on_end = std::move(on_end)] {
      try {
        model_ = std::make_unique<ServedModel>(options, load());
        ready_ = model_.get();
      } catch (...) {
        failure_ = std::current_exception();
      }
      ended_ = true;
      on_end();
    });
  }

  // Null until it is ready.
  ServedModel* model() const { return ready_; }
  bool ended() const { return ended_; }
  // Once it has ended. Throws what the load threw.
  ServedModel& result() {
    thread_.join();  // `on_end` is over too
    if (failure_) std::rethrow_exception(failure_);
    return *model_;
  }

 private:
  std::unique_ptr<ServedModel> model_;
  std::exception_ptr failure_;
  std::atomic<ServedModel*> ready_ = nullptr;
  std::atomic<bool> ended_ = false;
  std::thread thread_;
};

}  // namespace

int serve(const Options& options) {
  return serve(options, [&options] { return load_for_engine(options, !options.media.language_model_only); });
}

int serve(const Options& options, const LoadModel& load) {
  // What a large body took goes back to the system with it. (By itself malloc keeps up to 64 MiB per thread.)
  mallopt(M_MMAP_THRESHOLD, 1 << 20);
  mallopt(M_TRIM_THRESHOLD, 1 << 20);
  const ServeFlags& flags = options.serve;
  const std::string name = served_names(options).front();
  Loading loading;  // its model outlives the server, whose replies use it
  server::HttpServer server(server_options(flags),
                            [&](const server::HttpRequest& request, server::Wake wake) -> OpenAiApi::Result {
                              if (!flags.disable_web_page)
                                if (auto page = web_reply(request)) return *std::move(page);
                              if (ServedModel* const model = loading.model())
                                return model->handle(request, std::move(wake));
                              return reply_while_loading(request, options);
                            });
  server.on_drain = [&] {
    if (ServedModel* const model = loading.model()) model->drain();
  };
  server.on_give_up = [&](bool at_once) {
    if (ServedModel* const model = loading.model()) model->give_up(at_once);
  };
  std::optional<server::TraceExporter> traces;
  if (!flags.otlp_traces_endpoint.empty()) traces.emplace(server::TraceExporter::Options{flags.otlp_traces_endpoint});
  server.on_access = [&](const server::AccessRecord& record) {
    if (options.json || !flags.disable_access_log) log_access(record, options.json);
    if (traces) traces->add(span_of(record, name));
  };

  const std::string address =
      fmt::format("{}://{}:{}", flags.ssl_certfile.empty() ? "http" : "https", flags.host, server.port());
  log_info("loading {}; {}/health says when it is ready", name, address);
  loading.start(options, load, [&] {
    if (loading.model() == nullptr) return server.stop();
    log_info("serving {} on {}", name, address);
  });
  server.run();
  if (!loading.ended()) {  // a load cannot be broken off
    log_info("shut down");
    leave(0);
  }
  const bool ended = loading.result().stop();  // before the server goes, which its threads wake
  traces.reset();
  log_info("shut down");
  if (!ended) leave(0);
  return 0;
}

}  // namespace calandra::apps

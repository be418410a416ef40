// HTTP/1.1 over TCP or TLS: connections, limits, keys, CORS, request ids, event streams, the end on a signal. Sockets
// live on one thread; requests are handled on a few others, so that a long prompt delays nobody's stream.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "server/http.h"

namespace calandra::server {

struct AccessRecord {
  const HttpRequest& request;
  std::string_view client;  // address
  int status = 0;           // 499: the client left before the answer
  int64_t bytes = 0;        // of the answer's body
  double seconds = 0;
  std::span<const std::pair<std::string_view, double>> measures = {};
};

struct ServerOptions {
  std::string host = "127.0.0.1";
  uint16_t port = 8000;                             // 0: a free one
  std::vector<std::string> api_keys = {};           // empty: none is asked for
  std::string ssl_certfile = {}, ssl_keyfile = {};  // PEM; both or none
  std::vector<std::string> allowed_origins = {};    // "*": all
  std::vector<std::string> open_paths = {};         // that need no key, beside /health, /ping and /metrics
  // What one client may take. Checked before memory is allocated for it.
  size_t header_bytes = 32 << 10, headers = 100;
  size_t body_bytes = 64 << 20;
  size_t all_body_bytes = 512 << 20;  // of requests that are being read or handled
  size_t connections = 16384;         // fewer where the process may not have so many files
  double header_seconds = 10;         // to send a head whole; a connection's first from its beginning on
  double body_seconds = 120;          // the same of a body
  double idle_seconds = 75;           // between requests of a connection
  double write_seconds = 60;          // until a part of an answer was taken; then the request is given up
  double ping_seconds = 15;           // between signs of life in a silent event stream
  double shutdown_seconds = 30;       // for requests that run when SIGTERM or SIGINT comes
  int handler_threads = 2;
};

class HttpServer {
 public:
  // Throws LoadError when the address cannot be had or a certificate is wrong.
  HttpServer(ServerOptions options, HttpHandler handler);
  ~HttpServer();
  HttpServer(const HttpServer&) = delete;
  HttpServer& operator=(const HttpServer&) = delete;

  uint16_t port() const;
  std::function<void(const AccessRecord&)> on_access = {};
  // Called when the shutdown begins.
  std::function<void()> on_drain = {};
  // Called when the time of the shutdown is over: ends what still runs, soon. Called again with `at_once` when that was
  // not soon enough: then all replies must end. Neither may block.
  std::function<void(bool at_once)> on_give_up = {};

  // Serves until SIGTERM, SIGINT or stop(), and until what ran then has ended. A second signal gives it up at once.
  void run();
  void stop();  // from any thread
  bool draining() const;

 private:
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

}  // namespace calandra::server

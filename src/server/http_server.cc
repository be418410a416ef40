#include "server/http_server.h"

#include <fmt/format.h>
#include <sys/resource.h>

#include <csignal>

#include "base/error.h"
#include "base/log.h"
#include "server/connection.h"
#include "server/wake_signal.h"

namespace calandra::server {
namespace {

namespace net = boost::asio;
using tcp = net::ip::tcp;
using Code = boost::system::error_code;
using Steady = std::chrono::steady_clock;

// As many connections as are asked for, if the process may have so many files. Others also want some.
ServerOptions with_descriptors(ServerOptions options) {
  constexpr rlim_t kOthers = 256;
  rlimit files{};
  if (getrlimit(RLIMIT_NOFILE, &files) != 0) return options;
  const rlim_t wanted = options.connections + kMostRefused + kOthers;
  if (files.rlim_cur < wanted) {
    files.rlim_cur = std::min(wanted, files.rlim_max);
    setrlimit(RLIMIT_NOFILE, &files);
  }
  const rlim_t most = std::max<rlim_t>(files.rlim_cur, 2 * (kMostRefused + kOthers)) - kMostRefused - kOthers;
  options.connections = std::min<size_t>(options.connections, most);
  return options;
}

}  // namespace

struct HttpServer::Impl {
  Impl(ServerOptions options, HttpHandler handler) : state(with_descriptors(std::move(options)), std::move(handler)) {
    const ServerOptions& o = state.options;
    if (!o.ssl_certfile.empty()) load_certificate();
    state.handlers = std::make_unique<net::thread_pool>(static_cast<size_t>(o.handler_threads));
    Code code;
    tcp::resolver resolver(io);
    const auto found = resolver.resolve(o.host, std::to_string(o.port), tcp::resolver::passive, code);
    if (code || found.empty()) throw LoadError(fmt::format("--host {}: {}", o.host, code.message()));
    const tcp::endpoint endpoint = found.begin()->endpoint();
    acceptor.open(endpoint.protocol());
    acceptor.set_option(tcp::acceptor::reuse_address(true));
    acceptor.bind(endpoint, code);
    if (!code) acceptor.listen(net::socket_base::max_listen_connections, code);
    if (code)
      throw LoadError(
          fmt::format("cannot listen on {} port {}: {}; choose another --port", o.host, o.port, code.message()));
    port = acceptor.local_endpoint().port();
  }

  void load_certificate() {
    const ServerOptions& o = state.options;
    net::ssl::context& tls = state.tls.emplace(net::ssl::context::tls_server);
    Code code;
    tls.set_options(net::ssl::context::no_sslv2 | net::ssl::context::no_sslv3 | net::ssl::context::no_tlsv1 |
                    net::ssl::context::no_tlsv1_1);
    tls.use_certificate_chain_file(o.ssl_certfile, code);
    if (code) throw LoadError(fmt::format("--ssl-certfile {}: {}", o.ssl_certfile, code.message()));
    tls.use_private_key_file(o.ssl_keyfile, net::ssl::context::pem, code);
    if (code) throw LoadError(fmt::format("--ssl-keyfile {}: {}", o.ssl_keyfile, code.message()));
  }

  net::awaitable<void> accept() {
    for (;;) {
      Code code;
      tcp::socket socket = co_await acceptor.async_accept(net::redirect_error(net::use_awaitable, code));
      if (code == net::error::operation_aborted || code == net::error::bad_descriptor) co_return;
      if (code) {  // no descriptors: some will be given back
        net::steady_timer pause(io, std::chrono::milliseconds(50));
        co_await pause.async_wait(net::use_awaitable);
        continue;
      }
      serve_connection(io, state, std::move(socket));
    }
  }

  net::awaitable<void> watch_signals() {
    co_await signals.async_wait(net::use_awaitable);
    net::co_spawn(io, drain(), net::detached);
    co_await signals.async_wait(net::use_awaitable);
    deadline = Steady::now();
  }

  // Ends when nothing runs any more.
  net::awaitable<void> drain() {
    if (state.draining.exchange(true)) co_return;
    constexpr double kLast = 2;  // seconds to end what was given up, and to send it
    constexpr int kTimes = 2;
    if (on_drain) on_drain();
    deadline = Steady::now() + duration_of(state.options.shutdown_seconds);
    if (state.busy > 0) log_info("shutting down: {} requests run", state.busy);
    while (state.busy > 0) {
      if (Steady::now() >= deadline) {
        if (given_up == kTimes) break;
        if (on_give_up) on_give_up(given_up > 0);
        ++given_up;
        deadline = Steady::now() + duration_of(kLast);
      }
      net::steady_timer pause(io, std::chrono::milliseconds(20));
      co_await pause.async_wait(net::use_awaitable);
    }
    Code ignored;
    acceptor.close(ignored);  // until then whoever comes is told
    io.stop();
  }

  ServerState state;
  std::function<void()> on_drain;
  std::function<void(bool)> on_give_up;
  int given_up = 0;  // times
  uint16_t port = 0;
  Steady::time_point deadline;
  net::io_context io{1};
  tcp::acceptor acceptor{io};
  net::signal_set signals{io, SIGINT, SIGTERM};
};

HttpServer::HttpServer(ServerOptions options, HttpHandler handler)
    : impl_(std::make_unique<Impl>(std::move(options), std::move(handler))) {}
HttpServer::~HttpServer() = default;

uint16_t HttpServer::port() const { return impl_->port; }
bool HttpServer::draining() const { return impl_->state.draining; }

void HttpServer::run() {
  // Sockets of our own never raise it. Pipes of the log do, and libcurl's TLS may: a server must not end by that.
  std::signal(SIGPIPE, SIG_IGN);
  impl_->state.on_access = on_access;
  impl_->on_drain = on_drain;
  impl_->on_give_up = on_give_up;
  net::co_spawn(impl_->io, impl_->accept(), net::detached);
  net::co_spawn(impl_->io, impl_->watch_signals(), net::detached);
  impl_->io.run();
  impl_->state.handlers->join();
  // The end of the last set would bring back the signals' default, which kills: from here on the process ends by
  // itself.
  [[maybe_unused]] static const auto* ignored = new net::signal_set(*new net::io_context, SIGINT, SIGTERM);
}

void HttpServer::stop() { net::co_spawn(impl_->io, impl_->drain(), net::detached); }

}  // namespace calandra::server

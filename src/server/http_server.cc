// Length: one coroutine per connection, which is easier to read beside the limits that it keeps than apart from them.
#include "server/http_server.h"

#include <fmt/format.h>
#include <sys/socket.h>

#include <atomic>
#include <boost/asio.hpp>
#include <boost/asio/ssl.hpp>
#include <boost/beast/core.hpp>
#include <boost/beast/http.hpp>
#include <boost/beast/ssl.hpp>
#include <chrono>
#include <csignal>
#include <optional>

#include "base/log.h"
#include "server/api_error.h"
#include "server/request_head.h"

namespace calandra::server {
namespace {

namespace net = boost::asio;
namespace beast = boost::beast;
namespace http = beast::http;
using tcp = net::ip::tcp;
using Code = boost::system::error_code;
using Steady = std::chrono::steady_clock;

Steady::duration duration_of(double seconds) {
  return std::chrono::duration_cast<Steady::duration>(std::chrono::duration<double>(seconds));
}
double seconds_since(Steady::time_point start) { return std::chrono::duration<double>(Steady::now() - start).count(); }

constexpr int kClientLeft = 499;  // nginx's, in logs only

// What a coroutine waits on: news of its reply, or that its client has left. The timer belongs to the sockets' thread.
struct Signal {
  explicit Signal(net::io_context& context) : io(context), timer(context) {}
  void notify() {
    is_set = true;
    timer.cancel();
  }

  net::io_context& io;
  net::steady_timer timer;
  std::atomic<bool> posted = false;
  bool is_set = false;
  bool gone = false;  // the client
  bool over = false;  // nobody waits any more
};

Wake wake_of(const std::shared_ptr<Signal>& signal) {
  return [signal] {
    if (signal->posted.exchange(true)) return;
    net::post(signal->io, [signal] {
      signal->posted = false;
      signal->notify();
    });
  };
}

net::awaitable<void> wait(Signal& signal, double seconds) {
  if (!signal.is_set) {
    Code ignored;
    signal.timer.expires_after(duration_of(seconds));
    co_await signal.timer.async_wait(net::redirect_error(net::use_awaitable, ignored));
  }
  signal.is_set = false;
}

struct Shared {
  explicit Shared(ServerOptions o, HttpHandler h) : options(std::move(o)), handler(std::move(h)) {}
  const ServerOptions options;
  const HttpHandler handler;
  std::function<void(const AccessRecord&)> on_access;
  std::function<void()> on_drain, on_give_up;
  std::atomic<bool> draining = false;
  // Of the sockets' thread.
  size_t connections = 0, busy = 0, body_bytes = 0;
  bool given_up = false;
  std::optional<net::ssl::context> tls;
  std::unique_ptr<net::thread_pool> handlers;
};

// Adds to a count while it lives.
class Held {
 public:
  Held(size_t& count, size_t amount) : count_(count), amount_(amount) { count_ += amount_; }
  ~Held() { count_ -= amount_; }
  Held(const Held&) = delete;
  Held& operator=(const Held&) = delete;

 private:
  size_t& count_;
  const size_t amount_;
};

std::string head_text(const HttpReply& reply, bool keep, const std::string& length) {
  std::string head =
      fmt::format("HTTP/1.1 {} {}\r\nServer: calandra\r\nContent-Type: {}\r\n{}\r\nConnection: {}\r\n", reply.status,
                  std::string_view(http::obsolete_reason(http::int_to_status(reply.status))), reply.content_type,
                  length, keep ? "keep-alive" : "close");
  for (const auto& [name, value] : reply.headers) head += fmt::format("{}: {}\r\n", name, value);
  return head + "\r\n";
}

// What is wrong with what was read, or nothing when there is nobody to tell.
std::optional<RequestError> fault_of(const Code& code, const ServerOptions& options) {
  if (code == http::error::body_limit)
    return RequestError{
        413, "request_too_large", "",
        fmt::format("the body has more than {} bytes; send less, or raise --max-body-bytes", options.body_bytes)};
  if (code == http::error::header_limit)
    return RequestError{431, "headers_too_large", "",
                        fmt::format("the headers have more than {} bytes", options.header_bytes)};
  if (code == http::error::end_of_stream || code == http::error::partial_message || code == beast::error::timeout ||
      code.category() != http::make_error_code(http::error::bad_method).category())
    return std::nullopt;
  return RequestError{400, "bad_request", "", "this is no HTTP/1.1 request: " + code.message()};
}

template <class S>
class Connection : public std::enable_shared_from_this<Connection<S>> {
 public:
  Connection(net::io_context& io, Shared& shared, S stream, std::string client)
      : io_(io),
        shared_(shared),
        o_(shared.options),
        stream_(std::move(stream)),
        client_(std::move(client)),
        held_(shared.connections, 1) {}

  net::awaitable<void> run(std::shared_ptr<Connection> self) {
    Code code;
    if constexpr (kTls) {
      lowest().expires_after(duration_of(o_.header_seconds));
      co_await stream_.async_handshake(net::ssl::stream_base::server, net::redirect_error(net::use_awaitable, code));
      if (code) co_return;
    }
    bool keep = true;
    while (keep && !code) keep = co_await one_request(self);
    co_await close();
  }

 private:
  static constexpr bool kTls = !std::is_same_v<S, beast::tcp_stream>;
  using Parser = http::request_parser<http::string_body>;

  beast::tcp_stream& lowest() { return beast::get_lowest_layer(stream_); }

  // False: the connection ends.
  net::awaitable<bool> one_request(std::shared_ptr<Connection> self) {
    Code code;
    if (buffer_.size() == 0) {
      lowest().expires_after(duration_of(o_.idle_seconds));
      const size_t count =
          co_await stream_.async_read_some(buffer_.prepare(4096), net::redirect_error(net::use_awaitable, code));
      if (code) co_return false;
      buffer_.commit(count);
    }
    Parser parser;
    parser.header_limit(static_cast<uint32_t>(o_.header_bytes));
    parser.body_limit(o_.body_bytes);
    lowest().expires_after(duration_of(o_.header_seconds));
    co_await http::async_read_header(stream_, buffer_, parser, net::redirect_error(net::use_awaitable, code));
    started_ = Steady::now();
    const Held busy(shared_.busy, 1);
    request_ = {};
    request_.request_id = make_request_id();
    origin_.reset();
    if (code) {
      if (auto fault = fault_of(code, o_)) {
        HttpReply reply = error_reply(*fault);
        co_await send(reply, false);
      }
      co_return false;
    }
    read_head(parser.get());
    if (auto refused = refusal(parser)) {
      co_await send(*refused, false);
      co_return false;
    }
    const Held bytes(shared_.body_bytes, body_size(parser));
    if (beast::iequals(parser.get()[http::field::expect], "100-continue")) {
      const std::string go_on = "HTTP/1.1 100 Continue\r\n\r\n";
      co_await write(go_on, code);
      if (code) co_return false;
    }
    lowest().expires_after(duration_of(o_.body_seconds));
    co_await http::async_read(stream_, buffer_, parser, net::redirect_error(net::use_awaitable, code));
    if (code) {
      if (auto fault = fault_of(code, o_)) {
        HttpReply reply = error_reply(*fault);
        co_await send(reply, false);
      }
      co_return false;
    }
    request_.body = std::move(parser.get().body());
    const bool keep = parser.get().keep_alive() && !shared_.draining;
    chunks_ = parser.get().version() >= 11;
    co_return co_await answer(self, keep);
  }

  template <class Head>
  void read_head(const Head& head) {
    request_.method = std::string(head.method_string());
    if (auto path = decode_path(head.target())) request_.path = std::move(*path);
    if (const std::string_view id = head["x-request-id"]; is_plain_id(id)) request_.request_id = std::string(id);
    origin_ = allowed_origin(o_.allowed_origins, head[http::field::origin]);
    expects_ = head["access-control-request-headers"];
    for (const char c : expects_)
      if (static_cast<unsigned char>(c) < 0x20) expects_.clear();
  }

  size_t body_size(const Parser& parser) const {
    if (const auto length = parser.content_length()) return *length;
    return parser.chunked() ? o_.body_bytes : 0;
  }

  // Decided by the head alone.
  std::optional<HttpReply> refusal(const Parser& parser) const {
    const auto& head = parser.get();
    if (request_.path.empty()) return error_reply({400, "bad_request", "", "the request's target is no path"});
    if (request_.method == "OPTIONS") {
      HttpReply reply{.status = 204};
      reply.headers = {{"Access-Control-Allow-Methods", "GET, POST, DELETE, OPTIONS"},
                       {"Access-Control-Allow-Headers", expects_.empty() ? "authorization, content-type" : expects_},
                       {"Access-Control-Max-Age", "600"}};
      return reply;
    }
    const bool is_open = request_.path == "/health" || request_.path == "/ping" || request_.path == "/metrics";
    if (!o_.api_keys.empty() && !is_open && !has_key(o_.api_keys, head[http::field::authorization], head["x-api-key"]))
      return error_reply(
          {401, "invalid_api_key", "", "the API key is missing or wrong: send Authorization: Bearer KEY"});
    if (shared_.draining && !is_open)
      return error_reply({503, "service_unavailable", "", "the server is shutting down; try another one"});
    const std::string_view encoding = head[http::field::content_encoding];
    if (!encoding.empty() && !beast::iequals(encoding, "identity"))
      return error_reply(
          {415, "unsupported_encoding", "", "the body must not be compressed: leave out Content-Encoding"});
    if (shared_.body_bytes + body_size(parser) > o_.all_body_bytes)
      return error_reply({503, "service_unavailable", "", "too many large requests at once; try again later"});
    return std::nullopt;
  }

  net::awaitable<bool> answer(std::shared_ptr<Connection> self, bool keep) {
    const auto signal = std::make_shared<Signal>(io_);
    using Result = std::variant<HttpReply, std::unique_ptr<PendingReply>>;
    const auto handle = [this, signal]() -> net::awaitable<Result> {
      try {
        co_return shared_.handler(request_, wake_of(signal));
      } catch (const std::exception& error) {
        log_error("a request failed: {}", error.what());
      }
      co_return error_reply({500, "internal_error", "", "the server failed at this request"});
    };
    Result result = co_await net::co_spawn(*shared_.handlers, handle, net::use_awaitable);
    request_.body = {};  // its memory is no longer needed
    bool fine = false;
    if (auto* reply = std::get_if<HttpReply>(&result)) {
      fine = co_await send(*reply, keep);
    } else {
      watch(self, signal);
      auto& pending = std::get<std::unique_ptr<PendingReply>>(result);
      if (pending->is_stream())
        fine = co_await stream_reply(*pending, *signal, keep);
      else
        fine = co_await later_reply(*pending, *signal, keep);
      signal->over = true;
      Code ignored;
      lowest().socket().cancel(ignored);  // the watch
    }
    co_return fine&& keep;
  }

  net::awaitable<bool> later_reply(PendingReply& pending, Signal& signal, bool keep) {
    HttpReply reply;
    while (!signal.gone && !pending.advance(reply)) co_await wait(signal, o_.ping_seconds);
    if (signal.gone) {
      note(kClientLeft, 0);
      co_return false;
    }
    co_return co_await send(reply, keep);
  }

  net::awaitable<bool> stream_reply(PendingReply& pending, Signal& signal, bool keep) {
    HttpReply reply;
    bool ended = pending.advance(reply);
    keep = keep && chunks_;
    add_headers(reply);
    reply.headers.insert(reply.headers.end(), {{"Cache-Control", "no-cache"}, {"X-Accel-Buffering", "no"}});
    Code code;
    std::string text =
        head_text(reply, keep, chunks_ ? "Transfer-Encoding: chunked" : "X-Content-Type-Options: nosniff");
    co_await write(text, code);
    int64_t sent = 0;
    while (!code && !signal.gone) {
      if (!reply.body.empty()) {
        sent += std::ssize(reply.body);
        text = chunks_ ? fmt::format("{:x}\r\n{}\r\n", reply.body.size(), reply.body) : std::move(reply.body);
        co_await write(text, code);
        reply.body.clear();
      }
      if (ended || code) break;
      co_await wait(signal, o_.ping_seconds);
      ended = pending.advance(reply);
      if (reply.body.empty() && !ended && Steady::now() >= signal.timer.expiry()) reply.body = kPing;
    }
    text = "0\r\n\r\n";
    if (!code && ended && chunks_) co_await write(text, code);
    const bool fine = !code && ended;
    note(fine ? reply.status : kClientLeft, sent);
    co_return fine&& keep;
  }

  net::awaitable<bool> send(HttpReply& reply, bool keep) {
    add_headers(reply);
    std::string text = head_text(reply, keep, fmt::format("Content-Length: {}", reply.body.size()));
    if (request_.method != "HEAD") text += reply.body;
    note(reply.status, std::ssize(reply.body));
    Code code;
    co_await write(text, code);
    co_return !code;
  }

  // Returns when all is written. `text` must be a variable: GCC 12 destroys temporaries of a co_await with a condition
  // twice. Whoever does not read is given up after a while.
  net::awaitable<void> write(const std::string& text, Code& code) {
    constexpr size_t kPart = 64 << 10;
    for (size_t begin = 0; begin < text.size() && !code; begin += kPart) {
      lowest().expires_after(duration_of(o_.write_seconds));
      co_await net::async_write(stream_, net::buffer(text.data() + begin, std::min(kPart, text.size() - begin)),
                                net::redirect_error(net::use_awaitable, code));
    }
    lowest().expires_never();
  }

  void add_headers(HttpReply& reply) const {
    reply.headers.emplace_back("X-Request-Id", request_.request_id);
    if (!origin_) return;
    reply.headers.emplace_back("Access-Control-Allow-Origin", *origin_);
    reply.headers.emplace_back("Vary", "Origin");
  }

  // Looks for the end of what the client sends, while it has nothing to send.
  void watch(const std::shared_ptr<Connection>& self, const std::shared_ptr<Signal>& signal) {
    lowest().socket().async_wait(tcp::socket::wait_read, [self, signal](Code code) {
      if (code || signal->over) return;
      constexpr char kTlsAlert = 0x15;
      char byte = 0;
      const ssize_t count = recv(self->lowest().socket().native_handle(), &byte, 1, MSG_PEEK | MSG_DONTWAIT);
      if (count < 0 && (errno == EAGAIN || errno == EINTR)) return self->watch(self, signal);
      if (count > 0 && !(kTls && byte == kTlsAlert)) return;  // the next request; its end cannot be seen behind it
      signal->gone = true;
      signal->notify();
    });
  }

  void note(int status, int64_t bytes) const {
    if (shared_.on_access) shared_.on_access({request_, client_, status, bytes, seconds_since(started_)});
  }

  // Reads what is still on its way for a moment, else the client would not see the answer.
  net::awaitable<void> close() {
    constexpr double kSeconds = 1;
    constexpr size_t kMost = 16 << 20;
    Code code;
    lowest().socket().shutdown(tcp::socket::shutdown_send, code);
    lowest().expires_after(duration_of(kSeconds));
    size_t read = 0;
    std::string rest(4096, '\0');
    while (!code && read < kMost)
      read += co_await lowest().async_read_some(net::buffer(rest), net::redirect_error(net::use_awaitable, code));
    lowest().close();
  }

  net::io_context& io_;
  Shared& shared_;
  const ServerOptions& o_;
  S stream_;
  const std::string client_;
  const Held held_;
  beast::flat_buffer buffer_;
  // Of one request.
  HttpRequest request_;
  std::optional<std::string> origin_;
  std::string expects_;  // headers that a browser asks for
  bool chunks_ = true;   // HTTP/1.1
  Steady::time_point started_;
};

}  // namespace

struct HttpServer::Impl {
  Impl(ServerOptions options, HttpHandler handler) : shared(std::move(options), std::move(handler)) {
    const ServerOptions& o = shared.options;
    if (!o.ssl_certfile.empty()) load_certificate();
    shared.handlers = std::make_unique<net::thread_pool>(static_cast<size_t>(o.handler_threads));
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
    const ServerOptions& o = shared.options;
    net::ssl::context& tls = shared.tls.emplace(net::ssl::context::tls_server);
    Code code;
    tls.set_options(net::ssl::context::no_sslv2 | net::ssl::context::no_sslv3 | net::ssl::context::no_tlsv1 |
                    net::ssl::context::no_tlsv1_1);
    tls.use_certificate_chain_file(o.ssl_certfile, code);
    if (code) throw LoadError(fmt::format("--ssl-certfile {}: {}", o.ssl_certfile, code.message()));
    tls.use_private_key_file(o.ssl_keyfile, net::ssl::context::pem, code);
    if (code) throw LoadError(fmt::format("--ssl-keyfile {}: {}", o.ssl_keyfile, code.message()));
  }

  net::awaitable<void> accept() {
    while (!shared.draining) {
      Code code;
      tcp::socket socket = co_await acceptor.async_accept(net::redirect_error(net::use_awaitable, code));
      if (code == net::error::operation_aborted || code == net::error::bad_descriptor) co_return;
      if (code) {  // no descriptors: some will be given back
        net::steady_timer pause(io, std::chrono::milliseconds(50));
        co_await pause.async_wait(net::use_awaitable);
        continue;
      }
      if (shared.connections >= shared.options.connections) continue;  // closes it
      socket.set_option(tcp::no_delay(true), code);
      const tcp::endpoint remote = socket.remote_endpoint(code);
      const std::string client = code ? "" : remote.address().to_string();
      beast::tcp_stream stream(std::move(socket));
      if (shared.tls)
        start<beast::ssl_stream<beast::tcp_stream>>({std::move(stream), *shared.tls}, client);
      else
        start<beast::tcp_stream>(std::move(stream), client);
    }
  }

  template <class S>
  void start(S stream, std::string client) {
    auto connection = std::make_shared<Connection<S>>(io, shared, std::move(stream), std::move(client));
    net::co_spawn(io, connection->run(connection), [](const std::exception_ptr& thrown) {
      if (!thrown) return;
      try {
        std::rethrow_exception(thrown);
      } catch (const std::exception& error) {
        log_error("a connection failed: {}", error.what());
      }
    });
  }

  net::awaitable<void> watch_signals() {
    co_await signals.async_wait(net::use_awaitable);
    net::co_spawn(io, drain(), net::detached);
    co_await signals.async_wait(net::use_awaitable);
    deadline = Steady::now();
  }

  // Ends when nothing runs any more.
  net::awaitable<void> drain() {
    if (shared.draining.exchange(true)) co_return;
    constexpr double kLast = 2;  // seconds to send what was given up
    if (shared.on_drain) shared.on_drain();
    Code ignored;
    acceptor.close(ignored);
    deadline = Steady::now() + duration_of(shared.options.shutdown_seconds);
    if (shared.busy > 0) log_info("shutting down: {} requests run", shared.busy);
    while (shared.busy > 0) {
      if (Steady::now() >= deadline) {
        if (shared.given_up) break;
        shared.given_up = true;
        if (shared.on_give_up) shared.on_give_up();
        deadline = Steady::now() + duration_of(kLast);
      }
      net::steady_timer pause(io, std::chrono::milliseconds(20));
      co_await pause.async_wait(net::use_awaitable);
    }
    io.stop();
  }

  Shared shared;
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
bool HttpServer::draining() const { return impl_->shared.draining; }

void HttpServer::run() {
  impl_->shared.on_access = on_access;
  impl_->shared.on_drain = on_drain;
  impl_->shared.on_give_up = on_give_up;
  net::co_spawn(impl_->io, impl_->accept(), net::detached);
  net::co_spawn(impl_->io, impl_->watch_signals(), net::detached);
  impl_->io.run();
  impl_->shared.handlers->join();
  // The end of the last set would bring back the signals' default, which kills: from here on the process ends by
  // itself.
  [[maybe_unused]] static const auto* ignored = new net::signal_set(*new net::io_context, SIGINT, SIGTERM);
}

void HttpServer::stop() { net::co_spawn(impl_->io, impl_->drain(), net::detached); }

}  // namespace calandra::server

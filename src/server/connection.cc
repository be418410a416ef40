#include "server/connection.h"

#include <fmt/format.h>
#include <poll.h>
#include <sys/socket.h>

#include <algorithm>
#include <boost/beast/core.hpp>
#include <boost/beast/http.hpp>
#include <boost/beast/ssl.hpp>

#include "base/log.h"
#include "server/api_error.h"
#include "server/reply_text.h"
#include "server/request_head.h"
#include "server/request_reader.h"
#include "server/wake_signal.h"

namespace calandra::server {
namespace {

namespace net = boost::asio;
namespace beast = boost::beast;
namespace http = beast::http;
using tcp = net::ip::tcp;
using Code = boost::system::error_code;
using Steady = std::chrono::steady_clock;

double seconds_since(Steady::time_point start) { return std::chrono::duration<double>(Steady::now() - start).count(); }

constexpr int kClientLeft = 499;  // nginx's, in logs only

// Adds to a count while it lives.
class Held {
 public:
  Held(size_t& count, size_t amount) : count_(count), amount_(amount) { count_ += amount_; }
  ~Held() { count_ -= amount_; }
  Held(const Held&) = delete;
  Held& operator=(const Held&) = delete;
  void set(size_t amount) {
    count_ = count_ - amount_ + amount;
    amount_ = amount;
  }

 private:
  size_t& count_;
  size_t amount_;
};

template <class S>
class Connection : public std::enable_shared_from_this<Connection<S>> {
 public:
  // is_refused: it is one too many.
  Connection(net::io_context& io, ServerState& state, S stream, std::string client, bool is_refused)
      : io_(io),
        state_(state),
        o_(state.options),
        stream_(std::move(stream)),
        client_(std::move(client)),
        is_refused_(is_refused),
        held_(is_refused ? state.refused : state.connections, 1),
        reader_(state.options) {}

  net::awaitable<void> run(std::shared_ptr<Connection> self) {
    Code code;
    lowest().expires_after(duration_of(o_.header_seconds));  // the first head's too
    if constexpr (kTls) {
      co_await stream_.async_handshake(net::ssl::stream_base::server, net::redirect_error(net::use_awaitable, code));
      if (code) co_return;
    }
    bool keep = !is_refused_;
    while (keep) keep = co_await one_request(self);
    const RequestError too_many{503, "service_unavailable", "", "too many connections; try again later"};
    if (is_refused_) co_await refuse(too_many);
    co_await close();
  }

 private:
  static constexpr bool kTls = !std::is_same_v<S, beast::tcp_stream>;

  beast::tcp_stream& lowest() { return beast::get_lowest_layer(stream_); }

  // False: the connection ends.
  net::awaitable<bool> one_request(std::shared_ptr<Connection> self) {
    Code code;
    if (!is_first_) lowest().expires_after(duration_of(o_.idle_seconds));
    if (!reader_.has_bytes()) co_await read_more(code);
    if (code) co_return false;
    started_ = Steady::now();
    request_ = {};
    request_.request_id = make_request_id();
    origin_.reset();
    if (!std::exchange(is_first_, false)) lowest().expires_after(duration_of(o_.header_seconds));
    std::optional<RequestError> fault;
    bool is_there = reader_.read_head(fault);
    while (!is_there && !code) {
      co_await read_more(code);
      if (!code) is_there = reader_.read_head(fault);
    }
    if (code) co_return false;
    const Held busy(state_.busy, 1);
    if (fault) {
      co_await refuse(*fault);
      co_return false;
    }
    read_head(reader_.request());
    const bool may_keep = reader_.keep_alive() && !state_.draining;
    if (auto refused = refusal(reader_.request())) {
      const bool keep = may_keep && request_.method == "OPTIONS" && reader_.has_no_body();
      co_await send(*refused, keep);
      co_return keep;
    }
    Held bytes(state_.body_bytes, 0);
    if (beast::iequals(reader_.request()[http::field::expect], "100-continue")) {
      const std::string go_on = "HTTP/1.1 100 Continue\r\n\r\n";
      co_await write(go_on, code);
      if (code) co_return false;
    }
    lowest().expires_after(duration_of(o_.body_seconds));
    // What has come counts, not what was announced: else whoever announces much and sends nothing would close the
    // server.
    constexpr size_t kPart = 64 << 10;
    while (!code && !fault) {
      const bool is_whole = reader_.read_body(fault);
      bytes.set(reader_.request().body().size());
      if (!fault && state_.body_bytes > o_.all_body_bytes)
        fault = {503, "service_unavailable", "", "too many large requests at once; try again later"};
      if (is_whole) break;
      if (!fault) co_await read_more(code, kPart);
    }
    if (code || fault) {
      if (!fault) fault = fault_of(code, o_);
      if (fault) co_await refuse(*fault);
      co_return false;
    }
    request_.body = reader_.take_body();
    chunks_ = reader_.request().version() >= 11;
    co_return co_await answer(self, may_keep && !state_.draining, bytes);
  }

  // Within the time that is set. Who waits for a head holds little memory.
  net::awaitable<void> read_more(Code& code, size_t most = 4 << 10) {
    const auto room = reader_.prepare(most);
    const size_t count = co_await stream_.async_read_some(room, net::redirect_error(net::use_awaitable, code));
    reader_.commit(count);
  }

  template <class Head>
  void read_head(const Head& head) {
    request_.method = std::string(head.method_string());
    if (auto path = decode_path(head.target())) request_.path = std::move(*path);
    request_.query = std::string(query_of(head.target()));
    if (const std::string_view id = head["x-request-id"]; is_plain_id(id)) request_.request_id = std::string(id);
    request_.traceparent = std::string(head["traceparent"]);
    request_.if_none_match = std::string(head[http::field::if_none_match]);
    origin_ = allowed_origin(o_.allowed_origins, head[http::field::origin]);
    expects_ = head["access-control-request-headers"];
    for (const char c : expects_)
      if (static_cast<unsigned char>(c) < 0x20) expects_.clear();
  }

  // Decided by the head alone.
  template <class Head>
  std::optional<HttpReply> refusal(const Head& head) const {
    if (request_.path.empty())
      return error_reply({400, "bad_request", "", "the request's target is no path"}, request_.path);
    if (request_.method == "OPTIONS") {
      HttpReply reply{.status = 204};
      reply.headers = {{"Access-Control-Allow-Methods", "GET, POST, DELETE, OPTIONS"},
                       {"Access-Control-Allow-Headers", expects_.empty() ? "authorization, content-type" : expects_},
                       {"Access-Control-Max-Age", "600"}};
      return reply;
    }
    const bool is_open = request_.path == "/health" || request_.path == "/ping" || request_.path == "/metrics";
    const bool needs_key =
        !is_open && std::find(o_.open_paths.begin(), o_.open_paths.end(), request_.path) == o_.open_paths.end();
    if (!o_.api_keys.empty() && needs_key && !has_key(o_.api_keys, head[http::field::authorization], head["x-api-key"]))
      return error_reply({401, "invalid_api_key", "",
                          "the API key is missing or wrong: send Authorization: Bearer KEY or x-api-key: KEY"},
                         request_.path);
    if (state_.draining && !is_open)
      return error_reply({503, "service_unavailable", "", "the server is shutting down; try another one"},
                         request_.path);
    const std::string_view encoding = head[http::field::content_encoding];
    if (!encoding.empty() && !beast::iequals(encoding, "identity"))
      return error_reply(
          {415, "unsupported_encoding", "", "the body must not be compressed: leave out Content-Encoding"},
          request_.path);
    return std::nullopt;
  }

  net::awaitable<bool> answer(std::shared_ptr<Connection> self, bool keep, Held& bytes) {
    const auto signal = std::make_shared<WakeSignal>(io_);
    using Result = std::variant<HttpReply, std::unique_ptr<PendingReply>>;
    const auto handle = [this, signal]() -> net::awaitable<Result> {
      try {
        co_return state_.handler(request_, wake_of(signal));
      } catch (const std::exception& error) {
        log_error("a request failed: {}", error.what());
      }
      co_return error_reply(failure_, request_.path);
    };
    Result result = co_await net::co_spawn(*state_.handlers, handle, net::use_awaitable);
    request_.body = {};  // its memory is no longer needed
    bytes.set(0);
    bool fine = false;
    if (auto* reply = std::get_if<HttpReply>(&result)) {
      fine = co_await send(*reply, keep);
    } else {
      watch(self, signal);
      auto& pending = std::get<std::unique_ptr<PendingReply>>(result);
      bool failed = false, streams = false;
      try {
        while (!signal->gone && !pending->is_ready()) co_await wait(*signal, o_.ping_seconds);
        streams = pending->is_stream();
        if (streams)
          fine = co_await stream_reply(*pending, *signal, keep);
        else
          fine = co_await later_reply(*pending, *signal, keep);
      } catch (const std::exception& error) {
        log_error("a reply failed: {}", error.what());
        failed = true;
      }
      signal->over = true;
      Code ignored;
      lowest().socket().cancel(ignored);  // the watch
      if (failed && !streams) co_await refuse(failure_);
    }
    co_return fine&& keep;
  }

  // `fault` must be a variable, see write().
  net::awaitable<void> refuse(const RequestError& fault) {
    HttpReply reply = error_reply(fault, request_.path);
    co_await send(reply, false);
  }

  net::awaitable<bool> later_reply(PendingReply& pending, WakeSignal& signal, bool keep) {
    HttpReply reply;
    while (!signal.gone && !pending.advance(reply)) co_await wait(signal, o_.ping_seconds);
    if (signal.gone) {
      note(kClientLeft, 0);
      co_return false;
    }
    co_return co_await send(reply, keep);
  }

  net::awaitable<bool> stream_reply(PendingReply& pending, WakeSignal& signal, bool keep) {
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
    note(fine ? reply.status : kClientLeft, sent, reply.measures);
    co_return fine&& keep;
  }

  net::awaitable<bool> send(HttpReply& reply, bool keep) {
    add_headers(reply);
    std::string text = head_text(reply, keep, length_text(reply));
    if (request_.method != "HEAD") text += reply.body;
    note(reply.status, std::ssize(reply.body), reply.measures);
    Code code;
    co_await write(text, code);
    co_return !code;
  }

  // Returns when all is written. `text` must be a variable: GCC 12 destroys temporaries of a co_await with a condition
  // twice. Whoever does not read is given up after a while.
  net::awaitable<void> write(const std::string& text, Code& code) {
    constexpr size_t kPart = 64 << 10;
    size_t begin = 0;
    if constexpr (!kTls) {  // mostly there is room, and nothing to wait for
      begin = lowest().socket().write_some(net::buffer(text), code);
      if (code == net::error::would_block) code.clear();
    }
    for (; begin < text.size() && !code; begin += kPart) {
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
  void watch(const std::shared_ptr<Connection>& self, const std::shared_ptr<WakeSignal>& signal) {
    lowest().socket().async_wait(tcp::socket::wait_read, [self, signal](Code code) {
      if (code || signal->over) return;
      char byte = 0;
      const ssize_t count = recv(self->lowest().socket().native_handle(), &byte, 1, MSG_PEEK | MSG_DONTWAIT);
      if (count < 0 && (errno == EAGAIN || errno == EINTR)) return self->watch(self, signal);
      // The next request, or the goodbye of TLS, which is encrypted.
      if (count > 0) return net::co_spawn(self->io_, self->look_behind(self, signal), net::detached);
      signal->gone = true;
      signal->notify();
    });
  }

  // The same where something waits to be read: then the socket stays ready, and only asking tells.
  net::awaitable<void> look_behind(std::shared_ptr<Connection> self, std::shared_ptr<WakeSignal> signal) {
    net::steady_timer pause(io_);
    while (!signal->over && !signal->gone) {
      pollfd asked{self->lowest().socket().native_handle(), POLLRDHUP, 0};
      if (poll(&asked, 1, 0) > 0) {
        signal->gone = true;
        signal->notify();
      }
      pause.expires_after(std::chrono::milliseconds(100));
      co_await pause.async_wait(net::use_awaitable);
    }
  }

  void note(int status, int64_t bytes, std::span<const std::pair<std::string_view, double>> measures = {}) const {
    if (state_.on_access) state_.on_access({request_, client_, status, bytes, seconds_since(started_), measures});
  }

  // Reads what is still on its way for a moment, else the client would not see the answer.
  net::awaitable<void> close() {
    constexpr double kSeconds = 2;
    constexpr size_t kMost = 256 << 20;
    Code code;
    lowest().socket().shutdown(tcp::socket::shutdown_send, code);
    lowest().expires_after(duration_of(kSeconds));
    size_t read = 0;
    std::string rest(4096, '\0');
    while (!code && read < kMost)
      read += co_await lowest().async_read_some(net::buffer(rest), net::redirect_error(net::use_awaitable, code));
    lowest().close();
  }

  const RequestError failure_{500, "internal_error", "", "the server failed at this request"};
  net::io_context& io_;
  ServerState& state_;
  const ServerOptions& o_;
  S stream_;
  const std::string client_;
  const bool is_refused_;
  const Held held_;
  RequestReader reader_;
  bool is_first_ = true;
  // Of one request.
  HttpRequest request_;
  std::optional<std::string> origin_;
  std::string expects_;  // headers that a browser asks for
  bool chunks_ = true;   // HTTP/1.1
  Steady::time_point started_ = Steady::now();
};

template <class S>
void start(net::io_context& io, ServerState& state, S stream, const std::string& client, bool is_refused) {
  auto connection = std::make_shared<Connection<S>>(io, state, std::move(stream), client, is_refused);
  net::co_spawn(io, connection->run(connection), [](const std::exception_ptr& thrown) {
    if (!thrown) return;
    try {
      std::rethrow_exception(thrown);
    } catch (const std::exception& error) {
      log_error("a connection failed: {}", error.what());
    }
  });
}

}  // namespace

void serve_connection(net::io_context& io, ServerState& state, tcp::socket socket) {
  const bool is_refused = state.connections >= state.options.connections;
  if (is_refused && (state.refused >= kMostRefused || state.tls)) return;  // a handshake is too much
  Code code;
  socket.set_option(tcp::no_delay(true), code);
  socket.non_blocking(true, code);
  const tcp::endpoint remote = socket.remote_endpoint(code);
  const std::string client = code ? "" : remote.address().to_string();
  beast::tcp_stream stream(std::move(socket));
  if (state.tls)
    start<beast::ssl_stream<beast::tcp_stream>>(io, state, {std::move(stream), *state.tls}, client, is_refused);
  else
    start<beast::tcp_stream>(io, state, std::move(stream), client, is_refused);
}

}  // namespace calandra::server

#include "server/http_client.h"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <boost/asio.hpp>
#include <boost/asio/ssl.hpp>
#include <boost/beast/core.hpp>
#include <boost/beast/http.hpp>
#include <boost/beast/ssl.hpp>
#include <chrono>
#include <exception>

#include "base/error.h"
#include "server/wake_signal.h"

namespace calandra::server {
namespace {

namespace net = boost::asio;
namespace beast = boost::beast;
namespace http = beast::http;
using tcp = net::ip::tcp;
using Code = boost::system::error_code;
using Steady = std::chrono::steady_clock;

class Crowd {
 public:
  Crowd(const HttpTarget& target, int64_t concurrency, double timeout)
      : target_(target), concurrency_(concurrency), timeout_(timeout) {
    Code error;
    addresses_ = tcp::resolver(io_).resolve(target.host, target.port, error);
    if (error) throw LoadError(fmt::format("{}:{}: {}", target.host, target.port, error.message()));
    if (target.tls) {
      tls_.set_default_verify_paths();
      tls_.set_verify_mode(net::ssl::verify_peer);
    }
  }

  double run(std::span<HttpUser* const> users) {
    start_ = Steady::now();
    net::co_spawn(io_, admit(users), [this](std::exception_ptr error) { fail(error); });
    io_.run();
    if (failure_) std::rethrow_exception(failure_);
    return now();
  }

 private:
  double now() const { return std::chrono::duration<double>(Steady::now() - start_).count(); }
  void fail(std::exception_ptr error) {  // of the program
    if (!error) return;
    failure_ = error;
    io_.stop();
  }

  net::awaitable<void> admit(std::span<HttpUser* const> users) {
    net::steady_timer timer(io_);
    Code ignored;
    for (HttpUser* user : users) {
      timer.expires_at(start_ + duration_of(user->due()));
      co_await timer.async_wait(net::redirect_error(net::use_awaitable, ignored));
      while (concurrency_ > 0 && running_ >= concurrency_) {
        left_.expires_at(Steady::time_point::max());
        co_await left_.async_wait(net::redirect_error(net::use_awaitable, ignored));
      }
      ++running_;
      net::co_spawn(io_, serve(*user), [this](std::exception_ptr error) {
        --running_;
        left_.cancel();
        fail(error);
      });
    }
  }

  net::awaitable<void> serve(HttpUser& user) {
    HttpCall call;
    while (user.next(call, now())) {
      Code error;
      co_await ask(call, user, error);
      const std::string message = !error ? "" : error == beast::error::timeout ? "timed out" : error.message();
      user.end(message, now());
      call = {};
    }
  }

  net::awaitable<void> ask(const HttpCall& call, HttpUser& user, Code& error) {
    if (target_.tls) {
      beast::ssl_stream<beast::tcp_stream> stream(io_, tls_);
      stream.set_verify_callback(net::ssl::host_name_verification(target_.host));
      if (SSL_set_tlsext_host_name(stream.native_handle(), target_.host.c_str()) != 1) {
        error = net::error::invalid_argument;
        co_return;
      }
      co_await connect(stream.next_layer(), error);
      if (!error)
        co_await stream.async_handshake(net::ssl::stream_base::client, net::redirect_error(net::use_awaitable, error));
      if (!error) co_await exchange(stream, call, user, error);
    } else {
      beast::tcp_stream stream(io_);
      co_await connect(stream, error);
      if (!error) co_await exchange(stream, call, user, error);
    }
  }

  net::awaitable<void> connect(beast::tcp_stream& stream, Code& error) {
    stream.expires_after(duration_of(timeout_));
    co_await stream.async_connect(addresses_, net::redirect_error(net::use_awaitable, error));
    Code ignored;  // an option that only makes small requests quicker
    if (!error) stream.socket().set_option(tcp::no_delay(true), ignored);
  }

  template <class Stream>
  net::awaitable<void> exchange(Stream& stream, const HttpCall& call, HttpUser& user, Code& error) {
    http::request<http::string_body> request(http::string_to_verb(call.method), target_.path + call.path, 11);
    const bool usual_port = target_.port == (target_.tls ? "443" : "80");
    const std::string host = target_.host.find(':') == std::string::npos ? target_.host : "[" + target_.host + "]";
    request.set(http::field::host, usual_port ? host : host + ":" + target_.port);
    request.set(http::field::connection, "close");
    request.set(http::field::user_agent, "calandra");
    if (call.method == "POST") request.set(http::field::content_type, "application/json");
    for (const auto& [name, value] : call.headers) request.set(name, value);
    request.body() = call.body;
    request.prepare_payload();
    co_await http::async_write(stream, request, net::redirect_error(net::use_awaitable, error));
    if (error) co_return;

    beast::flat_buffer buffer;
    http::response_parser<http::buffer_body> parser;
    parser.body_limit(boost::none);
    co_await http::async_read_header(stream, buffer, parser, net::redirect_error(net::use_awaitable, error));
    if (error) co_return;
    user.head(parser.get().result_int(), parser.get()[http::field::content_type]);
    std::array<char, 16384> part;
    while (!parser.is_done()) {
      parser.get().body() = {part.data(), part.size(), true};
      co_await http::async_read_some(stream, buffer, parser, net::redirect_error(net::use_awaitable, error));
      if (error == http::error::need_buffer) error = {};
      const size_t count = part.size() - parser.get().body().size;
      if (count > 0) user.body({part.data(), count}, now());
      if (error) co_return;
    }
  }

  const HttpTarget& target_;
  const int64_t concurrency_;
  const double timeout_;
  net::io_context io_{1};
  net::ssl::context tls_{net::ssl::context::tls_client};
  tcp::resolver::results_type addresses_;
  net::steady_timer left_{io_};
  Steady::time_point start_;
  int64_t running_ = 0;
  std::exception_ptr failure_;
};

}  // namespace

HttpTarget read_target(const std::string& url) {
  const auto wrong = [&] { return UsageError(url + " is no address like http://127.0.0.1:8000"); };
  HttpTarget target;
  std::string_view rest = url;
  target.tls = rest.starts_with("https://");
  if (!target.tls && !rest.starts_with("http://")) throw wrong();
  rest.remove_prefix(target.tls ? 8 : 7);
  const size_t slash = std::min(rest.find('/'), rest.size());
  target.path = rest.substr(slash);
  while (target.path.ends_with('/')) target.path.pop_back();
  rest = rest.substr(0, slash);
  target.port = target.tls ? "443" : "80";
  const size_t colon = rest.rfind(':'), bracket = rest.rfind(']');
  if (colon != std::string_view::npos && (bracket == std::string_view::npos || colon > bracket)) {
    target.port = rest.substr(colon + 1);
    rest = rest.substr(0, colon);
    constexpr size_t kMostDigits = 5;
    if (target.port.empty() || target.port.size() > kMostDigits ||
        target.port.find_first_not_of("0123456789") != std::string::npos)
      throw wrong();
  }
  if (rest.starts_with('[') && rest.ends_with(']')) rest = rest.substr(1, rest.size() - 2);
  constexpr std::string_view kNotOfHosts = "@?#[] \t\r\n";
  if (rest.empty() || rest.find_first_of(kNotOfHosts) != std::string_view::npos) throw wrong();
  if (target.path.find_first_of("?# \t\r\n") != std::string::npos) throw wrong();
  target.host = rest;
  return target;
}

double run_users(const HttpTarget& target, std::span<HttpUser* const> users, int64_t concurrency, double timeout) {
  return Crowd(target, concurrency, timeout).run(users);
}

}  // namespace calandra::server

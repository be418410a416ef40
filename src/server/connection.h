// One connection of the server: a coroutine on the sockets' thread.
#pragma once

#include <atomic>
#include <boost/asio.hpp>
#include <boost/asio/ssl.hpp>
#include <memory>
#include <optional>

#include "server/http_server.h"

namespace calandra::server {

// Connections above the limit that are being told so; further ones are just closed.
inline constexpr size_t kMostRefused = 256;

// What the connections of a server share.
struct ServerState {
  ServerState(ServerOptions o, HttpHandler h) : options(std::move(o)), handler(std::move(h)) {}
  const ServerOptions options;
  const HttpHandler handler;
  std::function<void(const AccessRecord&)> on_access;
  std::atomic<bool> draining = false;
  // Of the sockets' thread.
  size_t connections = 0, refused = 0, busy = 0, body_bytes = 0;
  std::optional<boost::asio::ssl::context> tls;
  std::unique_ptr<boost::asio::thread_pool> handlers;
};

// Answers what comes on the socket until its end. Both must outlive that.
void serve_connection(boost::asio::io_context& io, ServerState& state, boost::asio::ip::tcp::socket socket);

}  // namespace calandra::server

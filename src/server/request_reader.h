// RequestReader: one request after the other out of the bytes of a connection, however they come in pieces. Knows
// nothing of sockets.
#pragma once

#include <boost/beast/core/flat_buffer.hpp>
#include <boost/beast/http/parser.hpp>
#include <boost/beast/http/string_body.hpp>
#include <optional>
#include <string>
#include <utility>

#include "base/error.h"
#include "server/http_server.h"

namespace calandra::server {

class RequestReader {
 public:
  // The limits of heads and bodies; must outlive it.
  explicit RequestReader(const ServerOptions& options) : options_(options) {}

  // Room for bytes that come, and how many of them came.
  boost::asio::mutable_buffer prepare(size_t most) { return buffer_.prepare(most); }
  void commit(size_t count) { buffer_.commit(count); }
  // Whether some came that belong to no request yet.
  bool has_bytes() const { return buffer_.size() > 0; }

  // Both read on with what has come, and give whether it suffices: for the next request's head, then for its body. With
  // a fault nothing more can be read.
  bool read_head(std::optional<RequestError>& fault);
  bool read_body(std::optional<RequestError>& fault);

  // Of the request whose head was read.
  const boost::beast::http::request<boost::beast::http::string_body>& request() const { return parser_->get(); }
  bool has_no_body() const { return parser_->is_done(); }
  bool keep_alive() const { return parser_->keep_alive(); }
  std::string take_body() { return std::move(parser_->get().body()); }

 private:
  const ServerOptions& options_;
  boost::beast::flat_buffer buffer_;
  size_t seen_ = 0;  // bytes of it in which no head ends
  bool body_begun_ = false;
  std::optional<boost::beast::http::request_parser<boost::beast::http::string_body>> parser_;
};

}  // namespace calandra::server
